"""The audit sees faults in a real engine, passes the healthy one, and tells near-ties apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from benchmarks.audit_faults import CHANGES_OUTPUT, SPEED_ONLY, audit

from specpilot.auditing import Answer, Check, TargetReference, audit_tokenizers, audit_trace, verdict
from specpilot.auditing.distribution import FALSE_ALARM, judge, judge_cells
from specpilot.auditing.endpoint import audit_endpoint
from specpilot.auditing.local import _greedy
from specpilot.cli.main import main
from specpilot.control import ControllerConfig
from specpilot.demo.workload import bundled_prompts
from specpilot.pair import load_pair, place

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", CHANGES_OUTPUT)
def test_a_fault_that_changes_the_output_is_seen(fault: str) -> None:
    """One engine each; the published table says how often."""
    assert audit((fault, 41, 500))[2] == "wrong"


@pytest.mark.parametrize("fault", ["healthy", *SPEED_ONLY])
def test_what_changes_no_output_passes(fault: str) -> None:
    """Odds of a false failure: 1e-4 each (the distribution's; the other checks are exact)."""
    _, _, answer, checks = audit((fault, 42, 300))
    assert answer == "lossless"
    assert {check.name for check in checks} == {"greedy_equality", "stop_and_eos", "seeds", "distribution"}


def test_the_same_seed_is_the_same_audit() -> None:
    assert audit(("healthy", 7, 60)) == audit(("healthy", 7, 60))


# --- the test of distributions ----------------------------------------------------------------------


def test_cells_condition_on_the_commonest_prefix() -> None:
    p = np.array([0.5, 0.5])
    outputs = [(0, 1)] * 60 + [(0, 0)] * 60 + [(1,)] * 100
    first, second = judge_cells([outputs], lambda prompt, prefix: p)
    assert (first.count, second.count) == (220, 120)  # after 0, which came 120 times of 220
    assert second.p_value == pytest.approx(1.0)


def test_a_forbidden_token_fails_at_once() -> None:
    outputs = [(0,)] * 99 + [(2,)]
    (cell,) = judge_cells([outputs], lambda prompt, prefix: np.array([0.5, 0.5, 0.0]))
    assert cell.p_value == 0.0


def test_false_alarms_are_as_rare_as_stated() -> None:
    """Of 400 healthy samples none may fall below 1e-4; odds of a false failure: 0.04."""
    rng = np.random.default_rng(11)
    p = np.array([0.4, 0.3, 0.2, 0.06, 0.04])
    for _ in range(400):
        drawn = [(int(token),) for token in rng.choice(5, 300, p=p)]
        fine, _ = judge(judge_cells([drawn], lambda prompt, prefix: p))
        assert fine


def test_the_stated_power_is_reached() -> None:
    """A fault of the visible size is seen in 9 of 10; of 60 runs fewer than 44 are 1 in 10,000."""
    rng = np.random.default_rng(12)
    p = np.array([0.4, 0.3, 0.2, 0.1])
    share = judge_cells([[(0,)] * 500], lambda prompt, prefix: p)[0].visible_share
    assert 0.05 < share < 0.5
    faulty = (1.0 - share) * p + share * np.array([1.0, 0.0, 0.0, 0.0])
    seen = 0
    for _ in range(60):
        drawn = [(int(token),) for token in rng.choice(4, 500, p=faulty)]
        (cell,) = judge_cells([drawn], lambda prompt, prefix: p)
        seen += cell.p_value < FALSE_ALARM
    assert seen >= 44


# --- near-ties and verdicts -----------------------------------------------------------------------


class Parrot:
    """Answers as it was told to."""

    name = "parrot"

    def __init__(self, texts: Sequence[str], tokens: tuple[int, ...] | None = None) -> None:
        self._texts = list(texts)
        self._tokens = tokens
        self._asked = 0

    def complete(self, prompt: str, max_tokens: int, **settings: object) -> Answer:
        self._asked += 1
        return Answer(self._texts[self._asked % len(self._texts)], self._tokens)


def test_a_difference_at_a_near_tie_is_told_apart() -> None:
    near = {"a": ([5, 6, 7], [2.0, 0.0004, 2.0])}
    assert _greedy(Parrot([""], (5, 9, 7)), near, 3).status == "near_tie"
    clear = {"a": ([5, 6, 7], [2.0, 0.2, 2.0])}
    check = _greedy(Parrot([""], (5, 9, 7)), clear, 3)
    assert check.status == "fail"
    assert check.detail["first"][0]["position"] == 1
    assert _greedy(Parrot([""], (5, 6)), clear, 3).status == "fail"  # too short


def test_verdict() -> None:
    passed, failed, near, left = (Check(s, s) for s in ("pass", "fail", "near_tie", "skipped"))
    assert verdict([passed, failed, near]) == "wrong"
    assert verdict([passed, near, left]) == "lossless"
    assert verdict([left]) == "inconclusive"
    with pytest.raises(ValueError, match="status: 'maybe'"):
        Check("x", "maybe")


def test_an_endpoint_that_says_something_else_is_wrong() -> None:
    said = ["it is a long answer to the question"]
    checks = audit_endpoint(Parrot(said), Parrot(["it is a wrong answer to the question"]), ["q"], samples=20)
    assert verdict(checks) == "wrong"
    assert checks[0].detail["first"][0]["character"] == 8
    # Cut earlier is no difference: a budget may do that.
    short = audit_endpoint(Parrot(["it is a long"]), Parrot(said), ["q"], samples=20)
    assert short[0].status == "pass"


# --- traces, tokenizers, the command --------------------------------------------------------------


def test_a_trace_of_a_fast_but_wrong_release() -> None:
    good = audit_trace(ROOT / "examples/traces/release-1.jsonl.gz")
    bad = audit_trace(ROOT / "examples/traces/release-2.jsonl.gz")
    assert verdict(good) == "lossless"
    assert verdict(bad) == "wrong"


def test_tokenizers(tmp_path: Path) -> None:
    ours = Path(place(None, "target"))
    assert audit_tokenizers(ours, place(None, "draft")).status == "pass"
    record = json.loads((ours / "tokenizer.json").read_text(encoding="utf-8"))
    del record["model"]["merges"][-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(record), encoding="utf-8")
    check = audit_tokenizers(ours, tmp_path)
    assert check.status == "fail"
    assert "merges" in str(check.detail)


def test_the_reference_is_greedy_decoding() -> None:
    config = ControllerConfig(pass_budget=6.0, slo_p95_ms=600_000.0)
    pair = load_pair(config=config)
    prompt = pair.encode(bundled_prompts()[0].text)
    tokens, margins = TargetReference(pair.target).greedy(prompt, 6)
    assert tuple(tokens) == pair.complete(prompt, 6, max_draft=0).token_ids
    assert len(margins) == len(tokens)


def test_command_on_the_bundled_pair(tmp_path: Path) -> None:
    target = tmp_path / "audit.json"
    arguments = ["audit", "--limit", "2", "--samples", "40", "--max-tokens", "8", "--json", str(target)]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    record = json.loads(target.read_text())
    assert record["verdict"] == "lossless"
    assert [check["name"] for check in record["checks"]][:2] == ["vocabulary", "greedy_equality"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--limit", "0"), "limit: 0 is not ≥ 1"),
        (("--url", "http://x", "--target", "y"), "url: given together"),
        (("--reference", "http://x"), "give --url"),
        (("--url", "http://127.0.0.1:9"), "does not answer"),
        (("--engine", "fast", "--target", "nowhere"), "engine"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["audit", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
