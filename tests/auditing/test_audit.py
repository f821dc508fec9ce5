"""The audit sees faults in a real engine, passes the healthy one, and tells near-ties apart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from benchmarks.audit_faults import CHANGES_OUTPUT, FIRST_LETTER, SPEED_ONLY, audit, subject
from hypothesis import given
from hypothesis import strategies as st

from specpilot.auditing import Answer, Check, ModelReference, audit_tokenizers, audit_trace, verdict
from specpilot.auditing.distribution import FALSE_ALARM, SHARES, Evidence
from specpilot.auditing.endpoint import audit_endpoint
from specpilot.auditing.laws import FAULTS, Context, context, faulty_laws
from specpilot.auditing.local import LocalSubject, _ends, _greedy, audit_pair
from specpilot.cli.main import main
from specpilot.control import ControllerConfig, CycleOutcome, CyclePlan
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.distribution import DoubleArray, probabilities
from specpilot.decoding.types import SamplingParams
from specpilot.demo.workload import bundled_prompts
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import FloatArray
from specpilot.pair import load_pair, place
from specpilot.targets.model import ModelTarget

SAMPLED = ("distribution", "coupled_distribution")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", CHANGES_OUTPUT)
def test_a_fault_that_changes_the_output_is_seen(fault: str) -> None:
    """One engine each; the published table says how often."""
    assert audit((fault, 41, 300))[2] == "wrong"


@pytest.mark.parametrize("fault", ["healthy", *SPEED_ONLY])
def test_what_changes_no_output_passes(fault: str) -> None:
    """Odds of a false failure: 2e-4 each (of two distributions; the other checks are exact)."""
    _, _, answer, checks = audit((fault, 42, 120))
    assert answer == "lossless"
    assert {check.name for check in checks} == {"greedy_equality", "stop_and_eos", "seeds", *SAMPLED}


def test_the_same_seed_is_the_same_audit() -> None:
    assert audit(("healthy", 7, 60)) == audit(("healthy", 7, 60))


# --- the bets on sampled tokens ---------------------------------------------------------------------

PLAIN = SamplingParams(1.0)


def logits_pair(seed: int, size: int = 12, noise: float = 0.7) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    target = 1.5 * rng.standard_normal(size)
    return target.astype(np.float32), (target + noise * rng.standard_normal(size)).astype(np.float32)


def some_context(seed: int) -> Context:
    found = context(*logits_pair(seed), PLAIN)
    assert found is not None
    return found


def bet(law: Callable[[Context], DoubleArray], seed: int, tokens: int) -> Evidence:
    """Tokens of a law, at twenty prefixes in turn."""
    rng = np.random.default_rng(seed)
    places = [some_context(number) for number in range(20)]
    evidence = Evidence()
    for number in range(tokens):
        there = places[number % 20]
        weights = law(there)
        evidence.observe(number % 20, int(rng.choice(weights.size, p=weights / weights.sum())), there)
        evidence.weigh(there, 1.0)
    return evidence


def test_laws_by_hand() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.8, 0.1, 0.1])
    laws = dict(zip(FAULTS, faulty_laws(p, q, p), strict=True))
    # Token 0 is proposed always and taken with 0.5 / 0.8; else 1 or 2 by what p has more: 0.2 and 0.1.
    assert laws["draft_argmax_judged_as_drawn"] == pytest.approx([0.625, 0.25, 0.125])
    # 0.7 of the draws are taken; the others are drawn from p.
    assert laws["recovered_token_from_p"] == pytest.approx([0.65, 0.19, 0.16])
    assert laws["unverified_draft_token"] == pytest.approx(q)
    assert laws["target_argmax"] == pytest.approx([1.0, 0.0, 0.0])


@given(st.integers(0, 10_000))
def test_laws_are_distributions_and_a_right_draft_gives_p(seed: int) -> None:
    target, draft = logits_pair(seed)
    p, q = probabilities(target, PLAIN), probabilities(draft, PLAIN)
    for law in faulty_laws(p, q, p):
        assert law.min() >= 0.0
        assert law.sum() == pytest.approx(1.0)
    # The law's formula at q̃ = q is p: speculative sampling is lossless.
    assert np.minimum(p, q) + (p - np.minimum(p, q)) == pytest.approx(p)
    # A bet's expected factor under p is 1: a fair game.
    found = Context(p, faulty_laws(p, q, p))
    assert (found.laws / p) @ p == pytest.approx(np.ones(len(FAULTS)))


def test_one_token_by_hand() -> None:
    """Every bet multiplies its stake by 1 + share · (law / p − 1); the learned ones begin at p."""
    p = np.array([0.5, 0.5])
    evidence = Evidence()
    evidence.observe("x", 0, Context(p, np.tile([0.75, 0.25], (len(FAULTS), 1))))
    average = np.mean([1.0 + share * 0.5 for share in SHARES])
    assert math.exp(evidence.nats) == pytest.approx(0.5 * average + 0.5)


def test_false_alarms_are_as_rare_as_stated() -> None:
    """Looked at after every token. Odds of a false failure: 60 · 1e-4 for the alarm; P(sup ≥ 10) ≤ 1 / 10 in
    each, 20 or more of 60 has odds below 1e-6.
    """
    highest = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        evidence = Evidence()
        top = -math.inf
        for number in range(200):
            there = some_context(number % 5)
            evidence.observe(number % 5, int(rng.choice(12, p=there.p)), there)
            top = max(top, evidence.nats)
        assert not evidence.wrong
        highest.append(top)
    assert sum(top >= math.log(10.0) for top in highest) < 20


@pytest.mark.parametrize("fault", ["draft_argmax_judged_as_drawn", "draft_flatter_than_reported"])
def test_the_stated_power_is_reached(fault: str) -> None:
    """A fault of the visible share is seen in 9 of 10 runs: of 30 fewer than 20 has odds of 1 in 10,000."""
    row = FAULTS.index(fault)
    share = bet(lambda there: there.p, 1, 1500).to_json()["visible_share"][fault]
    assert 0.02 < share < 0.9
    faulty = [
        bet(lambda there: (1.0 - share) * there.p + share * there.laws[row], 100 + seed, 1500)
        for seed in range(30)
    ]
    assert sum(evidence.wrong for evidence in faulty) >= 20


def test_a_fault_that_nobody_thought_of_is_learned() -> None:
    """The least likely token takes a fifth of the tokens: none of the listed laws."""

    def law(there: Context) -> DoubleArray:
        wrong = 0.8 * there.p
        wrong[int(there.p.argmin())] += 0.2
        return wrong

    assert bet(law, 3, 1500).wrong


def test_a_forbidden_token_fails_at_once_but_not_where_the_cut_is_near() -> None:
    logits = np.array([2.0, 1.0, 0.0, -3.0], dtype=np.float32)
    cut = SamplingParams(1.0, top_k=2)
    found = context(logits, logits, cut)
    assert found is not None
    evidence = Evidence()
    evidence.observe("x", 2, found)
    assert evidence.wrong
    assert evidence.to_json()["forbidden_tokens"] == 1
    near = np.array([2.0, 1.0, 1.0 - 1e-4, -3.0], dtype=np.float32)
    assert context(near, near, cut) is None
    shares = probabilities(logits, PLAIN)
    assert context(logits, logits, SamplingParams(1.0, top_p=float(shares[0] + shares[1]))) is None
    assert context(logits, logits, SamplingParams(1.0, top_p=0.8)) is not None


def test_more_is_drawn_only_where_the_answer_is_open() -> None:
    """A fault at a tenth of the draws: open after the first samples, then proved. The seed is fixed."""
    open_case = audit(("rejection_on_fixed_tokens", 47, 120), 0.1)[3][-2].detail
    healthy = audit(("healthy", 47, 120))[3][-2].detail
    assert healthy["samples"] == 120 * 2 * 3
    assert open_case["samples"] > 120 * 2 * 3
    assert open_case["p_value"] < FALSE_ALARM


def test_fixed_lengths_are_drafted_whether_they_pay_or_not() -> None:
    """The audit exercises the cycle: a policy that sees no gain would draft nothing."""
    engine = subject("healthy", 3)
    seen: list[int] = []
    run = LiveExecutor.run

    def spy(self: LiveExecutor, plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
        outcomes = run(self, plans)
        seen.extend(outcome.proposed for outcome in outcomes)
        return outcomes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveExecutor, "run", spy)
        engine.complete("ĂăĄ", 12, max_draft=4)
    assert seen
    assert seen[0] == 4
    assert min(seen[:-1], default=4) >= 1


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
    tokens, margins = ModelReference(pair.target).greedy(prompt, 6)
    assert tuple(tokens) == pair.complete(prompt, 6, max_draft=0).token_ids
    assert len(margins) == len(tokens)


def letters(*tokens: int) -> str:
    """A prompt of the made-up models: a letter is a token."""
    return "".join(chr(FIRST_LETTER + token) for token in tokens)


def test_short_outputs_are_not_called_wrong() -> None:
    """The reference is no longer than was asked for, so no longer output can be compared with it."""
    pair = load_pair()
    executor = LiveExecutor(ModelTarget(pair.target), ModelDrafter(pair.draft))
    engine = LocalSubject(
        executor, pair.target, pair.draft, pair.tokenizer, pair.encode, rng=np.random.default_rng(1)
    )
    prompt = "You can apply for a permit"
    plain = {prompt: ModelReference(pair.target).greedy(pair.encode(prompt), 4)}
    check = _ends(engine, plain, 4)
    assert check.detail["stop_strings"] == 1
    assert check.status == "pass"


def test_an_output_longer_than_the_context_is_refused_before_any_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = subject("healthy", 42)
    monkeypatch.setattr(ModelReference, "rows", lambda *_: pytest.fail("a pass was made"))
    limit = engine.target.context_limit
    with pytest.raises(ValueError, match=f"max_tokens: {limit} is not in 1…{limit - 1}"):
        audit_pair(engine, [letters(1, 2)], max_tokens=limit)


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
        (("--seed", "-1"), "seed: -1 is not ≥ 0"),
        (
            ("--url", "http://x", "--target", "y", "--seed", "2"),
            "--target, --seed: given together with --url",
        ),
        (("--url", "http://x", "--engine", "onnx"), "--engine: given together with --url"),
        (("--reference", "http://x"), "--reference: given without --url"),
        (("--url", "http://127.0.0.1:9"), "does not answer"),
        (("--engine", "fast", "--target", "nowhere"), "engine"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["audit", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
