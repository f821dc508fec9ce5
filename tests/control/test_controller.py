"""The controller and its planner: decisions that can be reasoned out, and misuse."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
from tests.control.driving import cut

from specpilot.control import Controller, ControllerConfig, CycleOutcome, CyclePlan, RequestInfo, StopCause
from specpilot.control.config import Mode
from specpilot.control.health import Fallback
from specpilot.control.horizon import Horizon, best_length, future_values, increments, thresholds
from specpilot.control.planner import OptimalPlanner
from specpilot.control.types import Binding


def outcome(plan: CyclePlan, proposed: int, accepted: int, **changes: object) -> CycleOutcome:
    """A cycle on an engine with a cheap draft: 0.3 ms a step, 7 ms a pass."""
    fields: dict[str, object] = {
        "cycle_id": plan.cycle_id,
        "drafted": proposed,
        "proposed": proposed,
        "accepted": accepted,
        "emitted": accepted + 1,
        "confidences": tuple([0.6] * proposed),
        "draft_ms": 0.3 * proposed,
        "verify_ms": 7.0,
        "verified_tokens": proposed + 1,
    }
    return CycleOutcome(**{**fields, **changes})  # type: ignore[arg-type]


def one_cycle(
    controller: Controller, name: str, now: float, accepted: int = 1, **changes: object
) -> CyclePlan | None:
    """Plan, begin and observe one cycle; ``None`` if the request was ended instead."""
    answer = controller.plan([name], now=now)
    if answer.stops:
        controller.finish(name, answer.stops[0].cause, now=now)
        return None
    plan = answer.cycles[0]
    controller.begin([plan.cycle_id], now=now)
    controller.observe(
        [outcome(plan, plan.max_draft, min(accepted, plan.max_draft), **changes)], now=now + 0.008
    )
    return plan


# --- the decision ---------------------------------------------------------------------------------


def test_best_draft_length_by_hand() -> None:
    """S = 1, ½, ¼, ⅛ and a step that costs 0.3 tokens: position 1 pays (½), position 2 does not (¼)."""
    tau, value, plain = best_length([1.0, 0.5, 0.25, 0.125], [1.0] * 4, [0.1, 0.3, 0.3, 0.3])
    assert tau == 1
    assert value == pytest.approx(1.0 - 0.1 + 0.5 - 0.3)
    assert plain == pytest.approx(0.9)


def test_value_of_later_passes_by_hand() -> None:
    """No ending, no costs, α = ½, one pass: wanting n allows τ = n − 1, worth Σ_{j<n} 2^−j."""
    survive = [0.5**j for j in range(5)]
    values = future_values(survive, [1.0] * 4, [0.0] * 5, passes=1)
    assert values == pytest.approx([0.0, 1.0, 1.5, 1.75])
    # Two passes, two wanted: the first draws 1 + ½, and if its draft fails the second gives the other ½.
    assert future_values(survive, [1.0] * 4, [0.0] * 5, passes=2)[2] == pytest.approx(2.0)
    assert future_values(survive, [1.0] * 4, [0.0] * 5, passes=0) == [0.0] * 4


def test_more_passes_than_tokens_are_worth_as_much_as_one_for_each() -> None:
    """N − 1 tokens need N − 1 passes at most."""
    survive = [0.8**j for j in range(6)]
    goes_on = [0.97**j for j in range(13)]
    costs = [0.3, 0.1, 0.1, 0.1, 0.1, 0.1]
    enough = future_values(survive, goes_on, costs, passes=12)
    assert enough == future_values(survive, goes_on, costs, passes=10**12)
    fewer = future_values(survive, goes_on, costs, passes=11)
    assert fewer[:12] == enough[:12]  # up to 11 tokens, 11 passes are enough too
    assert fewer[12] < enough[12]


def test_with_a_pass_for_each_token_one_more_saves_what_it_costs_at_the_best_rate() -> None:
    """S = 1, ½, ¼: a plain pass costs 0.3 a token, one with a draft token (0.3 + 0.06) ÷ 1½ = 0.24, with two
    (0.3 + 0.12) ÷ 1¾ = 0.24 too.
    """
    survive, costs, goes_on = [1.0, 0.5, 0.25], [0.3, 0.06, 0.06], [1.0, 0.9, 0.81, 0.729, 0.6561]
    assert increments(survive, Horizon(3, 3, goes_on), costs, 2) == pytest.approx([0.24, 0.216, 0.1944])
    dear = [5.0 * cost for cost in costs]  # no later pass is worth its time: a token is a token
    assert increments(survive, Horizon(3, 3, goes_on), dear, 2) == pytest.approx(goes_on[:3])


def test_thresholds_look_ahead_where_hazards_rise() -> None:
    """Position 2 alone costs 0.2 for 0.1; with the two sure ones behind it 0.22 for 0.1 + 0.09 + 0.081."""
    _, alone = thresholds([0.9, 0.1], [1.0] * 3, [0.0, 0.2, 0.2], [0.0] * 3, 1.0, 2)
    _, ahead = thresholds([0.9, 0.1, 0.9, 0.9], [1.0] * 5, [0.0, 0.2, 0.2, 0.01, 0.01], [0.0] * 5, 1.0, 4)
    assert alone[1] == pytest.approx(2.0)  # never reached: S is at most 1
    assert ahead[1] == pytest.approx((0.2 + 0.01 + 0.01) / (0.1 + 0.09 + 0.081))
    assert ahead[0] == pytest.approx(0.2 / 0.9)  # a chain leaves it to the choice of τ


def test_worthless_positions_are_never_drafted() -> None:
    keep, draft = thresholds([0.5, 0.5], [1.0, 1.0, 0.0], [0.1] * 3, [1.0, 1.1, 1.2], 0.1, 2)
    assert keep[1] == math.inf
    assert draft[1] == math.inf


def test_draft_never_exceeds_what_is_wanted() -> None:
    controller = Controller()
    controller.admit(RequestInfo("a", 10, 1), now=0.0)
    controller.admit(RequestInfo("b", 10, 3), now=0.0)
    plans = {plan.request_id: plan for plan in controller.plan(["a", "b"], now=0.0).cycles}
    assert plans["a"].max_draft == 0
    assert plans["a"].reason.binding is Binding.LENGTH
    assert plans["b"].max_draft <= 2


def test_a_request_may_switch_speculation_off() -> None:
    controller = Controller()
    controller.admit(RequestInfo("a", 10, 24, max_draft=0), now=0.0)
    assert controller.plan(["a"], now=0.0).cycles[0].max_draft == 0


def test_a_dear_draft_falls_back_at_saturation() -> None:
    """A draft step as dear as a pass, accepted at one in five: plain decoding wins, with probes."""
    controller = Controller(ControllerConfig(pass_budget=8.0, slo_p95_ms=1e6))
    now, lengths = 0.0, []
    for serial in range(60):
        name = f"r{serial}"
        controller.admit(RequestInfo(name, 20, 24), now=now)
        while True:
            answer = controller.plan([name], now=now)
            if answer.stops:
                controller.finish(name, answer.stops[0].cause, now=now)
                break
            plan = answer.cycles[0]
            controller.begin([plan.cycle_id], now=now)
            lengths.append(plan.max_draft)
            drafted = min(plan.max_draft, 2)
            accepted = int(len(lengths) % 5 == 0 and drafted > 0)
            now += 0.007 * (1 + drafted)
            controller.observe([outcome(plan, drafted, accepted, draft_ms=7.0 * drafted)], now=now)
    tail = lengths[200:]
    assert sum(length == 0 for length in tail) > 0.8 * len(tail)
    assert any(tail), "probes go on"


# --- promises -------------------------------------------------------------------------------------


def test_budget_ends_a_request_with_the_numbers() -> None:
    controller = Controller()
    controller.admit(RequestInfo("a", 10, 24), now=0.0)
    assert one_cycle(controller, "a", 0.0)
    assert one_cycle(controller, "a", 0.01)
    answer = controller.plan(["a"], now=0.02)
    assert answer.stops[0].cause is StopCause.BUDGET
    assert answer.stops[0].reason.numbers["missing_tokens"] == 20.0
    summary = controller.finish("a", StopCause.BUDGET, now=0.02)
    assert (summary.target_passes, summary.emitted_tokens, summary.met_slo) == (2, 4, True)


def test_what_cannot_meet_its_deadline_is_refused() -> None:
    controller = Controller()
    now = 0.0
    for serial in range(8):  # calibrate: 7 ms a pass
        controller.admit(RequestInfo(str(serial), 10, 24), now=now)
        while one_cycle(controller, str(serial), now):
            now += 0.01
    refusal = controller.admit(RequestInfo("late", 10, 24, arrival_s=now - 0.249), now=now)
    assert not refusal.admitted
    assert "deadline" in refusal.reason


@pytest.mark.parametrize("prompt_tokens", [10, 300])
def test_a_slow_start_is_not_held_against_the_engine_for_ever(prompt_tokens: int) -> None:
    """Passes of two seconds while it warms up, then of 7 ms: one let in gets a pass, so its cost is seen."""
    controller = Controller()
    now = 0.0

    def serve(name: str, verify_ms: float) -> bool:
        nonlocal now
        served = False
        now += 0.05
        if controller.admit(RequestInfo(name, prompt_tokens, 24), now=now).admitted:
            while one_cycle(
                controller,
                name,
                now,
                verify_ms=verify_ms,
                verified_tokens=1 if served else prompt_tokens,
                context_tokens=prompt_tokens if served else 0,
            ):
                served, now = True, now + verify_ms / 1000.0
        return served

    while not controller.cost.calibrated:
        serve("slow", 2000.0)
    assert controller.cost.verify_ms(prompt_tokens) > 1500.0
    tries = [serve(f"r{serial}", 7.0) for serial in range(1400)]
    assert all(tries[-200:]), "what one is let in for is its pass"


def test_long_prompts_are_measured_again_although_short_ones_are_served() -> None:
    """A cost that is wrong for long prompts alone: those served between refusals do not vouch for it."""
    controller = calibrated_but_for(600, 2000.0)
    answers = []
    for serial in range(24):
        now = 1.0 + serial
        answers.append(controller.admit(RequestInfo(f"l{serial}", 600, 24), now=now).admitted)
        if answers[-1]:
            controller.finish(f"l{serial}", StopCause.CANCELLED, now=now)
        assert controller.admit(RequestInfo(f"s{serial}", 10, 24), now=now).admitted
        while one_cycle(controller, f"s{serial}", now):
            now += 0.01
    assert answers == [False] * 7 + [True] + [False] * 15 + [True]  # neither had a pass: twice as late


def test_a_width_that_was_never_measured_is_measured_at_once() -> None:
    """Found by counting refusals: costs learnt from short prompts, scaled to long ones, kept those out for
    eight arrivals though their pass would have been in time.
    """
    controller = Controller()
    serial = 0
    while not controller.cost.calibrated:  # four times as slow as the profile says, at 40 tokens
        serial += 1
        controller.admit(RequestInfo(f"s{serial}", 40, 24), now=float(serial))
        while one_cycle(controller, f"s{serial}", float(serial), verify_ms=60.0, verified_tokens=40):
            pass
    assert controller.cost.verify_ms(600) > 250.0
    assert controller.admit(RequestInfo("l", 600, 24), now=100.0).admitted
    assert one_cycle(controller, "l", 100.0, verify_ms=150.0, verified_tokens=600)
    controller.finish("l", StopCause.CANCELLED, now=100.2)
    assert controller.admit(RequestInfo("m", 600, 24), now=101.0).admitted


def test_passes_that_are_given_up_do_not_let_everybody_in() -> None:
    """Nothing is learnt of a width whose passes the clients do not wait for."""
    controller = calibrated_but_for(300, 1000.0)
    admitted = 0
    for serial in range(200):
        now, name = 100.0 + serial, f"l{serial}"
        if controller.admit(RequestInfo(name, 2000, 24), now=now).admitted:
            admitted += 1
            (plan,) = controller.plan([name], now=now).cycles
            controller.begin([plan.cycle_id], now=now)
            controller.finish(name, StopCause.CANCELLED, now=now + 0.1)
    assert 1 <= admitted <= 8  # the first, then after 2, 4, 8 … more


def test_prompts_in_chunks_are_measured_again_when_their_passes_were_in_time() -> None:
    """Found by a reviewer: they make no pass of their width, so it is never measured."""
    controller = calibrated_but_for(2000, 2000.0)
    admitted = 0
    for serial in range(100):
        now, name = 100.0 + serial, f"c{serial}"
        if controller.admit(RequestInfo(name, 2000, 24, prefill_passes=1), now=now).admitted:
            admitted += 1
            one_cycle(controller, name, now, verify_ms=20.0, verified_tokens=512, accepted=0)
            controller.finish(name, StopCause.CANCELLED, now=now + 0.1)
    assert admitted > 50


def test_hopeless_prompts_are_measured_only_where_nobody_is_kept_waiting() -> None:
    """Found under load: every eighth prompt that is too long in fact took its pass from those in time."""
    controller = calibrated_but_for(600, 2000.0)
    assert controller.admit(RequestInfo("first", 40, 24), now=1.0).admitted
    crowd = [controller.admit(RequestInfo(f"c{n}", 600, 24), now=1.0).admitted for n in range(40)]
    assert not any(crowd)
    while one_cycle(controller, "first", 1.0):
        pass
    alone = [controller.admit(RequestInfo(f"a{n}", 600, 24), now=2.0).admitted for n in range(8)]
    assert alone == [False] * 7 + [True]


def test_a_crowd_is_no_reason_to_let_somebody_in_late() -> None:
    """What others make late says nothing of the costs: of a hundred in a row none is admitted to measure."""
    controller = calibrated()
    admitted = [
        controller.admit(RequestInfo(f"r{serial}", 40, 24), now=1.0).admitted for serial in range(150)
    ]
    assert admitted[0]
    assert not any(admitted[-100:])
    # Nor is one that has used up its time before it got here.
    late = [
        controller.admit(RequestInfo(f"l{serial}", 40, 24, arrival_s=0.76), now=1.0).admitted
        for serial in range(30)
    ]
    assert not any(late)


def test_a_prompt_with_more_chunks_than_passes_is_refused() -> None:
    controller = Controller()
    refusal = controller.admit(RequestInfo("a", 9000, 24, prefill_passes=2), now=0.0)
    assert not refusal.admitted
    assert "prefill chunk" in refusal.reason
    assert controller.ledger.admitted == 0


def test_what_can_be_shown_when_its_time_is_over_is_shown_before_anything_is_measured() -> None:
    controller = Controller(ControllerConfig(pass_budget=20.0, slo_p95_ms=1.0))
    controller.admit(RequestInfo("a", 10, 24), now=0.0)
    plan = controller.plan(["a"], now=0.01).cycles[0]  # late, but nothing can be shown yet
    controller.begin([plan.cycle_id], now=0.01)
    controller.observe([outcome(plan, 0, 0)], now=0.02)
    assert not controller.cost.calibrated
    assert [stop.cause for stop in controller.plan(["a"], now=0.02).stops] == [StopCause.DEADLINE]


def test_a_pass_that_would_be_late_is_not_started() -> None:
    controller = Controller()
    now = 0.0
    for serial in range(8):
        controller.admit(RequestInfo(str(serial), 10, 24), now=now)
        while one_cycle(controller, str(serial), now):
            now += 0.01
    controller.admit(RequestInfo("a", 10, 24), now=now)
    assert one_cycle(controller, "a", now)
    answer = controller.plan(["a"], now=now + 0.248)
    assert answer.stops[0].cause is StopCause.DEADLINE
    assert answer.stops[0].reason.binding is Binding.DEADLINE


def test_a_faulty_drafter_means_plain_decoding_for_that_request() -> None:
    controller = Controller(ControllerConfig(pass_budget=3.0))
    controller.admit(RequestInfo("a", 10, 24), now=0.0)
    plan = controller.plan(["a"], now=0.0).cycles[0]
    controller.begin([plan.cycle_id], now=0.0)
    controller.observe([outcome(plan, 0, 0, draft_fault="RuntimeError: gone")], now=0.01)
    after = controller.plan(["a"], now=0.01).cycles[0]
    assert (after.max_draft, after.reason.binding) == (0, Binding.BREAKER)


def test_unlimited_budget_ends_by_length() -> None:
    controller = Controller(ControllerConfig(pass_budget=math.inf))
    controller.admit(RequestInfo("a", 10, 24), now=0.0)
    passes = 0
    while passes < 12:
        assert one_cycle(controller, "a", 0.0)
        passes += 1
    assert controller.ledger.passes_started == 12


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pass_budget": 0.5}, "pass_budget: 0.5 is not ≥ 1"),
        ({"slo_p95_ms": 0.0}, "slo_p95_ms"),
        ({"max_draft": 33}, "max_draft: 33 is not 0…32"),
        ({"probe_max": 1}, "probe_max"),
        ({"pass_budget": "2"}, "pass_budget: '2' is not a number"),
        ({"max_draft": 2.5}, "max_draft: 2.5 is not a whole number"),
        ({"max_batch": True}, "max_batch: True is not a whole number"),
        ({"give_way": 1}, "give_way: 1 is not True or False"),
        ({"max_nodes": 8, "lookup_depth": 9}, "max_nodes is 8; give --max-nodes 32"),
        ({"discount": 1.0}, "discount"),
    ],
)
def test_bad_configuration(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ControllerConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: 0 is not ≥ 1"),
        ({"prompt_tokens": -1}, "prompt_tokens: -1"),
        ({"slo_ms": 0.0}, "slo_ms"),
        ({"slo_ms": math.inf}, "slo_ms: inf is not > 0 and finite"),
        ({"arrival_s": math.nan}, "arrival_s: nan is not finite"),
        ({"max_draft": -1}, "max_draft"),
    ],
)
def test_bad_requests(changes: dict[str, float], message: str) -> None:
    fields: dict[str, object] = {"request_id": "a", "prompt_tokens": 5, "max_tokens": 5, **changes}
    with pytest.raises(ValueError, match=message):
        Controller().admit(RequestInfo(**fields), now=0.0)  # type: ignore[arg-type]


def test_a_batch_that_cannot_be_planned_changes_nothing() -> None:
    controller = Controller()
    for name in ("a", "b"):
        controller.admit(RequestInfo(name, 10, 24), now=0.0)
    with pytest.raises(ValueError, match="twice"):
        controller.plan(["a", "a"], now=0.0)
    running = controller.plan(["b"], now=0.0).cycles[0]
    before = controller.snapshot()
    with pytest.raises(ValueError, match="observe or abort"):
        controller.plan(["a", "b"], now=0.0)
    assert controller.snapshot() == before
    controller.abort([running.cycle_id], now=0.0)
    assert len(controller.plan(["a", "b"], now=0.0).cycles) == 2


@pytest.mark.parametrize("accepted", [31, 32, 33, 48])
def test_a_block_longer_than_the_positions_tracked_is_learned_from(accepted: int) -> None:
    """Looked-up text may go on where the draft model stops: 64 nodes deep at most."""
    controller = Controller(ControllerConfig(max_nodes=64, lookup_depth=64))
    controller.admit(RequestInfo("a", 10, 100), now=0.0)
    plan = controller.plan(["a"], now=0.0).cycles[0]
    controller.begin([plan.cycle_id], now=0.0)
    controller.observe([outcome(plan, 50, accepted)], now=0.02)
    planner = controller.planner
    assert isinstance(planner, OptimalPlanner)
    table = planner.knowledge.acceptance.table("draft_model", 0)
    assert len(table.reached) == min(accepted + 1, 32)


def test_cycles_are_used_once_and_in_order() -> None:
    controller = Controller()
    controller.admit(RequestInfo("a", 10, 24), now=0.0)
    with pytest.raises(ValueError, match="in flight"):
        controller.admit(RequestInfo("a", 10, 24), now=0.0)
    plan = controller.plan(["a"], now=0.0).cycles[0]
    with pytest.raises(ValueError, match="observe or abort"):
        controller.plan(["a"], now=0.0)
    with pytest.raises(ValueError, match="has not begun"):
        controller.observe([outcome(plan, 0, 0)], now=0.0)
    controller.begin([plan.cycle_id], now=0.0)
    with pytest.raises(ValueError, match="begun already"):
        controller.begin([plan.cycle_id], now=0.0)
    with pytest.raises(ValueError, match=r"accepted: \d+ is not in 0…\d+ \(proposed\)"):
        controller.observe([outcome(plan, 1, 2)], now=0.0)
    controller.observe([outcome(plan, 1, 1)], now=0.0)
    with pytest.raises(ValueError, match="not open"):
        controller.abort([plan.cycle_id], now=0.0)
    with pytest.raises(ValueError, match="not in flight"):
        controller.finish("ghost", StopCause.ERROR, now=0.0)


def test_time_is_shared_with_later_passes() -> None:
    """With 45 ms left, two passes of 7 ms and steps of 2 ms, the first block leaves time for the second.

    (Found on the tight-SLO scenario: drafting up to the deadline cost every request its second pass.)
    """
    controller = Controller(ControllerConfig(slo_p95_ms=1000.0))
    now = 0.0
    for serial in range(8):
        controller.admit(RequestInfo(str(serial), 1, 24), now=now)
        while cycles := controller.plan([str(serial)], now=now).cycles:
            plan = cycles[0]
            controller.begin([plan.cycle_id], now=now)
            done = outcome(plan, plan.max_draft, 1, draft_ms=2.0 * plan.max_draft, draft_prefill_ms=0.0)
            now += 0.05
            controller.observe([done], now=now)
        controller.finish(str(serial), StopCause.BUDGET, now=now)
    step = controller.cost.draft_step_ms
    assert step > 1.5
    controller.admit(RequestInfo("a", 1, 24, slo_ms=45.0), now=now)
    plan = controller.plan(["a"], now=now).cycles[0]
    assert 1 <= plan.max_draft <= 45.0 / 2 / step


def test_a_plain_cycle_does_not_use_up_the_breakers_trial() -> None:
    """Three faults open the breaker; the fourth cycle after them may draft. A request that wants one token
    only cannot use it, so the next one does.
    """
    controller = Controller()
    for name in ("a", "b", "c"):
        controller.admit(RequestInfo(name, prompt_tokens=20, max_tokens=24), now=0.0)
        one_cycle(controller, name, 0.0, accepted=0, draft_fault="exception")
    allowed = []
    for index, wanted in enumerate((24, 24, 24, 1, 24)):
        name = f"later-{index}"
        controller.admit(RequestInfo(name, prompt_tokens=20, max_tokens=wanted), now=0.1)
        plan = one_cycle(controller, name, 0.1)
        assert plan is not None
        allowed.append(plan.max_draft > 0)
    assert allowed == [False, False, False, False, True]


def test_the_breakers_trial_is_not_lost_with_a_pool_pass_that_is_not_granted() -> None:
    """Requests with one pass each ask for a second one from an empty pool and end. Those plans are no cycles:
    the fourth cycle after the third fault is the trial, though six plans were made by then.
    """
    controller = Controller(ControllerConfig(pass_budget=1.0))
    drafted = []
    for index in range(7):
        name = str(index)
        controller.admit(RequestInfo(name, prompt_tokens=20, max_tokens=24), now=0.0)
        fault = "exception" if index < 3 else None
        plan = one_cycle(controller, name, 0.0, accepted=0, draft_fault=fault)
        assert plan is not None
        drafted.append(plan.max_draft > 0)
        assert [stop.cause for stop in controller.plan([name], now=0.0).stops] == [StopCause.BUDGET]
        controller.finish(name, StopCause.BUDGET, now=0.0)
    assert drafted == [True, True, True, False, False, False, True]


# --- engines that draft after the target's pass ---------------------------------------------------


def broken(**config: object) -> Controller:
    """A controller whose drafter has just failed three times in a row, in requests that have ended."""
    controller = calibrated(**config)
    for serial in range(3):
        controller.admit(RequestInfo(f"f{serial}", 10, 24), now=0.0)
        one_cycle(controller, f"f{serial}", 0.0, draft_fault="gone")
        controller.finish(f"f{serial}", StopCause.CANCELLED, now=0.0)
    assert controller._estimates.breakers["draft_model"].open
    return controller


def trial(controller: Controller, name: str, cycles: int = 100) -> CyclePlan:
    """Plain cycles of one request until the breaker lets it draft; that plan, which has begun."""
    controller.admit(RequestInfo(name, 10, 1000, slo_ms=1e6), now=0.0)
    for _ in range(cycles):
        plan = controller.plan([name], now=0.0).cycles[0]
        controller.begin([plan.cycle_id], now=0.0)
        if plan.max_draft:
            return plan
        controller.observe([outcome(plan, 0, 0)], now=0.0)
    raise AssertionError("no trial")


def test_the_breakers_trial_is_passed_on_where_nothing_was_drafted() -> None:
    """The drafter was not asked, so that says nothing of it: the breaker stays open, the next cycle tries."""
    controller = broken(pass_budget=1e9)
    plan = trial(controller, "a")
    controller.observe([outcome(plan, 0, 0)], now=0.0)
    assert controller._estimates.breakers["draft_model"].open
    assert controller.plan(["a"], now=0.0).cycles[0].max_draft > 0


def test_the_breakers_trial_is_passed_on_where_its_cycle_is_given_up() -> None:
    controller = broken(pass_budget=1e9)
    controller.abort([trial(controller, "a").cycle_id], now=0.0)
    assert controller.plan(["a"], now=0.0).cycles[0].max_draft > 0


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_request_whose_draft_has_failed_uses_up_no_trial(order: tuple[str, str]) -> None:
    """Two requests take turns; the one that has failed is never drafted for, so the other one tries."""
    controller = broken(pass_budget=1e9)
    plan = trial(controller, "a")
    controller.observe([outcome(plan, 0, 0, draft_fault="gone")], now=0.0)
    controller.admit(RequestInfo("b", 10, 1000, slo_ms=1e6), now=0.0)
    drafts = []
    for _ in range(64):
        for name in order:
            plan = controller.plan([name], now=0.0).cycles[0]
            controller.begin([plan.cycle_id], now=0.0)
            controller.observe([outcome(plan, plan.max_draft, 0)], now=0.0)
            drafts.append((name, plan.max_draft > 0))
    assert ("a", True) not in drafts
    assert ("b", True) in drafts[:18], (
        "within 16 cycles, the interval after the second fault, or the one after"
    )


def test_a_prefill_that_carries_no_draft_plans_none_and_does_not_ask_the_planner() -> None:
    controller = Controller(ControllerConfig(pass_budget=3.0))
    assert isinstance(controller.planner, OptimalPlanner)
    controller.admit(RequestInfo("a", 40, 24, prefill_drafts=False), now=0.0)
    plan = controller.plan(["a"], now=0.0).cycles[0]
    assert (plan.max_draft, plan.reason.note) == (0, "prefill")
    assert not controller.planner.learned()["contexts"]
    controller.begin([plan.cycle_id], now=0.0)
    controller.observe([outcome(plan, 0, 0, verified_tokens=40)], now=0.01)
    assert controller.plan(["a"], now=0.01).cycles[0].max_draft > 0


def test_a_chunk_of_the_prompt_is_a_pass_that_leaves_the_rest_to_do() -> None:
    controller = Controller(ControllerConfig(pass_budget=3.0))
    controller.admit(RequestInfo("a", 100, 24, prefill_passes=1, prefill_drafts=False), now=0.0)
    for width, emitted in ((64, 0), (36, 1)):
        plan = controller.plan(["a"], now=0.0).cycles[0]
        controller.begin([plan.cycle_id], now=0.0)
        done = CycleOutcome(plan.cycle_id, 0, 0, 0, emitted, verify_ms=7.0, verified_tokens=width)
        controller.observe([done], now=0.0)
        assert controller._requests["a"].uncached == (36 if not emitted else 1)
    assert controller.ledger.passes("a") == (2, 0)


def test_expected_draft_is_what_the_next_plan_asks_for_and_changes_nothing() -> None:
    """Two controllers, one of them asked: same plans; the forecast covers τ in all but a few cycles."""
    asked, silent = (Controller(ControllerConfig(pass_budget=math.inf, max_draft=8)) for _ in range(2))
    short = 0
    for number in range(12):
        name, now = f"r{number}", number * 1.0
        for controller in (asked, silent):
            controller.admit(RequestInfo(name, 40, 40, prefill_drafts=False, slo_ms=60_000.0), now=now)
        expected = 0
        for cycle in range(8):
            now += 0.01
            plan, same = (controller.plan([name], now=now).cycles[0] for controller in (asked, silent))
            assert plan == same
            short += cycle > 0 and plan.max_draft > expected
            for controller in (asked, silent):
                controller.begin([plan.cycle_id], now=now)
            expected = asked.expected_draft([name], now=now)
            accepted = min(plan.max_draft, 2)
            for controller in (asked, silent):
                controller.observe([outcome(plan, plan.max_draft, accepted)], now=now + 0.008)
        for controller in (asked, silent):
            controller.finish(name, StopCause.STOP, now=now)
    assert asked.snapshot() == silent.snapshot()
    assert short <= 8  # of 84: where an observation has just raised τ


def test_asking_for_a_draft_length_changes_no_plan_where_requests_share_passes() -> None:
    """Three requests at a time, short and long prompts, half of the drafts right in one phase and most in the
    next; after a prompt's pass there is no decision yet to go by.
    """
    asked, silent = (Controller(ControllerConfig(pass_budget=4.0, slo_p95_ms=1e9)) for _ in range(2))
    rng = random.Random(1)
    live: dict[str, int] = {}  # and the tokens that it still wants
    for step in range(200):
        now = 0.02 * step
        while len(live) < 3:
            name = f"{step}-{len(live)}"
            live[name] = 24
            info = RequestInfo(name, rng.choice((30, 900)), 24, prefill_drafts=False)
            for controller in (asked, silent):
                controller.admit(info, now=now)
        answer, same = (controller.plan(list(live), now=now) for controller in (asked, silent))
        assert answer == same
        plans = answer.cycles
        good = 0.9 if step // 100 else 0.5
        done = []
        over = {stop.request_id: stop.cause for stop in answer.stops}
        for plan in plans:
            right = sum(rng.random() < good for _ in range(plan.max_draft))
            left = live[plan.request_id]
            done.append(cut(outcome(plan, plan.max_draft, right, batch_size=3), left))
            live[plan.request_id] -= done[-1].emitted
            if done[-1].ended is not None:
                over[plan.request_id] = done[-1].ended
        for controller in (asked, silent):
            controller.begin([plan.cycle_id for plan in plans], now=now)
            if controller is asked:
                controller.expected_draft([plan.request_id for plan in plans], now=now)
            controller.observe(done, now=now)
            for name, cause in over.items():
                controller.finish(name, cause, now=now)
        for name in over:
            del live[name]
    assert asked.snapshot() == silent.snapshot()


def test_nothing_is_drafted_for_a_request_without_a_further_pass() -> None:
    controller = Controller(ControllerConfig(pass_budget=1.0))
    controller.admit(RequestInfo("a", 40, 24, prefill_drafts=False), now=0.0)
    plan = controller.plan(["a"], now=0.0).cycles[0]
    controller.begin([plan.cycle_id], now=0.0)
    assert controller.expected_draft(["a"], now=0.0) == 0


# --- engines that share passes, and budgets without end -------------------------------------------


def calibrated(**config: object) -> Controller:
    """A controller that has learned that passes of up to 32 tokens take 8 ms."""
    controller = Controller(ControllerConfig(**config))  # type: ignore[arg-type]
    for _ in range(40):
        for width in (1, 4, 16, 32, 64):
            controller.cost.observe_verify(width, 0, 8.0)
    return controller


def calibrated_but_for(tokens: int, verify_ms: float) -> Controller:
    """The same, which has also seen passes of so many tokens take so long."""
    controller = calibrated()
    for _ in range(4):
        controller.cost.observe_verify(tokens, 0, verify_ms)
    return controller


def test_without_a_budget_work_in_flight_ends_with_the_tokens_that_are_wanted() -> None:
    """Unlimited own passes are not unlimited work: one pass a token at most."""
    controller = calibrated(pass_budget=math.inf, slo_p95_ms=10_000.0)
    for number in range(4):
        assert controller.admit(RequestInfo(f"r{number}", 20, 24), now=0.0).admitted


@pytest.mark.parametrize(("budget", "wanted"), [(50.0, 256), (200.0, 2000), (1e9, 100_000)])
def test_a_decision_looks_ahead_over_few_passes_however_many_there_are(budget: float, wanted: int) -> None:
    """Its work is passes · tokens · τ: with 200 passes and 2,000 tokens it would be seconds."""
    controller = calibrated(pass_budget=budget, slo_p95_ms=1e6)
    controller.admit(RequestInfo("a", 40, wanted), now=0.0)
    plan = one_cycle(controller, "a", 0.0)
    assert plan
    assert 1 <= plan.max_draft <= 16
    planner = controller.planner
    assert isinstance(planner, OptimalPlanner)
    keys = [key for context in planner.knowledge.contexts.values() for key in context.decisions]
    assert keys
    for ceiling, tokens, later, *_ in keys:
        assert (later + 1) * min(tokens, (later + 1) * (ceiling + 1)) < 6000


def test_an_engine_that_shares_passes_takes_up_what_one_at_a_time_would_refuse() -> None:
    """Sixteen first passes of 8 ms, SLO 80 ms: too much one after another, a single pass together."""
    alone, shared = calibrated(slo_p95_ms=80.0), calibrated(slo_p95_ms=80.0, max_batch=16)
    admitted = [
        sum(controller.admit(RequestInfo(f"r{n}", 20, 24), now=0.0).admitted for n in range(16))
        for controller in (alone, shared)
    ]
    assert admitted[0] < 10
    assert admitted[1] == 16


# --- probes ---------------------------------------------------------------------------------------


def fallen_back(draft_ms: float = 4.0, **config: object) -> Controller:
    """A controller whose draft has been useless for long; its contexts are in fallback."""
    controller = Controller(ControllerConfig(**{"slo_p95_ms": 1e9, **config}))  # type: ignore[arg-type]
    for number in range(40):
        controller.admit(RequestInfo(f"w{number}", 40, 24), now=0.0)
        while one_cycle(controller, f"w{number}", 0.0, 0, draft_ms=draft_ms):
            pass
    return controller


def fallback(controller: Controller) -> Fallback:
    planner = controller.planner
    assert isinstance(planner, OptimalPlanner)
    (context,) = planner.knowledge.contexts.values()
    assert context.fallback.active
    return context.fallback


def test_a_probe_is_not_given_to_a_request_that_may_get_no_pass() -> None:
    """A probe is due for two requests: the first has spent its own passes, so the second one probes."""
    # So dear that drafting does not pay where two share its steps either.
    controller = fallen_back(burst=0, draft_ms=12.0)
    for name in ("spent", "fresh"):
        controller.admit(RequestInfo(name, 40, 24), now=0.0)
    for _ in range(2):
        fallback(controller)._backoff.reset()  # four cycles to the next probe
        assert one_cycle(controller, "spent", 0.0, 0).max_draft == 0  # type: ignore[union-attr]
    fallback(controller).hurry()
    batch = controller.plan(["spent", "fresh"], now=0.0)
    assert [stop.request_id for stop in batch.stops] == ["spent"]
    assert batch.cycles[0].reason.binding is Binding.PROBE
    assert batch.cycles[0].max_draft > 0


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_ends_before_its_probe_hands_it_on(begun: bool) -> None:
    controller = fallen_back()
    for name in ("leaves", "stays"):
        controller.admit(RequestInfo(name, 40, 24), now=0.0)
    fallback(controller).hurry()
    plan = controller.plan(["leaves"], now=0.0).cycles[0]
    assert plan.reason.binding is Binding.PROBE
    if begun:
        controller.begin([plan.cycle_id], now=0.0)
    controller.finish("leaves", StopCause.CANCELLED, now=0.0)
    assert controller.plan(["stays"], now=0.0).cycles[0].reason.binding is Binding.PROBE


def test_a_probe_that_was_given_up_is_made_in_the_next_cycle() -> None:
    controller = fallen_back()
    for number in range(70):
        controller.admit(RequestInfo(f"a{number}", 40, 24), now=0.0)
        plan = controller.plan([f"a{number}"], now=0.0).cycles[0]
        if plan.reason.binding is Binding.PROBE:
            break
        controller.begin([plan.cycle_id], now=0.0)
        controller.observe([outcome(plan, 0, 0)], now=0.0)
    assert plan.reason.binding is Binding.PROBE
    for _ in range(3):
        controller.abort([plan.cycle_id], now=0.0)
        plan = controller.plan([plan.request_id], now=0.0).cycles[0]
        assert plan.reason.binding is Binding.PROBE


def test_how_a_block_was_asked_for_does_not_outlive_its_plan() -> None:
    """An open block that is given up; the next one is not open and must not be weighed as one."""
    controller = calibrated(pass_budget=1e9, open_block_every=16)
    controller.admit(RequestInfo("a", 10, 5000, slo_ms=1e7), now=0.0)
    planner = controller.planner
    assert isinstance(planner, OptimalPlanner)
    for _ in range(100):
        plan = controller.plan(["a"], now=0.0).cycles[0]
        asked = planner._asked.get("a")
        if asked and asked.closed_rule:
            break
        controller.begin([plan.cycle_id], now=0.0)
        controller.observe([outcome(plan, plan.max_draft, plan.max_draft)], now=0.0)
    assert planner._asked["a"].closed_rule
    controller.abort([plan.cycle_id], now=0.0)
    controller.plan(["a"], now=0.0)
    assert "a" not in planner._asked


def test_shadow_mode_does_not_judge_forecasts_by_blocks_that_were_not_drafted() -> None:
    """What a static length brings says nothing of what the policy's own block would have."""
    controller = Controller(ControllerConfig(mode=Mode.SHADOW, max_nodes=32, static_draft=1))
    for serial in range(60):
        controller.admit(RequestInfo(str(serial), 10, 24), now=float(serial))
        while one_cycle(controller, str(serial), float(serial)):
            pass
    planner = controller.planner
    assert isinstance(planner, OptimalPlanner)
    for context in planner.knowledge.contexts.values():
        for branching in (False, True):
            assert context.yields.share(branching=branching) == 1.0


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"accepted": -1}, r"outcomes\[0\]\.accepted: -1 is not in 0…4 \(proposed\)"),
        ({"emitted": 99}, r"outcomes\[0\]\.emitted: 99 is not in 0…3 .*; count the tokens"),
        ({"emitted": -1}, r"outcomes\[0\]\.emitted: -1 is not in 0…3"),
        ({"confidences": (0.5,) * 3}, r"outcomes\[0\]\.confidences: 3 are fewer than 4 \(proposed\)"),
        ({"side_accepted": 1}, r"outcomes\[0\]\.side_accepted: 1 is not in 0…0 \(side_proposed\)"),
    ],
)
def test_impossible_counts_are_refused(counts: dict[str, Any], message: str) -> None:
    controller = Controller()
    controller.admit(RequestInfo("a", 20, 8), now=0.0)
    (plan,) = controller.plan(["a"], now=0.0).cycles
    controller.begin([plan.cycle_id], now=0.0)
    outcome = CycleOutcome(plan.cycle_id, drafted=4, proposed=4, accepted=2, emitted=3)
    with pytest.raises(ValueError, match=message):
        controller.observe([replace(outcome, **counts)], now=0.1)


def test_more_than_a_request_still_wants_is_refused() -> None:
    controller = Controller()
    controller.admit(RequestInfo("a", 20, 8), now=0.0)
    for emitted in (5, 3):
        (plan,) = controller.plan(["a"], now=0.0).cycles
        controller.begin([plan.cycle_id], now=0.0)
        outcome = CycleOutcome(plan.cycle_id, drafted=8, proposed=8, accepted=8, emitted=9)
        if emitted == 3:
            outcome = replace(outcome, emitted=4)
        with pytest.raises(
            ValueError, match=r"outcomes\[0\]\.emitted: \d is not in 0…(8|3) .*; end the output"
        ):
            controller.observe([outcome], now=0.1)
        controller.observe([replace(outcome, emitted=emitted)], now=0.1)
    assert controller.finish("a", StopCause.MAX_TOKENS, now=0.2).emitted_tokens == 8
