"""Replay: accepted lengths, times and caches by hand; the ledger holds; seeds decide."""

import math

import pytest

from specpilot.control import ControllerConfig, CycleOutcome, CyclePlan, StopCause, StopRule
from specpilot.control.types import Binding, Reason
from specpilot.simulation.costs import EngineCosts, Table
from specpilot.simulation.policies import POLICY_NAMES, replay_policy
from specpilot.simulation.replay import ReplayRequest, TraceExecutor
from specpilot.simulation.unknown import fill_unknown
from specpilot.trace.agreement import AgreementTrace

# A draft step 1 ms, each further token of a draft pass 0.1 ms, a pass 10 ms + 0.5 ms per further new token.
COSTS = EngineCosts(
    draft_step=Table((0.0,), (1.0,)),
    draft_forward=Table((1.0, 101.0), (1.0, 11.0)),
    verify=((1.0, Table((0.0,), (10.0,))), (101.0, Table((0.0,), (60.0,)))),
    host=0.25,
)
BITS = (1, 1, 0, 1, 1, 1, 0, 0, 1, 1)
TRACE = AgreementTrace(
    "a", 20, BITS, confidence=(0.9, 0.8, 0.2, 0.9, 0.9, 0.9, 0.5, 0.5, 0.9, 0.9), ended="max_tokens"
)


def plan(draft: int, stop: StopRule | None = None) -> CyclePlan:
    return CyclePlan(1, "a", draft, draft, stop or StopRule(), math.inf, False, Reason(Binding.MAX))


def cycle(executor: TraceExecutor, draft: int, stop: StopRule | None = None) -> CycleOutcome:
    return executor.run([plan(draft, stop)])[0]


def executor(trace: AgreementTrace = TRACE, cached: int = 0, max_tokens: int = 10) -> TraceExecutor:
    made = TraceExecutor({"a": ReplayRequest("a", trace, max_tokens, cached_tokens=cached)}, COSTS)
    made.open("a")
    return made


def test_a_request_by_hand() -> None:
    run = executor()
    first = cycle(run, 4)
    assert (first.drafted, first.proposed, first.accepted, first.emitted) == (4, 4, 2, 3)
    # Prompt and block in one pass: 24 new tokens, 10 + 23 · 0.5.
    assert (first.verified_tokens, first.context_tokens, first.verify_ms) == (24, 0, 21.5)
    assert (first.draft_prefill_tokens, first.draft_ms) == (19, 4.0)
    assert first.draft_prefill_ms == pytest.approx(1.9)
    assert first.host_ms == 0.25
    second = cycle(run, 3)
    assert (second.accepted, second.emitted, second.ended) == (3, 4, None)
    # 23 tokens known, 22 of them cached (the recovered one is not): 1 + 3 new.
    assert (second.context_tokens, second.verified_tokens) == (22, 4)
    # The draft's cache ends before the recovered token: one step feeds it.
    assert second.draft_prefill_tokens == 0
    third = cycle(run, 1)
    assert (third.accepted, third.emitted) == (0, 1)
    # After a full accept two tokens are fed (the last accepted one and the bonus): a step all the same.
    assert third.draft_prefill_tokens == 0
    fourth = cycle(run, 1)
    assert (fourth.accepted, fourth.emitted, fourth.ended) == (1, 2, StopCause.MAX_TOKENS)


def test_an_outage_costs_a_step_and_the_pass_goes_on_without_a_block() -> None:
    made = TraceExecutor({"a": ReplayRequest("a", TRACE, 10, draft_fails=True)}, COSTS)
    made.open("a")
    outcome = cycle(made, 4)
    assert (outcome.drafted, outcome.proposed, outcome.emitted) == (0, 0, 1)
    assert (outcome.draft_ms, outcome.draft_prefill_ms, outcome.verified_tokens) == (1.0, 0.0, 20)
    assert outcome.draft_fault is not None
    # A plain cycle does not notice.
    assert cycle(made, 0).draft_fault is None


def test_plain_cycles_leave_the_draft_behind() -> None:
    run = executor()
    plain = cycle(run, 0)
    assert (plain.drafted, plain.emitted, plain.verified_tokens) == (0, 1, 20)
    assert plain.draft_ms + plain.draft_prefill_ms == 0.0
    # Everything before the last known token: 20 of 21.
    assert cycle(run, 1).draft_prefill_tokens == 20
    assert cycle(run, 0).draft_prefill_tokens == 0


