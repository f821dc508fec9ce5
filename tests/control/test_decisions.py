"""Solving a decision, and how often one is solved anew."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpilot.control import Controller, ControllerConfig, CycleOutcome, RequestInfo, StopCause
from specpilot.control.contexts import coarse
from specpilot.control.horizon import future_values
from specpilot.control.planner import OptimalPlanner
from specpilot.control.types import Binding
from specpilot.simulation.policies import replay_policy
from specpilot.simulation.scenarios import scenario

hazards = st.lists(st.floats(0.0, 1.0), min_size=0, max_size=6)


def test_coarse_counts_by_hand() -> None:
    """Four steps between powers of two: 8, 10, 12, 14, 16, 20, 24, 28, 32."""
    assert [coarse(count) for count in range(9)] == list(range(9))
    assert [coarse(count) for count in (9, 10, 11, 15, 16, 19, 20, 31, 32, 39)] == [
        8, 10, 10, 14, 16, 16, 20, 28, 32, 32,
    ]  # fmt: skip
    assert [-coarse(-count) for count in (8, 9, 12, 15, 17, 33)] == [8, 10, 12, 16, 20, 40]  # rounded up


@pytest.mark.parametrize("budget", [4.0, math.inf])
@pytest.mark.parametrize("wanted", range(9, 18))
def test_a_draft_that_is_always_right_ends_an_answer_in_one_pass(budget: float, wanted: int) -> None:
    """Counted coarsely, a block is not to fall a token short of the end: that token would cost a pass. Nor is
    the deadline, an hour away, to be named as what kept it short.
    """
    controller = Controller(ControllerConfig(pass_budget=budget, slo_p95_ms=3_600_000.0))
    for number in range(50):
        name, now = f"r{number}", 0.1 * number
        controller.admit(RequestInfo(name, 40, wanted), now=now)
        (plan,) = controller.plan([name], now=now).cycles
        controller.begin([plan.cycle_id], now=now)
        tau = plan.max_draft
        done = CycleOutcome(
            plan.cycle_id, tau, tau, tau, tau + 1, draft_ms=0.3 * tau, verify_ms=7.0, verified_tokens=tau + 1
        )
        controller.observe([done], now=now + 0.01)
        controller.finish(name, StopCause.MAX_TOKENS, now=now + 0.01)
    assert (tau, plan.reason.binding) == (wanted - 1, Binding.LENGTH)


@given(hazards=hazards, size=st.integers(1, 9), passes=st.integers(0, 10), cost=st.floats(0.0, 0.5))
def test_future_values_are_those_of_the_recursion(
    hazards: list[float], size: int, passes: int, cost: float
) -> None:
    """By its definition: the best τ's Σ_a P(a accepted) · [a + 1 tokens + V_{k−1}(n − a − 1)] − cost, each
    token counting only while the suggestion has not ended.
    """
    survive = [math.prod(hazards[:count]) for count in range(len(hazards) + 1)]
    goes_on = [0.9**count for count in range(size)]
    costs = [cost, *[0.1 * cost] * len(hazards)]

    @cache
    def value(wanted: int, left: int) -> float:
        if not wanted or not left:
            return 0.0
        best = 0.0
        for tau in range(min(len(hazards), wanted - 1) + 1):
            total = -sum(costs[: tau + 1])
            for accepted in range(tau + 1):
                chance = survive[accepted] - (survive[accepted + 1] if accepted < tau else 0.0)
                out = accepted + 1
                going_on = 0.9**out * value(wanted - out, left - 1)
                total += chance * (sum(goes_on[:out]) + going_on)
            best = max(best, total)
        return best

    found = future_values(survive, goes_on, costs, passes)
    assert found == pytest.approx([value(wanted, passes) for wanted in range(size)], abs=1e-9)


@pytest.mark.parametrize(
    ("budget", "slo_ms", "count", "share"),
    [(2.0, 250.0, 400, 0.5), (math.inf, 3_600_000.0, 400, 0.25), (math.inf, 3_600_000.0, 24, 0.5)],
)
def test_requests_share_decisions(budget: float, slo_ms: float, count: int, share: float) -> None:
    """Most cycles take up a decision made before: also without a budget, where a request's cycles differ in
    what is still wanted (seven in ten were solved anew there once), and while a context is new.
    """
    one = scenario("steady")
    requests = one.requests(count, seed=1)
    solved = 0
    decide = OptimalPlanner._decide

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal solved
        solved += 1
        return decide(*args, **kwargs)  # type: ignore[arg-type]

    config = replace(one.config, pass_budget=budget, slo_p95_ms=slo_ms)
    with patch.object(OptimalPlanner, "_decide", counted):
        done = replay_policy("specpilot", requests, one.costs, config, closed_loop=True)
    assert solved < share * sum(record.target_passes for record in done.records)
