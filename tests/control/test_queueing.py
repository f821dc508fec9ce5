"""Whose pass is next, by hand and as properties; what the controller makes of it."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpilot.control import Controller, ControllerConfig, CycleOutcome, RequestInfo
from specpilot.control.admission import Drafted, Measuring, backlog_ms, judge
from specpilot.control.latency import Lost
from specpilot.control.queueing import Waiter, next_up, spare_ms
from specpilot.control.requests import OpenRequest
from specpilot.control.types import Binding, StopCause

PASS_MS = 20.0


def shown(left_ms: float) -> Waiter:
    return Waiter(left_ms, PASS_MS, True)


def new(left_ms: float) -> Waiter:
    return Waiter(left_ms, PASS_MS, False)


def test_the_earliest_deadline_is_next_while_nobody_is_late_by_it() -> None:
    """Its pass and two first passes take 60 ms."""
    assert next_up([shown(30.0), new(60.0), new(60.0)]) == 0
    assert next_up([new(1.0), shown(30.0)]) == 0
    assert next_up([shown(30.0), shown(40.0)]) == 0


def test_one_with_something_to_show_lets_those_pass_who_would_be_late() -> None:
    """The second first pass would end 60 ms from now."""
    assert next_up([shown(30.0), new(60.0), new(59.0)]) == 1
    assert next_up([shown(30.0), shown(35.0), new(39.0)]) == 2
    # One that is late anyway goes first too: the sooner it is over, the fewer wait for it.
    assert next_up([shown(30.0), new(10.0)]) == 1


@given(
    st.lists(
        st.builds(Waiter, st.floats(-50.0, 500.0), st.floats(0.1, 100.0), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_only_one_with_something_to_show_gives_precedence_and_only_to_help(waiters: list[Waiter]) -> None:
    waiters.sort(key=lambda waiter: waiter.left_ms)
    chosen = next_up(waiters)
    firsts = [waiter for waiter in waiters if not waiter.shown]
    ends = accumulate((waiter.cycle_ms for waiter in firsts), initial=waiters[0].cycle_ms)
    late = any(end > waiter.left_ms for end, waiter in zip(list(ends)[1:], firsts, strict=True))
    assert (chosen > 0) == (waiters[0].shown and late)
    if chosen:
        assert chosen == next(place for place, waiter in enumerate(waiters) if not waiter.shown)


def crowd(firsts: int, left_ms: float, **config: object) -> Controller:
    """Passes of 20 ms for any width. "old" has had one, and ``left_ms`` to its deadline at time 1; the new
    ones' deadlines are 45 ms later than its.
    """
    controller = Controller(ControllerConfig(**config))  # type: ignore[arg-type]
    for _ in range(60):
        for width in (1, 2, 4, 8, 16, 32, 64):
            controller.cost.observe_verify(width, 0, PASS_MS)
    slo = 950.0 * 1000.0
    share = controller.deadlines.share
    info = RequestInfo("old", 20, 24, arrival_s=1.0 - (slo * share - left_ms) / 1000.0, slo_ms=slo)
    assert controller.admit(info, now=0.9).admitted
    (plan,) = controller.plan(["old"], now=0.9).cycles
    controller.begin([plan.cycle_id], now=0.9)
    controller.observe([CycleOutcome(plan.cycle_id, 0, 0, 0, 1, verify_ms=PASS_MS)], now=1.0)
    for number in range(firsts):
        arrival = 1.0 - (slo * share - left_ms - 45.0) / 1000.0
        info = RequestInfo(f"new{number}", 20, 24, arrival_s=arrival, slo_ms=slo)
        assert controller.admit(info, now=0.95).admitted
    return controller


def test_it_keeps_its_passes_and_takes_them_when_there_is_time_again() -> None:
    """100 ms left, 145 for the others: six first passes of 20 ms and its own fit no more, four do."""
    controller = crowd(6, 100.0)
    names = ["old", *(f"new{number}" for number in range(6))]
    assert controller.schedule(names, 1, now=1.0) == ["new0"]
    for number in range(2):
        controller.finish(f"new{number}", StopCause.CANCELLED, now=1.0)
    assert controller.schedule(["old", *names[3:]], 1, now=1.0) == ["old"]
    (plan,) = controller.plan(["old"], now=1.0).cycles
    assert not plan.from_pool


def test_one_that_cannot_wait_for_the_others_ends_in_time() -> None:
    """38 ms left: its own pass fits, but not behind another one."""
    controller = crowd(4, 38.0)
    names = ["old", *(f"new{number}" for number in range(4))]
    assert controller.schedule(names, 1, now=1.0) == ["old"]
    (stop,) = controller.plan(["old"], now=1.0).stops
    assert stop.cause is StopCause.DEADLINE
    assert stop.reason.binding is Binding.DEADLINE
    assert stop.reason.numbers["ahead_ms"] >= PASS_MS
    assert stop.reason.numbers["need_ms"] > stop.reason.numbers["left_ms"]
    # With nobody waiting it gets its pass.
    assert crowd(0, 38.0).plan(["old"], now=1.0).cycles


def test_a_pass_fits_only_with_the_host_s_time_beside_it() -> None:
    """A pass of 20 ms and 5 ms of the host's do not fit into 24 ms, and do into 26."""
    for left_ms, fits in ((24.0, False), (26.0, True)):
        controller = crowd(0, left_ms)
        for _ in range(200):
            controller.cost.observe_host(5.0)
        answer = controller.plan(["old"], now=1.0)
        assert bool(answer.cycles) is fits
        assert [stop.cause for stop in answer.stops] == [StopCause.DEADLINE] * (not fits)


