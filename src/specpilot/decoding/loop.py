"""The serving loop, shared by live runs, exact replay and the simulator.

It runs one cycle after the other and decides nothing else: the controller says whose is next (of one that
does not, the earliest deadline is) and plans it, an executor runs it, a clock tells the time. Every request
that was admitted ends with exactly one stop cause, whatever fails on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from threading import RLock

from specpilot.control.calls import ControllerLike
from specpilot.control.types import (
    Admission,
    CycleOutcome,
    CyclePlan,
    RequestInfo,
    RequestSummary,
    StopCause,
)
from specpilot.decoding.clock import Clock
from specpilot.decoding.seams import Executor, LoopObserver, Schedule


@dataclass(slots=True)
class RunResult:
    """What became of the requests of a run."""

    summaries: list[RequestSummary] = field(default_factory=list)
    refusals: list[tuple[RequestInfo, Admission]] = field(default_factory=list)


@dataclass(slots=True)
class _Active:
    info: RequestInfo
    deadline_s: float
    order: int
    opened: bool = True
    cancelled: bool = False


class ServeLoop:
    """Admits requests, runs their cycles in the controller's order, and ends them.

    One thread drives it (:meth:`step`). Any other may :meth:`offer` and :meth:`cancel` requests while a cycle
    runs: the controller is called under a lock, the executor outside it and from the driving thread only.

    Args:
        controller: plans and keeps the promises.
        executor: runs cycles.
        clock: the time; with a virtual one, cycles take what their outcomes say.
        max_batch: most requests in one target pass.
        observer: told of everything. What it raises holds nothing up: it leaves the call (:meth:`step`,
            :meth:`cancel`) when the work is done, the first of several; the requests go on as if it had not.

    Raises:
        ValueError: if ``max_batch`` is below 1.
    """

    def __init__(
        self,
        controller: ControllerLike,
        executor: Executor,
        clock: Clock,
        max_batch: int = 1,
        observer: LoopObserver | None = None,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch: {max_batch} is not ≥ 1; use 1 for one request at a time")
        self._controller = controller
        self._executor = executor
        self._clock = clock
        self._max_batch = max_batch
        self._observer = observer or LoopObserver()
        self._active: dict[str, _Active] = {}
        self._orders = count()
        self._result: RunResult | None = None  # only while run() or run_closed() collects
        self._stepping = False
        self._after_ms = 0.0  # what came after the last cycle took: the controller learns, observers are told
        self._raised: list[Exception] = []  # by the observer, and not passed on yet
        self.lock = RLock()
        """Held around every call of the controller; hold it to read the controller's state from elsewhere."""

    @property
    def outstanding(self) -> int:
        """Requests admitted and not ended."""
        return len(self._active)

    def submit(self, info: RequestInfo) -> Admission:
        """Offer a request; it is admitted or refused at once.

        One that the executor cannot open (too long, no memory) is refused with the reason, so that it
        disturbs nobody else.

        Raises:
            ValueError: for an id that is in flight.
        """
        request_id = info.request_id
        if request_id in self._active:
            raise ValueError(f"request_id: {request_id!r} is in flight; ids are used once at a time")
        now = self._clock.now()
        try:
            info = replace(info, cached_tokens=self._executor.open(request_id))
        except Exception as error:
            return self._refuse(info, Admission(False, math.inf, f"request: {error}"))
        try:
            admission = self._controller.admit(info, now=now)
        except Exception:
            self._executor.close(request_id, StopCause.ERROR)
            raise
        if not admission.admitted:
            return self._refuse(info, admission)
        self._active[request_id] = _Active(info, admission.deadline_s, next(self._orders))
        self._observer.admitted(info, admission, now)
        return admission

    def offer(self, info: RequestInfo) -> Admission:
        """Offer a request from another thread; the answer does not wait for the cycle that is running.

        ``info.cached_tokens`` is the caller's estimate. The executor opens an admitted request when the next
        cycle is put together; if it cannot, the request ends with ``error``.

        Raises:
            ValueError: for an id that is in flight.
        """
        with self.lock:
            if info.request_id in self._active:
                raise ValueError(f"request_id: {info.request_id!r} is in flight; ids are used once at a time")
            now = self._clock.now()
            admission = self._controller.admit(info, now=now)
            if admission.admitted:
                order = next(self._orders)
                self._active[info.request_id] = _Active(info, admission.deadline_s, order, opened=False)
                self._observer.admitted(info, admission, now)
            else:
                self._observer.refused(info, admission, now)
        return admission

    def cancel(self, request_id: str) -> bool:
        """The client is gone; False if the request is not in flight (any more).

        Between cycles it ends at once; while one is planned or running (an observer or another thread calls),
        at the next boundary: a pass that has started cannot be stopped.
        """
        with self.lock:
            active = self._active.get(request_id)
            if active is None or active.cancelled:
                return False
            active.cancelled = True
            if not self._stepping:
                self._finish(request_id, StopCause.CANCELLED)
                if self._raised:
                    raise self._raised.pop()
        return True

    def abandon(self) -> None:
        """End whatever is in flight with ``error``: the driver met a failure that it cannot place.

        Raises:
            ExceptionGroup: if some could not be ended in order; they are out of the loop all the same.
        """
        failures: list[Exception] = []
        with self.lock:
            for request_id in list(self._active):
                try:
                    self._finish(request_id, StopCause.ERROR)
                except Exception as error:
                    failures.append(error)
            failures += self._raised
            self._raised = []
        if failures:
            raise ExceptionGroup("requests could not be ended in order", failures)

    def step(self) -> bool:
        """Plan and run one batch; False if no request is in flight."""
        with self.lock:
            self._stepping = True
        try:
            busy = self._step()
        finally:
            with self.lock:
                self._stepping = False
                self._drop_cancelled()
                raised, self._raised = self._raised, []
        if raised:
            raise raised[0]
        return busy

    def _step(self) -> bool:
        began = self._clock.now()
        with self.lock:
            self._drop_cancelled()
            if not self._active:
                return False
            # Earliest deadline first, then first come first served.
            urgent = sorted(self._active.values(), key=lambda active: (active.deadline_s, active.order))
            chosen = self._next(urgent)
        ready = [active.info.request_id for active in chosen if self._opened(active)]
        with self.lock:
            planned_at = self._clock.now()
            plan = self._controller.plan(ready, now=planned_at)
            self._tell(self._observer.planned, plan, planned_at)
            for stop in plan.stops:
                if not self._active[stop.request_id].cancelled:
                    self._finish(stop.request_id, stop.cause)
            # Dropped with its cycle, before the pass begins.
            self._drop_cancelled()
            cycles = [cycle for cycle in plan.cycles if cycle.request_id in self._active]
        if cycles:
            self._run(cycles, began)
        return True

    def _next(self, urgent: list[_Active]) -> list[_Active]:
        """Who runs next: as the controller says, else simply the most urgent."""
        # Not isinstance: since Python 3.12 it does not see what a wrapper (a traced controller) passes on.
        schedule: Schedule | None = getattr(self._controller, "schedule", None)
        if len(urgent) == 1 or schedule is None:
            return urgent[: self._max_batch]
        names = [active.info.request_id for active in urgent]
        chosen = schedule(names, self._max_batch, now=self._clock.now())
        return [self._active[name] for name in chosen]

    def _opened(self, active: _Active) -> bool:
        """Open an offered request; False, and it has ended, if the executor cannot."""
        if active.opened:
            return True
        try:
            self._executor.open(active.info.request_id)
        except Exception:
            with self.lock:
                self._finish(active.info.request_id, StopCause.ERROR)
            return False
        active.opened = True
        return True

    def _drop_cancelled(self) -> None:
        for request_id in [name for name, active in self._active.items() if active.cancelled]:
            self._finish(request_id, StopCause.CANCELLED)

    def run(self, arrivals: Iterable[RequestInfo]) -> RunResult:
        """Open loop: each request is offered at its ``arrival_s`` (None: at once), then all are served out.

        Arrivals do not wait for answers; one that comes while a cycle runs is offered when the cycle is
        over, and its latency still counts from its scheduled arrival.
        """
        result = self._result = RunResult()
        pending = sorted(arrivals, key=_scheduled)
        place = 0
        while place < len(pending) or self._active:
            while place < len(pending) and _scheduled(pending[place]) <= self._clock.now():
                self.submit(pending[place])
                place += 1
            if not self.step() and place < len(pending):
                self._clock.wait_until(_scheduled(pending[place]))
        self._result = None
        return result

    def run_closed(self, requests: Iterable[RequestInfo], outstanding: int = 1) -> RunResult:
        """Closed loop: ``outstanding`` requests in flight at any time, the next one arrives when one ends.

        This measures capacity; latencies from it flatter, since nobody arrives while the engine is busy.

        Raises:
            ValueError: if ``outstanding`` is below 1.
        """
        if outstanding < 1:
            raise ValueError(f"outstanding: {outstanding} is not ≥ 1; use 1 for one request after another")
        result = self._result = RunResult()
        pending = iter(requests)
        exhausted = False
        while not exhausted or self._active:
            while not exhausted and len(self._active) < outstanding:
                info = next(pending, None)
                if info is None:
                    exhausted = True
                else:
                    self.submit(replace(info, arrival_s=self._clock.now()))
            self.step()
        self._result = None
        return result

    def _run(self, cycles: list[CyclePlan], began: float) -> None:
        cycle_ids = [cycle.cycle_id for cycle in cycles]
        with self.lock:
            infos = [self._active[cycle.request_id].info for cycle in cycles]
            start = self._clock.now()
            self._controller.begin(cycle_ids, now=start)
        # A pass costs what planning it and learning from the one before took, too.
        beside_ms = self._after_ms + (start - began) * 1000.0
        self._after_ms = 0.0
        try:
            outcomes = self._executor.run(cycles)
        except Exception:
            # An executor deals with what it expects; this was something else. The passes stay spent.
            with self.lock:
                self._controller.abort(cycle_ids, now=self._clock.now())
                for cycle in cycles:
                    self._finish(cycle.request_id, StopCause.ERROR)
            return
        with self.lock:
            self._clock.elapse(duration_ms(outcomes))
            end = self._clock.now()
            outcomes = [replace(outcome, host_ms=outcome.host_ms + beside_ms) for outcome in outcomes]
            self._controller.observe(outcomes, now=end)
            for info, cycle, outcome in zip(infos, cycles, outcomes, strict=True):
                self._tell(self._observer.cycle, info, cycle, outcome, start, end)
            for cycle, outcome in zip(cycles, outcomes, strict=True):
                # One whose last pass has completed has finished, even if its client has just left.
                if outcome.ended is not None:
                    self._finish(cycle.request_id, outcome.ended)
        self._after_ms = (self._clock.now() - end) * 1000.0

    def _finish(self, request_id: str, cause: StopCause) -> None:
        info = self._active.pop(request_id).info
        now = self._clock.now()
        try:
            summary = self._controller.finish(request_id, cause, now=now)
        finally:  # its caches are not held for ever, whatever else is broken
            self._executor.close(request_id, cause)
        if self._result is not None:
            self._result.summaries.append(summary)
        self._tell(self._observer.finished, info, summary, now)

    def _tell(self, told: Callable[..., None], *news: object) -> None:
        """Tell the observer in the middle of something that must be brought to its end."""
        try:
            told(*news)
        except Exception as error:
            self._raised.append(error)

    def _refuse(self, info: RequestInfo, admission: Admission) -> Admission:
        self._executor.close(info.request_id, StopCause.POLICY)
        if self._result is not None:
            self._result.refusals.append((info, admission))
        self._observer.refused(info, admission, self._clock.now())
        return admission


def duration_ms(outcomes: Sequence[CycleOutcome]) -> float:
    """What a batch of cycles took: those that shared a pass ran together, the others one by one."""
    shared, alone = 0.0, 0.0
    for outcome in outcomes:
        alone += outcome.draft_prefill_ms  # each one's own, in a shared pass too
        spent = outcome.draft_ms + outcome.verify_ms + outcome.host_ms
        if outcome.batch_size > 1:
            shared = max(shared, spent)
        else:
            alone += spent
    return shared + alone


def _scheduled(info: RequestInfo) -> float:
    return -math.inf if info.arrival_s is None else info.arrival_s
