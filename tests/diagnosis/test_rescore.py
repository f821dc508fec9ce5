"""Re-scoring with a fresh cache: injected cache faults are confirmed, a healthy engine is cleared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.faulty_engine import Setup, SimTime, TableLM, run, tables
from benchmarks.faulty_pair import record

from specpilot.cli.main import main
from specpilot.demo.pair_engine import load_engine
from specpilot.diagnosis import diagnose, read_columns
from specpilot.diagnosis.rescore import (
    CONFIRMED,
    OPEN,
    REFUTED,
    TOO_FEW,
    Rescored,
    cycles_needed,
    odds_of_at_most,
    rescore,
)
from specpilot.models.base import CausalLM
from specpilot.trace import AdmitRecord, CycleRecord, TraceRecord, write_trace


def draft_of(setup: Setup, seed: int | None = None) -> CausalLM:
    """The setup's draft model, without its fault; with a seed: another one."""
    other = setup if seed is None else replace(setup, seed=seed)
    return TableLM("draft", tables(other)[1], SimTime(), lambda width, held: 0.0)


def found(setup: Setup, folder: Path) -> tuple[Path, Rescored]:
    path = folder / f"{setup.fault}.jsonl"
    write_trace(path, *run(setup))
    return path, rescore(path, draft_of(setup))


# Odd seeds: the bonus token is emitted, but not fed to the draft.
SMALL = Setup(seed=5, requests=40, policy="static-4", draft_noise=0.8)


def test_a_healthy_engine_is_cleared(tmp_path: Path) -> None:
    more = replace(SMALL, requests=80)
    path, seen = found(more, tmp_path)
    assert seen.requests == 80
    assert seen.largest < 1e-5
    assert not any(seen.onsets.values())
    assert seen.verdict("kv_misalignment") == seen.verdict("missing_bonus_token") == REFUTED
    cycles = [r for r in run(more)[1] if isinstance(r, CycleRecord) and r.proposed]
    assert sum(seen.clean.values()) == len(cycles), "every drafted cycle is compared"
    # The first rejected token is compared too, what comes after it is not.
    judged = [r for r in cycles if r.ended is None]
    assert seen.compared_tokens >= sum(min(r.accepted + 1, r.proposed) for r in judged)
    assert diagnose(read_columns(path), seen).to_json()["rescored"]["same_model"] is True


@pytest.mark.parametrize(
    ("cause", "other", "kind"),
    [
        ("kv_misalignment", "missing_bonus_token", "crop"),
        ("missing_bonus_token", "kv_misalignment", "full_accept"),
    ],
)
def test_an_injected_fault_is_confirmed_and_only_that(
    tmp_path: Path, cause: str, other: str, kind: str
) -> None:
    """Forty requests are too few for the rules, which see losses of acceptance; not for a fresh cache."""
    path, seen = found(replace(SMALL, fault=cause), tmp_path)
    assert seen.verdict(cause) == CONFIRMED
    assert seen.verdict(other) != CONFIRMED
    assert {name for name, count in seen.onsets.items() if count} == {kind}
    diagnosis = diagnose(read_columns(path), seen)
    assert diagnosis.primary == cause
    assert diagnosis.findings[0].evidence["rescored_requests"] == 40


def test_a_suspicion_is_refuted() -> None:
    """What statistics suspect is dropped where a fresh cache says the same; too little leaves it open."""
    many = Rescored(100, 0, 1000, {"first": 100, "crop": 100, "full_accept": 10}, {}, 1e-6)
    assert many.verdict("kv_misalignment") == REFUTED
    assert many.verdict("missing_bonus_token") == TOO_FEW
    with pytest.raises(ValueError, match="weak_draft"):
        many.verdict("weak_draft")


def test_the_odds_by_hand() -> None:
    """0.95 ^ 89 = 0.0104, 0.95 ^ 90 = 0.0099: ninety clean cycles speak against a fault of 5 %."""
    assert odds_of_at_most(0, 20) == pytest.approx(0.95**20)
    assert odds_of_at_most(1, 3) == pytest.approx(0.95**3 + 3 * 0.05 * 0.95**2)
    assert odds_of_at_most(3, 3) == odds_of_at_most(0, 0) == 1.0
    assert cycles_needed(0) == 90
    for seen in (1, 2, 40):
        needed = cycles_needed(seen)
        assert odds_of_at_most(seen, needed) <= 0.01
        assert seen <= 0.01 * needed
        assert odds_of_at_most(seen, needed - 1) > 0.01 or seen > 0.01 * (needed - 1)


@pytest.mark.parametrize(
    ("cycles", "seen", "verdict"),
    [
        (20, 0, TOO_FEW),
        (89, 0, TOO_FEW),
        (90, 0, REFUTED),
        (50, 2, TOO_FEW),
        (300, 3, REFUTED),
        (600, 14, OPEN),
        (400, 14, TOO_FEW),
        (60, 3, CONFIRMED),
    ],
)
def test_how_much_refutes(cycles: int, seen: int, verdict: str) -> None:
    """Between 1 % and 5 % a fault is neither; whether more cycles would tell is the odds' word."""
    found = Rescored(100, 0, 1000, {"first": 100, "crop": cycles}, {"crop": seen}, 0.1)
    assert found.verdict("kv_misalignment") == verdict
    told = found.to_json()
    assert told["examined_cycles"]["kv_misalignment"] == cycles
    assert (told["odds_of_missing"]["kv_misalignment"] <= 0.01) == (verdict in (REFUTED, OPEN))


