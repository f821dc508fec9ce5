"""The serving loop: open and closed loop, deadlines first, refusals, cancelling, failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any, cast
from unittest.mock import patch

import pytest

from specpilot.control import Controller, ControllerConfig
from specpilot.control.types import (
    Admission,
    BatchPlan,
    CycleOutcome,
    CyclePlan,
    RequestInfo,
    RequestSummary,
    StopCause,
)
from specpilot.decoding.clock import RealClock, VirtualClock
from specpilot.decoding.loop import ServeLoop, duration_ms
from specpilot.decoding.seams import LoopObserver
from specpilot.decoding.static import StaticController

CYCLE_MS = 10.0


class Engine:
    """Three tokens a cycle of 10 ms; misbehaves where told to."""

    def __init__(
        self, fail_open: set[str] | None = None, fail_run: Callable[[str], bool] = lambda name: False
    ) -> None:
        self.fail_open = fail_open or set()
        self.fail_run = fail_run
        self.cycles: dict[str, int] = {}
        self.order: list[list[str]] = []
        self.closed: list[tuple[str, StopCause]] = []

    def open(self, request_id: str) -> int:
        if request_id in self.fail_open:
            raise ValueError("prompt: too long")
        self.cycles[request_id] = 0
        return 5

    def close(self, request_id: str, cause: StopCause) -> None:
        if self.cycles.pop(request_id, None) is not None:
            self.closed.append((request_id, cause))

    def run(self, plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
        self.order.append([plan.request_id for plan in plans])
        outcomes = []
        for plan in plans:
            if self.fail_run(plan.request_id):
                raise RuntimeError("planted")
            self.cycles[plan.request_id] += 1
            ended = StopCause.EOS if self.cycles[plan.request_id] == 2 else None
            outcomes.append(
                CycleOutcome(
                    plan.cycle_id, 2, 2, 2, 3, verify_ms=CYCLE_MS, batch_size=len(plans), ended=ended
                )
            )
        return outcomes


class Log(LoopObserver):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.cached: list[int] = []
        self.spans: list[tuple[float, float]] = []

    def admitted(self, info: RequestInfo, admission: Admission, now: float) -> None:
        self.events.append(f"admitted {info.request_id}")
        self.cached.append(info.cached_tokens)

    def refused(self, info: RequestInfo, admission: Admission, now: float) -> None:
        self.events.append(f"refused {info.request_id}: {admission.reason}")

    def planned(self, plan: BatchPlan, now: float) -> None:
        self.events.append(f"planned {len(plan.cycles)}+{len(plan.stops)}")

    def cycle(
        self, info: RequestInfo, plan: CyclePlan, outcome: CycleOutcome, start_s: float, end_s: float
    ) -> None:
        self.spans.append((start_s, end_s))

    def finished(self, info: RequestInfo, summary: RequestSummary, now: float) -> None:
        self.events.append(f"finished {info.request_id} {summary.cause.value}")


def info(name: str, arrival_s: float = 0.0) -> RequestInfo:
    return RequestInfo(name, 8, 20, arrival_s=arrival_s)


def test_open_loop_counts_latency_from_the_scheduled_arrival() -> None:
    engine, log = Engine(), Log()
    loop = ServeLoop(StaticController(2), engine, VirtualClock(), observer=log)
    # b arrives in the middle of a's first cycle, c long after both.
    result = loop.run([info("c", 1.0), info("a", 0.0), info("b", 0.003)])
    latency = {summary.request_id: summary.e2e_ms for summary in result.summaries}
    assert latency == pytest.approx({"a": 20.0, "b": 37.0, "c": 20.0})
    assert [summary.request_id for summary in result.summaries] == ["a", "b", "c"]
    assert engine.closed == [("a", StopCause.EOS), ("b", StopCause.EOS), ("c", StopCause.EOS)]
    assert log.cached == [5, 5, 5]
    assert log.spans[0] == pytest.approx((0.0, 0.01))
    assert log.events[0] == "admitted a"
    assert not loop.step()


def test_batches_share_passes() -> None:
    engine = Engine()
    loop = ServeLoop(StaticController(2), engine, VirtualClock(), max_batch=2)
    result = loop.run([info(name) for name in "abc"])
    assert engine.order == [["a", "b"], ["a", "b"], ["c"], ["c"]]
    assert [summary.e2e_ms for summary in result.summaries] == pytest.approx([20.0, 20.0, 40.0])


class Slow(StaticController):
    """Planning takes 3 ms, learning 2."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(2)
        self.clock = clock
        self.host_ms: list[float] = []

    def plan(self, request_ids: Sequence[str], *, now: float) -> BatchPlan:
        self.clock.elapse(3.0)
        return super().plan(request_ids, now=now)

    def observe(self, outcomes: Sequence[CycleOutcome], *, now: float) -> None:
        self.host_ms += [outcome.host_ms for outcome in outcomes]
        self.clock.elapse(2.0)
        super().observe(outcomes, now=now)