def test_session_reuse() -> None:
    run = executor(cached=15)
    first = cycle(run, 2)
    assert (first.context_tokens, first.verified_tokens, first.draft_prefill_tokens) == (15, 7, 4)
    assert TraceExecutor({"a": ReplayRequest("a", TRACE, 10, cached_tokens=99)}, COSTS).open("a") == 19


def test_the_confidence_stop_runs_on_the_recorded_confidences() -> None:
    # α̂ = max q; keep while S ≥ 0.5: 0.9 · 0.8 = 0.72, then 0.72 · 0.2 is dropped.
    stop = StopRule(intercept=0.0, slope=1.0, keep_at=(0.5,) * 8)
    run = executor()
    outcome = cycle(run, 8, stop)
    assert (outcome.drafted, outcome.proposed, outcome.accepted) == (3, 2, 2)
    assert outcome.confidences == (0.9, 0.8, 0.2)
    assert run.off_path_confidences == 0


def test_confidences_after_a_disagreement_are_counted() -> None:
    run = executor()
    cycle(run, 6)
    # Positions 1–3 are on the path (the third is the first wrong one), 4–6 are not.
    assert run.off_path_confidences == 3


def test_the_time_limit_stops_drafting() -> None:
    # Prefill takes 1.9 ms, each step 1 ms, 5 ms are allowed.
    outcome = cycle(executor(), 8, StopRule(time_limit_ms=5.0, step_ms=1.0))
    assert outcome.drafted == 3


def test_eos_inside_a_block() -> None:
    trace = AgreementTrace("a", 5, (1, 1, 1), ended="eos")
    outcome = cycle(executor(trace), 8)
    assert (outcome.accepted, outcome.emitted, outcome.ended) == (3, 3, StopCause.EOS)
    assert outcome.proposed == 3  # nothing is drafted behind EOS
    # Asked for less than was recorded, EOS is not reached.
    assert cycle(executor(trace, max_tokens=2), 1).ended is StopCause.MAX_TOKENS


def requests(count: int = 60, gap_s: float = 0.06) -> list[ReplayRequest]:
    return [
        ReplayRequest(f"r{index}", AgreementTrace(f"t{index}", 20, BITS, TRACE.confidence), 10, index * gap_s)
        for index in range(count)
    ]


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_keeps_the_budget(name: str) -> None:
    run = replay_policy(name, requests(), COSTS, ControllerConfig(pass_budget=1.5))
    result = run.result
    assert result.budget_violations == 0
    assert result.target_passes_per_request <= 1.5
    assert result.arrivals == 60
    assert result.requests + result.refused == 60
    assert result.source == "replay"
    assert len(run.records) == 60


def test_the_clairvoyant_drafts_nothing_in_vain() -> None:
    result = replay_policy("oracle", requests(), COSTS).result
    assert result.discarded_draft_tokens == 0
    # Two passes: 2 + 1 tokens, then 3 + 1.
    assert result.tokens_per_pass >= 3.5


def test_the_same_calls_give_the_same_answers() -> None:
    once, again = (replay_policy("specpilot", requests(), COSTS).result for _ in range(2))
    assert once == again


def test_closed_loop_never_idles() -> None:
    result = replay_policy("static-4", requests(gap_s=9.0), COSTS, closed_loop=True).result
    assert result.duration_s < 60 * 0.1


def test_unknown_bits_are_drawn_by_seed_and_counted() -> None:
    trace = AgreementTrace("a", 5, (1, None, 0, None) * 50, confidence=(0.95, 0.95, 0.05, 0.05) * 50)
    filled, drawn = fill_unknown([trace], seed=3)
    assert drawn == 100
    assert fill_unknown([trace], seed=3)[0] == filled
    assert fill_unknown([trace], seed=4)[0] != filled
    assert all(
        bit == known for bit, known in zip(filled[0].agree, trace.agree, strict=True) if known is not None
    )
    # Where the draft was sure it was right, so the drawn bits there mostly agree, and the others do not.
    assert sum(filled[0].agree[1::4]) >= 45  # type: ignore[arg-type]
    assert sum(filled[0].agree[3::4]) <= 5  # type: ignore[arg-type]


def test_no_requests_and_unknown_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="requests: there are none"):
        replay_policy("specpilot", [], COSTS)
    with pytest.raises(ValueError, match="'best' is not known"):
        replay_policy("best", requests(), COSTS)