def reused(records: list[TraceRecord], wrong_too: bool, every: int) -> list[TraceRecord]:
    """Each ``every``-th request found a cache of its session, perhaps one that made its first draft wrong."""
    changed: list[TraceRecord] = []
    for item in records:
        if not isinstance(item, AdmitRecord | CycleRecord) or int(item.request[1:]) % every:
            changed.append(item)
        elif isinstance(item, AdmitRecord):
            changed.append(replace(item, cached_tokens=8))
        elif wrong_too and item.index == 0 and item.confidences:
            low = tuple(value / 2.0 for value in item.confidences)
            changed.append(replace(item, confidences=low))
        else:
            changed.append(item)
    return changed


def test_a_reused_cache_is_no_control(tmp_path: Path) -> None:
    """Its first cycle may differ already, by what an earlier request of the session left."""
    header, records = run(SMALL)
    path = tmp_path / "reused.jsonl"
    write_trace(path, header, reused(records, True, 2))
    seen = rescore(path, draft_of(SMALL))
    assert seen.clean["first"] == seen.clean["reused_cache"] == 20
    assert dict(seen.onsets) == {"reused_cache": 20}
    assert seen.same_model


def test_without_controls_nothing_is_confirmed(tmp_path: Path) -> None:
    """A fault that is plain to see, but every request found a cache: perhaps this is another model."""
    faulty = replace(SMALL, fault="kv_misalignment")
    header, records = run(faulty)
    path = tmp_path / "reused.jsonl"
    write_trace(path, header, reused(records, False, 1))
    seen = rescore(path, draft_of(SMALL))
    assert seen.onsets["crop"] > 10
    assert not seen.clean.get("first")
    assert seen.verdict("kv_misalignment") == TOO_FEW


def test_an_unknown_admission_is_no_control(tmp_path: Path) -> None:
    header, records = run(replace(SMALL, requests=5))
    path = tmp_path / "cut.jsonl"
    write_trace(path, header, [item for item in records if not isinstance(item, AdmitRecord)])
    seen = rescore(path, draft_of(SMALL))
    assert dict(seen.clean).get("first") is None
    assert seen.clean["reused_cache"] == 5


def test_the_command_says_how_much_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "few.jsonl"
    write_trace(path, *record(load_engine(), "healthy", "static-4", 0.0, 3))
    with pytest.raises(SystemExit):
        main(["diagnose", str(path), "--rescore"])
    told = " ".join(capsys.readouterr().out.split())
    assert "0 differ; 90 would refute it" in told
    assert "3 requests began with a cache of their own, 5 are needed to confirm it" in told


def test_another_model_decides_nothing(tmp_path: Path) -> None:
    path, _ = found(SMALL, tmp_path)
    seen = rescore(path, draft_of(SMALL, seed=8))
    assert not seen.same_model
    assert seen.verdict("kv_misalignment") == OPEN


def test_what_a_trace_lacks_is_said(tmp_path: Path) -> None:
    bare = tmp_path / "bare.jsonl"
    write_trace(bare, *run(replace(SMALL, requests=5, ids=False)))
    with pytest.raises(ValueError, match=r"bare\.jsonl has no greedy request with its prompt_ids"):
        rescore(bare, draft_of(SMALL))
    sampled = tmp_path / "sampled.jsonl"
    write_trace(sampled, *run(replace(SMALL, requests=5, temperature=0.8)))
    with pytest.raises(ValueError, match="no greedy request"):
        rescore(sampled, draft_of(SMALL))


def test_foreign_tokens_are_refused(tmp_path: Path) -> None:
    path, _ = found(replace(SMALL, requests=5), tmp_path)
    small = TableLM("draft", [np.zeros((1, 2), np.float32)], SimTime(), lambda width, held: 0.0)
    small.vocab_size = 2
    with pytest.raises(ValueError, match="the draft model knows 2"):
        rescore(path, small)


def test_prompts_are_written_once(tmp_path: Path) -> None:
    cycles = [r for r in run(replace(SMALL, requests=5))[1] if isinstance(r, CycleRecord)]
    for cycle in cycles:
        assert (cycle.evidence.prompt_ids is not None) == (cycle.index == 0)
        if cycle.evidence.prompt_ids is not None:
            assert len(cycle.evidence.prompt_ids) == cycle.prompt_tokens


@pytest.mark.parametrize(
    ("fault", "verdict"), [("healthy", REFUTED), ("kv_misalignment", CONFIRMED)], ids=str
)
def test_the_bundled_pair_by_the_command(
    fault: str, verdict: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real models, a rollback that keeps a row too many, few requests."""
    path = tmp_path / "trace.jsonl"
    write_trace(path, *record(load_engine(), fault, "static-4", 0.0, 24))
    with pytest.raises(SystemExit):
        main(["diagnose", str(path), "--rescore", "--json", "-"])
    result = json.loads(capsys.readouterr().out)
    assert result["rescored"]["verdicts"]["kv_misalignment"] == verdict, result["rescored"]
    assert (result["primary"] == "kv_misalignment") == (verdict == CONFIRMED)


def test_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    trace = Path(__file__).resolve().parents[2] / "examples" / "traces" / "tuesday.jsonl.gz"
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", str(trace), "--rescore"])
    assert stop.value.code == 2
    assert "written only if asked for" in " ".join(capsys.readouterr().err.split())


def test_an_earlier_trace_needs_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier, today = tmp_path / "earlier.jsonl", tmp_path / "today.jsonl"
    write_trace(earlier, *run(replace(SMALL, requests=20, ids=False)))
    write_trace(today, *record(load_engine(), "healthy", "static-4", 0.0, 3))
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", str(today), "--before", str(earlier), "--rescore"])
    assert stop.value.code in (0, 1)
    assert "re-scored with a fresh cache: 3 requests (0 left out)" in capsys.readouterr().out
