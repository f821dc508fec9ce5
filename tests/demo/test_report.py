"""The verdicts, the table and the page, from a made-up outcome."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from specpilot.control.config import ControllerConfig
from specpilot.control.types import Binding, StopCause
from specpilot.demo.outcome import DemoOutcome
from specpilot.demo.plots import acceptance_by_position
from specpilot.demo.report import render, rows, write_report
from specpilot.simulation.results import CycleTotals, PolicyResult, RequestRecord, summarise
from specpilot.trace.cycles import CycleRecord, LedgerState


def result(name: str, source: str, ms: float = 100.0, tokens: int = 8) -> PolicyResult:
    records = [
        RequestRecord(f"r{i}", float(i), i + ms / 1000, 250.0, StopCause.EOS, tokens, target_passes=2)
        for i in range(40)
    ]
    return summarise(name, source, records, CycleTotals(), budget_violations=0)


def cycle(proposed: int, accepted: int, prompt: int = 50) -> CycleRecord:
    return CycleRecord(
        request="a",
        index=0,
        start_s=1.0,
        end_s=1.1,
        prompt_tokens=prompt,
        max_draft=8,
        from_pool=False,
        binding=Binding.CONFIDENCE,
        drafted=proposed,
        proposed=proposed,
        accepted=accepted,
        emitted=accepted + 1,
        draft_ms=1.0,
        draft_prefill_ms=0.0,
        verify_ms=5.0,
        host_ms=0.0,
        verified_tokens=proposed + 1,
        context_tokens=50,
        ledger=LedgerState(1, 1, 0.5),
    )


@pytest.fixture
def outcome() -> DemoOutcome:
    return DemoOutcome(
        config=ControllerConfig(),
        engine="onnx",
        seed=1,
        load=0.4,
        arrivals_per_s=8.0,
        capacity_per_s=20.0,
        live=[result("specpilot", "live", tokens=9), result("static-4", "live")],
        replays=[result("specpilot", "replay", tokens=9), result("oracle", "replay", tokens=12)],
        best_static="static-4",
        lossless_mismatches=0,
        lossless_near_ties=1,
        live_replay_cycles=80,
        live_replay_differences=0,
        inconsistent_positions=0,
        seconds=12.0,
        cycles={"specpilot": [cycle(4, 2)] * 20},
        latencies_ms={"specpilot": [90.0, 110.0], "static-4": [100.0, 120.0]},
        notes=["Times are medians & <nothing> more."],
    )


def test_everything_kept(outcome: DemoOutcome) -> None:
    assert outcome.kept
    assert outcome.gain_over_best_static == pytest.approx(9 / 8)
    assert outcome.oracle_share == pytest.approx(9 / 12)
    record = json.loads(json.dumps(outcome.to_json()))
    assert record["policies"]["specpilot"]["source"] == "live"
    assert record["replays"]["specpilot"]["source"] == "replay"
    assert {"lossless_mismatches", "best_static", "gain_over_best_static", "oracle_share"} <= record.keys()


def test_each_promise_can_be_broken(outcome: DemoOutcome) -> None:
    late = replace(outcome, live=[result("specpilot", "live", ms=300.0)])
    assert [check.kept for check in late.promises()] == [False, True]
    greedy = replace(outcome, live=[replace(outcome.specpilot, budget_violations=1)])
    assert [check.kept for check in greedy.promises()] == [True, False]
    # Refusing everybody else is no way to keep a p95.
    picky = replace(outcome, live=[replace(outcome.specpilot, slo_attainment=0.9)])
    assert [check.kept for check in picky.promises()] == [False, True]
    assert not replace(outcome, lossless_mismatches=1).kept
    assert not replace(outcome, live_replay_differences=1).kept


def test_the_table_labels_live_and_replay(outcome: DemoOutcome) -> None:
    assert [(row.cells[0], row.cells[1]) for row in rows(outcome)] == [
        ("specpilot", "live"),
        ("static-4", "live"),
        ("oracle", "replay"),
        ("specpilot", "replay"),
    ]
    assert len(render(outcome)) >= 5


def test_acceptance_is_conditional_on_being_reached() -> None:
    # Four blocks: 3 of 4 accepted, 0 of 4, full 2 of 2, none proposed.
    cycles = [cycle(4, 3), cycle(4, 0), cycle(2, 2), cycle(0, 0)]
    positions, rates = acceptance_by_position(cycles, least=1)
    assert positions == [1, 2, 3, 4]
    assert rates == [2 / 3, 1.0, 1.0, 0.0]


def test_the_page_is_self_contained(outcome: DemoOutcome, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    write_report(path, outcome)
    page = path.read_text(encoding="utf-8")
    assert page.count("<svg ") == 4
    assert "<script" not in page
    assert "src=" not in page
    assert "href=&quot;http" not in page
    assert "&amp; &lt;nothing&gt;" in page
    assert "kept" in page
