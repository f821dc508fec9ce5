"""One engine, many requests: the loop that drives a controller and an executor, live or in replay.

Open loop: requests arrive when they arrive, are admitted between passes, and are served first come,
first served. With a virtual clock time is what the outcomes say it took; with a wall clock it is what it
took. The same code drives both, so that a live run and its replay differ in the executor alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from specpilot.control import CycleOutcome, CyclePlan, RequestInfo, StopCause
from specpilot.simulation.observed import ObservedController
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.results import RequestRecord


class Executor(Protocol):
    """Runs cycles: on models, or by looking them up."""

    def open(self, request_id: str) -> int:
        """Take up a request; returns how many prompt tokens need no prefill."""
        ...

    def run(self, plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
        """Run one cycle for each plan."""
        ...

    def close(self, request_id: str, cause: StopCause) -> None:
        """Let go of a request."""
        ...


class Clock(Protocol):
    """Seconds since the run began."""

    def now(self) -> float:
        """The time."""
        ...

    def wait_until(self, at: float) -> None:
        """Let time pass until ``at`` (at once if it is over)."""
        ...

    def spent(self, outcome: CycleOutcome) -> None:
        """A cycle has run; a virtual clock moves on by what it took."""
        ...


class VirtualClock:
    """Time that passes only where something takes time."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """The virtual time, in seconds."""
        return self._now

    def wait_until(self, at: float) -> None:
        """Jump to ``at``."""
        self._now = max(self._now, at)

    def spent(self, outcome: CycleOutcome) -> None:
        """Add the cycle's times."""
        busy_ms = outcome.draft_prefill_ms + outcome.draft_ms + outcome.verify_ms + outcome.host_ms
        self._now += busy_ms / 1000.0


class WallClock:
    """Real time, which can be paused: two policies that take turns each have a clock of their own."""

    def __init__(self, source: Callable[[], float] = time.perf_counter) -> None:
        self._source = source
        self._offset = -source()
        self._paused_at: float | None = None

    def now(self) -> float:
        """Seconds run, pauses left out."""
        return self._source() + self._offset if self._paused_at is None else self._paused_at

    def pause(self) -> None:
        """Stop the clock."""
        self._paused_at = self.now()

    def resume(self) -> None:
        """Let it run on from where it stopped."""
        if self._paused_at is not None:
            self._offset = self._paused_at - self._source()
            self._paused_at = None

    def wait_until(self, at: float) -> None:
        """Sleep until ``at``."""
        left = at - self.now()
        if left > 0.0:
            time.sleep(left)

    def spent(self, outcome: CycleOutcome) -> None:
        """Real time has passed by itself."""


def serve(
    controller: ObservedController,
    executor: Executor,
    requests: Sequence[ReplayRequest],
    clock: Clock,
    *,
    closed_loop: bool = False,
    finished: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Run requests on one engine, first come, first served, until all have ended.

    Args:
        controller: the policy under test.
        executor: the engine or its stand-in.
        requests: in order of arrival; only ids, lengths and times are looked at here.
        clock: real or virtual time.
        closed_loop: each request arrives when the one before has ended: one client that never waits.
        finished: called with the id of each request that has ended or was refused (for progress).

    Returns:
        Request id → arrival, in seconds on the clock.

    A request that arrives during a pass is admitted when the pass has ended, as on a real engine.
    """
    coming = deque(requests)
    active: deque[str] = deque()
    arrivals: dict[str, float] = {}
    while coming or active:
        if not active and not closed_loop:
            clock.wait_until(coming[0].arrival_s)
        now = clock.now()
        while coming and (not active if closed_loop else coming[0].arrival_s <= now):
            request = coming.popleft()
            arrivals[request.request_id] = now if closed_loop else request.arrival_s
            info = RequestInfo(
                request_id=request.request_id,
                prompt_tokens=request.trace.prompt_tokens,
                max_tokens=request.length,
                arrival_s=arrivals[request.request_id],
                cached_tokens=executor.open(request.request_id),
            )
            if controller.admit(info, now=now).admitted:
                active.append(request.request_id)
            else:
                executor.close(request.request_id, StopCause.POLICY)
                if finished:
                    finished(request.request_id)
        if not active:
            continue
        request_id = active[0]
        batch = controller.plan([request_id], now=now)
        if batch.cycles:
            plan = batch.cycles[0]
            controller.begin([plan.cycle_id], now=now)
            outcome = executor.run([plan])[0]
            clock.spent(outcome)
            now = clock.now()
            controller.observe([outcome], now=now)
            cause = outcome.ended
        else:
            cause = batch.stops[0].cause
        if cause is not None:
            active.popleft()
            executor.close(request_id, cause)
            controller.finish(request_id, cause, now=now)
            if finished:
                finished(request_id)
    return arrivals


def request_record(request: ReplayRequest, arrival_s: float, controller: ObservedController) -> RequestRecord:
    """One arrival's record; refused requests have no cause and end when they arrive."""
    request_id = request.request_id
    summary = controller.summaries.get(request_id)
    slo_ms = controller.config.slo_p95_ms
    trace = request.trace
    if summary is None:
        return RequestRecord(request_id, arrival_s, arrival_s, slo_ms, None, trace.prompt_tokens)
    return RequestRecord(
        request_id=request_id,
        arrival_s=arrival_s,
        end_s=arrival_s + summary.e2e_ms / 1000.0,
        slo_ms=slo_ms,
        cause=summary.cause,
        prompt_tokens=trace.prompt_tokens,
        emitted_tokens=summary.emitted_tokens,
        loop_tokens=trace.loop_tokens(summary.emitted_tokens),
        near_ties=trace.near_ties(summary.emitted_tokens),
        target_passes=summary.target_passes,
        label=trace.label or "",
    )
