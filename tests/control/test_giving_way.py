"""``give_way``: under pressure a later pass is left to those who wait, and never the first one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpilot.control import Controller, ControllerConfig, CycleOutcome, RequestInfo, StopCause
from specpilot.control.types import Binding, CyclePlan
from specpilot.simulation.policies import GIVING_WAY, replay_policy
from specpilot.simulation.scenarios import scenario

PASS_MS = 20.0


def one_pass(controller: Controller, plan: CyclePlan, now: float) -> None:
    """All drafts are rejected: one token in 20 ms and the draft's time."""
    controller.begin([plan.cycle_id], now=now)
    tau = plan.max_draft
    cycle = CycleOutcome(
        plan.cycle_id, tau, tau, 0, 1, (0.6,) * tau, 0.5 * tau, verify_ms=PASS_MS, verified_tokens=tau + 1
    )
    controller.observe([cycle], now=now + PASS_MS / 1000.0)


def busy(*, give_way: bool) -> tuple[Controller, float]:
    """A controller that has served 40 requests without a pause, every one late."""
    controller = Controller(ControllerConfig(give_way=give_way, burst=0))
    now = 0.0
    for index in range(40):
        name = f"{index}"
        assert controller.admit(RequestInfo(name, 20, 24, slo_ms=10_000.0), now=now).admitted
        for _ in range(2):
            plan = controller.plan([name], now=now).cycles[0]
            one_pass(controller, plan, now)
            now += PASS_MS / 1000.0
        controller.time_price.arrival(in_time=False)
        controller.finish(name, StopCause.BUDGET, now=now)
    return controller, now


@pytest.mark.parametrize("give_way", [False, True])
def test_a_pass_worth_less_than_the_time_it_takes_is_left_to_those_who_wait(give_way: bool) -> None:
    """A pass brings one token, which is what its time earns: at four times the rate it is not worth it."""
    controller, now = busy(give_way=give_way)
    for name in ("first", "waits", "waits too"):
        assert controller.admit(RequestInfo(name, 20, 24, slo_ms=10_000.0), now=now).admitted
    answer = controller.plan(["first"], now=now)
    assert not answer.stops, "nothing to show yet: it does not give way"
    one_pass(controller, answer.cycles[0], now)
    controller.time_price.strain = 1.0
    answer = controller.plan(["first"], now=now + 9.0)  # the queue's work fills what is left of its time
    if not give_way:
        assert answer.cycles
        assert not answer.stops
        return
    (stop,) = answer.stops
    assert stop.cause is StopCause.POLICY
    assert stop.reason.binding is Binding.DEADLINE
    assert stop.reason.note == "gives way"
    assert controller.ledger.own_passes("first") == 1, "its pass is neither spent nor lost"
    controller.finish("first", stop.cause, now=now)
    # Nobody waits any more but the last one, who is alone and takes its passes.
    controller.finish("waits", StopCause.CANCELLED, now=now)
    for _ in range(2):
        answer = controller.plan(["waits too"], now=now)
        one_pass(controller, answer.cycles[0], now)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), load=st.floats(5.0, 60.0), budget=st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_who_gives_way_has_something_to_show_and_the_budget_holds(
    seed: int, load: float, budget: float
) -> None:
    one = scenario("steady")
    requests = one.arriving(one.requests(60, seed), load, seed)
    config = ControllerConfig(pass_budget=budget, slo_p95_ms=one.config.slo_p95_ms)
    run = replay_policy(GIVING_WAY, requests, one.costs, config)
    assert run.result.budget_violations == 0
    for record in run.records:
        if record.cause is StopCause.POLICY:
            assert record.emitted_tokens > 0
            assert record.target_passes >= 1


def test_more_arrivals_are_served_in_time() -> None:
    """Three passes each at 0.85 of the capacity, 300 arrivals: 95.7 % in time without, 96.7 % with."""
    one = scenario("B=3")
    requests = one.requests(300, 101)
    closed = replay_policy("specpilot", requests, one.costs, one.config, closed_loop=True)
    rate = 0.85 * len(requests) / max(record.end_s for record in closed.records)
    arriving = one.arriving(requests, rate, 101)
    before, after = (
        replay_policy(name, arriving, one.costs, one.config).result for name in ("specpilot", GIVING_WAY)
    )
    assert after.slo_attainment > before.slo_attainment
    assert after.goodput_tokens_per_s > before.goodput_tokens_per_s
    assert StopCause.POLICY.value in after.stop_causes
    assert StopCause.POLICY.value not in before.stop_causes