def test_planning_a_cycle_and_learning_from_the_last_one_are_part_of_its_host_time() -> None:
    clock = VirtualClock()
    controller = Slow(clock)
    result = ServeLoop(controller, Engine(), clock).run([info("a"), info("b", 1.0)])
    assert controller.host_ms == pytest.approx([3.0, 5.0, 5.0, 5.0])
    assert [summary.e2e_ms for summary in result.summaries] == pytest.approx([30.0, 30.0])


def test_what_came_after_a_cycle_counts_once_though_the_next_one_fails() -> None:
    """Found on reading the change again: the cycle after the failed one was charged with it too."""
    clock = VirtualClock()
    controller = Slow(clock)
    engine = Engine(fail_run=lambda name: name == "b")
    ServeLoop(controller, engine, clock).run([info("a"), info("b", 1.0), info("c", 2.0)])
    assert controller.host_ms == pytest.approx([3.0, 5.0, 3.0, 5.0])


class Passing:
    """A controller behind a wrapper that passes on what it does not have itself."""

    def __init__(self, inner: Controller) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_wrapped_controller_says_whose_turn_it_is() -> None:
    """Python 3.12's isinstance does not see what a wrapper passes on, and a traced server would go by another
    order than one without a trace.
    """
    engine = Engine()
    inner = Controller(ControllerConfig(max_batch=4))
    asked: list[list[str]] = []
    schedule = inner.schedule

    def noted(request_ids: Sequence[str], limit: int, *, now: float) -> list[str]:
        asked.append(list(request_ids))
        return schedule(request_ids, limit, now=now)

    with patch.object(inner, "schedule", noted):
        loop = ServeLoop(cast(Controller, Passing(inner)), engine, VirtualClock(), max_batch=4)
        for name in "ab":
            loop.submit(info(name))
        loop.step()
    assert sorted(asked[0]) == ["a", "b"]


class Deadlines(StaticController):
    """Deadlines by name: z is the most urgent."""

    def admit(self, request: RequestInfo, *, now: float) -> Admission:
        super().admit(request, now=now)
        return Admission(True, -float(ord(request.request_id)))


def test_the_earliest_deadline_runs_first() -> None:
    engine = Engine()
    ServeLoop(Deadlines(2), engine, VirtualClock()).run([info(name) for name in "axz"])
    assert engine.order == [["z"], ["z"], ["x"], ["x"], ["a"], ["a"]]


def test_a_request_that_cannot_be_opened_is_refused_alone() -> None:
    log = Log()
    loop = ServeLoop(StaticController(2), Engine(fail_open={"b"}), VirtualClock(), observer=log)
    result = loop.run([info(name) for name in "abc"])
    assert [summary.request_id for summary in result.summaries] == ["a", "c"]
    assert [(refused.request_id, answer.admitted) for refused, answer in result.refusals] == [("b", False)]
    assert "refused b: request: prompt: too long" in log.events


def test_refusals_of_the_controller_close_the_request() -> None:
    engine = Engine()
    controller = Controller(ControllerConfig(pass_budget=2.0))
    loop = ServeLoop(controller, engine, VirtualClock())
    chunked = RequestInfo("a", 8, 20, arrival_s=0.0, prefill_passes=5)
    result = loop.run([chunked, info("b")])
    assert engine.closed == [("a", StopCause.POLICY), ("b", StopCause.EOS)]
    assert "budget" in result.refusals[0][1].reason


def test_an_engine_that_raises_ends_the_batch_with_error() -> None:
    engine = Engine(fail_run=lambda name: name == "b")
    loop = ServeLoop(StaticController(2), engine, VirtualClock(), max_batch=2)
    result = loop.run([info(name) for name in "abcd"])
    causes = {summary.request_id: summary.cause for summary in result.summaries}
    error, eos = StopCause.ERROR, StopCause.EOS
    assert causes == {"a": error, "b": error, "c": eos, "d": eos}
    assert {summary.target_passes for summary in result.summaries if summary.cause is error} == {1}


