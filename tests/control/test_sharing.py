"""Who shares a pass: arithmetic by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpilot.control import Controller, ControllerConfig
from specpilot.control.cost import CostModel, CostProfile
from specpilot.control.curves import KNOTS
from specpilot.control.sharing import Forecast, Work, joint_draft, share_pass
from specpilot.control.types import CycleOutcome, RequestInfo, StopCause
from specpilot.decoding.loop import duration_ms

FAR = 10_000.0


def engine(fixed: float, token: float) -> CostModel:
    """A pass takes ``fixed`` + ``token`` · width ms; a draft step 1 ms, its prefill next to nothing."""
    curve = tuple(fixed + token * width for width in KNOTS)
    return CostModel(CostProfile(1.0, curve, tuple(1e-6 * width for width in KNOTS)))


def block(left_ms: float = FAR) -> Work:
    """One token to feed and four to draft: five wide."""
    return Work(1, 1, 100, left_ms)


def prompt(tokens: int) -> Work:
    return Work(tokens, tokens, 0, FAR)


def test_blocks_share_while_weights_bound_the_pass() -> None:
    # Alone 4 + 10 + 0.5 = 14.5 ms; each one more makes the pass 0.5 ms longer.
    assert share_pass(engine(10.0, 0.1), [block()] * 6, 4) == [0, 1, 2, 3]


def test_blocks_do_not_share_where_a_pass_costs_by_the_token() -> None:
    """Alone 4 + 50 ms; together 4 + 100: the first loses 50, the second gains 4."""
    assert share_pass(engine(0.001, 10.0), [block()] * 2, 4) == [0]


def test_a_cold_prompt_does_not_hold_up_a_block() -> None:
    # The prompt would make the pass 20.4 ms longer and gain 14; the block behind it joins.
    assert share_pass(engine(10.0, 0.1), [block(), prompt(200), block()], 4) == [0, 2]


def test_a_block_joins_a_prompt() -> None:
    assert share_pass(engine(10.0, 0.1), [prompt(200), block()], 4) == [0, 1]


def test_nobody_joins_who_would_make_another_late() -> None:
    # 14.5 ms alone, 15 together, both times 1.15: 16.675 and 17.25.
    assert share_pass(engine(10.0, 0.1), [block(17.0), block()], 4) == [0]
    assert share_pass(engine(10.0, 0.1), [block(17.5), block()], 4) == [0, 1]
    # One that is late anyway holds nobody back.
    assert share_pass(engine(10.0, 0.1), [block(1.0), block()], 4) == [0, 1]


@given(
    st.lists(
        st.builds(Work, st.integers(1, 400), st.integers(1, 400), st.integers(0, 400), st.floats(-50, 300)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 5),
    st.floats(0.01, 20.0),
    st.floats(0.0, 2.0),
)
def test_the_most_urgent_runs_and_the_limit_holds(
    works: list[Work], limit: int, fixed: float, token: float
) -> None:
    chosen = share_pass(engine(fixed, token), works, limit)
    assert chosen[0] == 0
    assert len(chosen) <= limit
    assert chosen == sorted(set(chosen))


def test_the_controller_advises_and_changes_nothing() -> None:
    controller = Controller()
    for name, tokens in (("a", 5), ("b", 5), ("c", 400)):
        assert controller.admit(RequestInfo(name, tokens, 8), now=0.0).admitted
    before = controller.snapshot()
    advised = controller.schedule(["a", "b", "c"], 3, now=0.0)
    assert advised[0] == "a"
    assert "c" not in advised
    assert controller.snapshot() == before
    assert len(controller.plan(["a", "b", "c"], now=0.0).cycles) == 3
    with pytest.raises(ValueError, match="not in flight"):
        controller.schedule(["x"], 1, now=0.0)


def test_a_request_bears_its_part_of_a_shared_pass() -> None:
    """10 + 0.5 · width ms. Alone: 10.5, 11, 11.5. Four that bring a token each: 12 ms of which one bears 3;
    with two each the pass takes 14 ms, which is 0.5 more for everyone.
    """
    cost = engine(10.0, 0.5)
    assert cost.verify_run_ms(1, 2) == pytest.approx([10.5, 11.0, 11.5])
    assert cost.verify_run_ms(1, 2, beside=3, sharing=4) == pytest.approx([3.0, 3.5, 4.0])
    # Beside a prompt of 60 tokens: 40.5 ms, of which one token's part is 1 ÷ 61.
    assert cost.verify_run_ms(1, 1, beside=60, sharing=2) == pytest.approx([40.5 / 61, 40.5 / 61 + 0.5])


def forecast(wanted: int, *gains: float, needed: int = 0) -> Forecast:
    """At a price of 0.4 tokens per ms."""
    return Forecast(wanted, 0.4, needed, gains)


def test_a_length_that_one_of_four_wants_is_drafted_if_it_pays_for_all() -> None:
    """A step takes 1 ms, once for all four, which is worth 0.4 tokens. Position 1 earns 4 · 0.3, position 2
    earns 0.3 for one: 0.1 lost. Positions 2 and 3 of one that is surer earn 0.5 and 0.45.
    """
    cost = engine(10.0, 0.1)
    short = [forecast(1, 0.3)] * 3
    assert joint_draft(cost, [*short, forecast(2, 0.3, 0.3)]) == 1
    assert joint_draft(cost, [*short, forecast(3, 0.6, 0.5, 0.45)]) == 3
    # A position that does not pay by itself is drafted for the next one's sake.
    assert joint_draft(cost, [*short, forecast(3, 0.6, 0.3, 0.6)]) == 3
    # Those that want nothing wait too: three of them and one for whom the first position earns 0.35.
    assert joint_draft(cost, [*[forecast(0)] * 3, forecast(1, 0.35)]) == 0
    assert joint_draft(cost, [*[forecast(0)] * 3, forecast(1, 0.45)]) == 1


def test_one_request_gets_what_it_wants_and_a_probe_what_it_needs() -> None:
    cost = engine(10.0, 0.1)
    assert joint_draft(cost, [forecast(3, 0.0, 0.0, 0.0)]) == 3
    assert joint_draft(cost, [forecast(0), forecast(4, needed=4), forecast(1, 0.5)]) == 4
    explorer = Forecast(3, 0.4, gains=(0.6, 0.1, 0.0), explores=True)
    assert joint_draft(cost, [forecast(1, 0.3), explorer]) == 2


def test_a_shared_pass_is_learnt_once_and_its_time_counts_once() -> None:
    """Three requests in one pass of 30 ms, 2 tokens each, with 3 ms of drafting and host time around it:
    θ* is 6 tokens in 33 ms, and of the pass's cost one observation is made.
    """
    controller = Controller()
    for name in "abc":
        controller.admit(RequestInfo(name, 10, 24), now=0.0)
    plans = controller.plan(list("abc"), now=0.0).cycles
    controller.begin([plan.cycle_id for plan in plans], now=0.0)
    outcomes = [
        CycleOutcome(
            plan.cycle_id,
            drafted=1,
            proposed=1,
            accepted=1,
            emitted=2,
            draft_ms=1.8,
            host_ms=1.2,
            verify_ms=30.0,
            verified_tokens=11,
            batch_size=3,
            batch_tokens=33,
        )
        for plan in plans
    ]
    controller.observe(outcomes, now=0.033)
    assert controller.time_price.busy_rate == pytest.approx(6.0 / 33.0, rel=1e-9)
    once = CostModel()
    once.observe_verify(33, 0, 30.0)
    assert controller.cost.verify_ms(33) == once.verify_ms(33)


def test_one_slow_pass_of_many_requests_is_one_accident() -> None:
    """Eight requests share each pass; in one of them everything takes fifty times as long. That is one odd
    block and one odd pass, not eight in a row, so what a draft step is believed to cost hardly moves.
    """
    controller = Controller()
    cost = controller.cost
    for turn in range(12):
        names = [f"{turn}-{place}" for place in range(8)]
        for name in names:
            assert controller.admit(RequestInfo(name, 10, 24), now=float(turn)).admitted
        plans = controller.plan(names, now=float(turn)).cycles
        controller.begin([plan.cycle_id for plan in plans], now=float(turn))
        before = (cost.draft_start_ms + 4 * cost.draft_step_ms, cost.host_ms)
        slow = 50.0 if turn == 11 else 1.0
        controller.observe(
            [
                CycleOutcome(
                    plan.cycle_id,
                    drafted=4,
                    proposed=4,
                    accepted=1,
                    emitted=2,
                    draft_ms=2.0 * slow,
                    host_ms=0.4 * slow,
                    verify_ms=8.0,
                    verified_tokens=14,
                    batch_size=8,
                    batch_tokens=112,
                )
                for plan in plans
            ],
            now=turn + 0.02,
        )
        for name in names:
            controller.finish(name, StopCause.CANCELLED, now=turn + 0.02)
    assert cost.draft_start_ms + 4 * cost.draft_step_ms < 1.1 * before[0]
    assert cost.host_ms < 2.0 * before[1]


def test_a_shared_pass_takes_as_long_as_its_longest_block() -> None:
    """One of four drafts, for 12 ms; the other three wait for it. θ* is 8 tokens in 12 + 20 ms of engine
    time, and an engine that does nothing else is always busy.
    """
    controller = Controller(ControllerConfig(pass_budget=math.inf, slo_p95_ms=3_600_000.0))
    for name in "abcd":
        controller.admit(RequestInfo(name, 10, 1000), now=0.0)
    for turn in range(1, 21):
        plans = controller.plan(list("abcd"), now=0.032 * turn).cycles
        controller.begin([plan.cycle_id for plan in plans], now=0.032 * turn)
        drafts = [4 if plan.request_id == "c" else 0 for plan in plans]
        outcomes = [
            CycleOutcome(
                plan.cycle_id,
                drafted=draft,
                proposed=draft,
                accepted=draft,
                emitted=draft + 1,
                draft_ms=3.0 * draft,
                verify_ms=20.0,
                verified_tokens=draft + 1,
                batch_size=4,
                batch_tokens=8,
            )
            for plan, draft in zip(plans, drafts, strict=True)
        ]
        assert duration_ms(outcomes) == pytest.approx(32.0)
        controller.observe(outcomes, now=0.032 * (turn + 1))
    # Not quite, for each cycle counts 1 % less than the one after it.
    assert controller.time_price.busy_rate == pytest.approx(8.0 / 32.0, rel=0.01)
    assert controller.time_price.utilisation == pytest.approx(1.0, rel=0.02)