def test_those_who_share_a_pass_keep_nobody_waiting() -> None:
    """A pass costs the same however many are in it."""
    controller = crowd(4, 38.0, max_batch=8)
    names = ["old", *(f"new{number}" for number in range(4))]
    chosen = controller.schedule(names, 8, now=1.0)
    assert "old" in chosen
    assert len(chosen) > 2
    assert len(controller.plan(chosen, now=1.0).cycles) == len(chosen)


def test_an_engine_that_queues_prompts_itself_has_nobody_give_precedence() -> None:
    """As under vLLM: requests that run and prompts that start are in one pass."""
    controller = crowd(0, 38.0)
    for number in range(4):
        info = RequestInfo(f"new{number}", 20, 24, slo_ms=120.0, prefill_drafts=False)
        assert controller.admit(info, now=1.0).admitted
    assert controller.plan(["old"], now=1.0).cycles


def test_an_arrival_waits_for_first_passes_only() -> None:
    """20 requests with something to show are no reason to refuse one that has 60 ms."""
    controller = crowd(0, 10_000.0)
    for number in range(20):
        name = f"shown{number}"
        assert controller.admit(RequestInfo(name, 20, 24, slo_ms=10_000.0), now=1.0).admitted
        (plan,) = controller.plan([name], now=1.0).cycles
        controller.begin([plan.cycle_id], now=1.0)
        controller.observe([CycleOutcome(plan.cycle_id, 0, 0, 0, 1, verify_ms=PASS_MS)], now=1.0)
    assert controller.admit(RequestInfo("a", 20, 24, slo_ms=60.0), now=1.0).admitted
    refused = [
        not controller.admit(RequestInfo(f"b{n}", 20, 24, slo_ms=60.0), now=1.0).admitted for n in range(4)
    ]
    assert any(refused)
    (running,) = controller.plan(["shown0"], now=1.0).cycles
    controller.begin([running.cycle_id], now=1.0)

    def backlog(now: float) -> float:
        return backlog_ms(controller.cost, controller._requests.values(), max_batch=1, now=now)

    # Half of the running pass is over, then more than all of it.
    assert backlog(1.0) > PASS_MS
    assert backlog(1.0) - backlog(1.0 + PASS_MS / 2000.0) == pytest.approx(PASS_MS / 2.0)
    rest_ms = controller._requests["shown0"].rest_ms(controller.cost, 1.0)
    assert backlog(1.0) - backlog(2.0) == pytest.approx(rest_ms)