def test_cancelling() -> None:
    engine = Engine()
    loop = ServeLoop(StaticController(2), engine, VirtualClock())
    for name in "ab":
        loop.submit(info(name))
    loop.step()
    assert loop.cancel("a")
    assert not loop.cancel("a")
    assert loop.outstanding == 1
    while loop.step():
        pass
    assert engine.closed == [("a", StopCause.CANCELLED), ("b", StopCause.EOS)]


class Canceller(LoopObserver):
    """Cancels other requests from inside the loop's own callbacks."""

    def __init__(self) -> None:
        self.loop: ServeLoop | None = None

    def planned(self, plan: BatchPlan, now: float) -> None:
        if self.loop is not None and self.loop.outstanding == 3:
            self.loop.cancel("b")

    def cycle(
        self, info: RequestInfo, plan: CyclePlan, outcome: CycleOutcome, start_s: float, end_s: float
    ) -> None:
        if self.loop is not None:
            self.loop.cancel("c")


def test_cancelling_from_a_callback() -> None:
    engine, observer = Engine(), Canceller()
    controller = StaticController(2)
    observer.loop = ServeLoop(controller, engine, VirtualClock(), max_batch=3, observer=observer)
    result = observer.loop.run([info(name) for name in "abc"])
    causes = {summary.request_id: summary.cause for summary in result.summaries}
    assert causes == {"a": StopCause.EOS, "b": StopCause.CANCELLED, "c": StopCause.CANCELLED}


@pytest.mark.parametrize("outstanding", [1, 3])
def test_closed_loop_keeps_requests_outstanding(outstanding: int) -> None:
    engine = Engine()
    clock = VirtualClock()
    loop = ServeLoop(StaticController(2), engine, clock, max_batch=outstanding)
    result = loop.run_closed((info(str(index)) for index in range(6)), outstanding)
    assert len(result.summaries) == 6
    assert [summary.e2e_ms for summary in result.summaries] == pytest.approx([20.0] * 6)
    assert clock.now() == pytest.approx(6 * 0.02 / outstanding)
    assert max(len(batch) for batch in engine.order) == outstanding


def test_ids_are_used_once_at_a_time() -> None:
    loop = ServeLoop(StaticController(2), Engine(), VirtualClock())
    loop.submit(info("a"))
    with pytest.raises(ValueError, match="in flight"):
        loop.submit(info("a"))


def test_durations() -> None:
    def outcome(batch: int, draft_ms: float) -> CycleOutcome:
        return CycleOutcome(
            1,
            1,
            1,
            1,
            1,
            draft_ms=draft_ms,
            draft_prefill_ms=1.0,
            verify_ms=5.0,
            host_ms=0.5,
            batch_size=batch,
        )

    assert duration_ms([outcome(1, 1.0), outcome(1, 2.0)]) == pytest.approx(7.5 + 8.5)
    # Sharing a pass, they draft in step, but each has its own prefill.
    assert duration_ms([outcome(2, 1.0), outcome(2, 2.0)]) == pytest.approx(2.0 + 5.0 + 0.5 + 1.0 + 1.0)
    assert duration_ms([]) == 0.0


def test_clocks() -> None:
    clock = VirtualClock(1.0)
    clock.wait_until(0.5)
    clock.elapse(500.0)
    assert clock.now() == 1.5
    with pytest.raises(ValueError, match="duration_ms"):
        clock.elapse(-1.0)
    real = RealClock()
    real.elapse(1e9)
    real.wait_until(real.now() + 0.002)
    assert 0.002 <= real.now() < time.perf_counter()


def test_counts_are_checked() -> None:
    with pytest.raises(ValueError, match="max_batch"):
        ServeLoop(StaticController(2), Engine(), VirtualClock(), max_batch=0)
    loop = ServeLoop(StaticController(2), Engine(), VirtualClock())
    with pytest.raises(ValueError, match="outstanding"):
        loop.run_closed([], 0)


def test_offered_requests_are_opened_by_the_thread_that_drives() -> None:
    """An offer touches no executor; one that cannot be opened ends with an error, the others go on."""
    engine, log = Engine(fail_open={"b"}), Log()
    loop = ServeLoop(StaticController(2), engine, VirtualClock(), observer=log)
    for name in "abc":
        assert loop.offer(info(name)).admitted
    assert engine.cycles == {}
    with pytest.raises(ValueError, match="in flight"):
        loop.offer(info("a"))
    while loop.step():
        pass
    assert engine.closed == [("a", StopCause.EOS), ("c", StopCause.EOS)]
    assert sum(event.startswith("finished") for event in log.events) == 3


def test_a_cancellation_during_a_pass_waits_for_its_end() -> None:
    """Told by another thread while the pass runs: nothing is closed under the executor's hands."""
    engine = Engine()
    loop = ServeLoop(StaticController(2), engine, VirtualClock())
    seen: list[bool] = []

    def cancel_now(name: str) -> bool:
        thread = Thread(target=lambda: seen.append(loop.cancel(name)))
        thread.start()
        thread.join(10.0)
        seen.append(name in engine.cycles)
        return False

    engine.fail_run = cancel_now
    loop.offer(info("a"))
    assert loop.step()
    assert seen == [True, True]
    assert engine.closed == [("a", StopCause.CANCELLED)]
    assert not loop.step()


def test_abandoning_ends_all_with_an_error() -> None:
    engine = Engine()
    loop = ServeLoop(StaticController(2), engine, VirtualClock())
    loop.submit(info("a"))
    loop.offer(info("b"))
    loop.abandon()
    assert loop.outstanding == 0
    assert engine.closed == [("a", StopCause.ERROR)]


class Grumbler(Log):
    """Raises where it is told of something about the requests named."""

    def __init__(self, *, planned: bool = False, cycles: str = "", finished: str = "") -> None:
        super().__init__()
        self.at_plan = planned
        self.at_cycle = cycles
        self.at_end = finished

    def planned(self, plan: BatchPlan, now: float) -> None:
        super().planned(plan, now)
        if self.at_plan:
            raise RuntimeError("planted: plan")

    def cycle(
        self, info: RequestInfo, plan: CyclePlan, outcome: CycleOutcome, start_s: float, end_s: float
    ) -> None:
        super().cycle(info, plan, outcome, start_s, end_s)
        if info.request_id in self.at_cycle:
            raise RuntimeError(f"planted: cycle of {info.request_id}")

    def finished(self, info: RequestInfo, summary: RequestSummary, now: float) -> None:
        super().finished(info, summary, now)
        if info.request_id in self.at_end:
            raise RuntimeError(f"planted: end of {info.request_id}")


@pytest.mark.parametrize(
    "observer",
    [Grumbler(planned=True), Grumbler(cycles="a"), Grumbler(cycles="bc"), Grumbler(finished="ab")],
    ids=["plan", "first", "others", "end"],
)
def test_an_observer_that_raises_is_heard_and_costs_nobody_anything(observer: Grumbler) -> None:
    """What it raised leaves the step when its work is done; whoever goes on stepping has lost nothing."""
    engine, controller = Engine(), Controller()
    loop = ServeLoop(controller, engine, VirtualClock(), max_batch=3, observer=observer)
    for name in "abc":
        loop.submit(info(name))
    heard: list[str] = []
    while loop.outstanding:
        try:
            loop.step()
        except RuntimeError as error:
            heard.append(str(error))
    assert heard
    assert all("planted" in said for said in heard)
    assert engine.closed == [(name, StopCause.EOS) for name in "abc"]
    assert len(observer.spans) == 6
    assert observer.events[-3:] == [f"finished {name} eos" for name in "abc"]
    assert not controller._requests
    assert not controller._cycles


def test_an_observer_s_fault_does_not_hide_the_engine_s() -> None:
    """Nor is it raised by a later step, which it has nothing to do with."""
    engine = Engine()
    observer = Grumbler(planned=True)
    controller = StaticController(2)
    loop = ServeLoop(controller, engine, VirtualClock(), observer=observer)
    loop.submit(info("a"))

    def broken(outcomes: Sequence[CycleOutcome], *, now: float) -> None:
        raise ValueError("outcomes: impossible")

    controller.observe = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="impossible"):
        loop.step()
    observer.at_plan = False
    loop.abandon()
    assert engine.closed == [("a", StopCause.ERROR)]
    assert not loop.step()


@pytest.mark.parametrize("abandoned", [False, True])
def test_an_observer_that_raises_at_an_end_between_cycles(abandoned: bool) -> None:
    engine = Engine()
    loop = ServeLoop(StaticController(2), engine, VirtualClock(), observer=Grumbler(finished="ab"))
    for name in "ab":
        loop.submit(info(name))
    if abandoned:
        with pytest.raises(ExceptionGroup) as raised:
            loop.abandon()
        assert len(raised.value.exceptions) == 2
    else:
        for name in "ab":
            with pytest.raises(RuntimeError, match=f"end of {name}"):
                loop.cancel(name)
    assert [name for name, _ in engine.closed] == ["a", "b"]
    assert not loop.step()