def test_a_cycle_may_take_what_leaves_the_others_their_first_passes() -> None:
    """145 ms to the deadlines of three new ones, whose plain passes take 20 ms each: 85 ms are left."""
    controller = crowd(3, 100.0)
    cost, known = controller.cost, controller._requests
    plain_ms = (PASS_MS + cost.host_ms) * cost.verify_upper.ratio
    assert spare_ms(cost, known.values(), ["old"], 1, 1.0) == pytest.approx(145.0 - 3.0 * plain_ms, abs=0.1)
    assert spare_ms(cost, known.values(), ["new0"], 1, 1.0) == pytest.approx(145.0 - 2.0 * plain_ms, abs=0.1)
    # One with something to show keeps nobody from drafting.
    assert spare_ms(cost, known.values(), ["new0", "new1", "new2"], 1, 1.0) == math.inf


@pytest.mark.parametrize(("firsts", "drafts"), [(1, True), (6, True), (7, False)])
def test_nothing_is_drafted_that_would_make_a_first_pass_late(firsts: int, drafts: bool) -> None:
    """Steps of 10 ms. Seven first passes of 20 ms end 140 ms from now, 5 before they must, six of them 25."""
    controller = crowd(firsts, 100.0)
    for _ in range(60):
        controller.cost.observe_draft(4, 40.0, 0, 0.0)
    slack_ms = spare_ms(controller.cost, controller._requests.values(), ["new0"], 1, 1.0)
    (plan,) = controller.plan(["new0"], now=1.0).cycles
    assert (plan.max_draft > 0) is drafts
    if drafts:
        assert PASS_MS + 10.0 * plan.max_draft <= slack_ms + 1.0


def test_a_tree_has_no_more_nodes_than_leave_the_others_their_first_passes() -> None:
    """A pass takes 10 ms and half a one for each token: 52 with 64 nodes, too long for the others."""
    controller = crowd(6, 130.0, max_nodes=64)
    cost = controller.cost
    for _ in range(60):
        for width in (1, 2, 4, 8, 16, 32, 64, 128):
            cost.observe_verify(width, 0, 10.0 + 0.5 * width)
        cost.observe_draft(4, 0.4, 0, 0.0)
    slack_ms = spare_ms(cost, controller._requests.values(), ["new0"], 1, 1.0)
    (plan,) = controller.plan(["new0"], now=1.0).cycles
    assert plan.tree is not None
    assert plan.max_draft < plan.max_nodes < 64
    assert cost.verify_ms(20 + plan.max_nodes) <= slack_ms


@pytest.mark.parametrize(
    ("waited_ms", "slo_ms", "lost"),
    [(30.0, 60.0, Lost.DRAFTING), (30.0, 45.0, Lost.CROWD), (0.0, 15.0, Lost.ALONE)],
)
def test_what_a_refused_arrival_was_lost_to(waited_ms: float, slo_ms: float, lost: Lost) -> None:
    """A pass takes 20 ms, one is before it. Of the cycle that it waited for, 20 ms were drafting."""
    controller = crowd(1, 10_000.0)
    cost, now = controller.cost, 1.0
    info = RequestInfo("late", 20, 24)
    arrival = now - waited_ms / 1000.0
    late = OpenRequest(info, arrival, slo_ms, arrival + slo_ms / 1000.0, uncached=20, behind=20)
    others = [controller._requests["new0"]]
    reason, why, _ = judge(cost, controller.config, late, others, Measuring(), Drafted(now, 20.0), now)
    assert reason
    assert why is lost
    # Had the same cycle ended before it came, its drafting would have been no reason.
    earlier = Drafted(arrival - 1.0, 20.0)
    _, why, _ = judge(cost, controller.config, late, others, Measuring(), earlier, now)
    assert why is (Lost.ALONE if lost is Lost.ALONE else Lost.CROWD)


def test_admission_counts_what_has_not_begun_as_plain() -> None:
    """Two plain passes of 20 ms are in the way, though drafting would make them longer."""
    controller = crowd(2, 10_000.0)
    for _ in range(60):
        controller.cost.observe_draft(4, 40.0, 0, 0.0)
    backlog = backlog_ms(controller.cost, controller._requests.values(), max_batch=1, now=1.0)
    assert backlog == pytest.approx(2.0 * (PASS_MS + controller.cost.host_ms), abs=0.5)
