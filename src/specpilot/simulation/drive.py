"""Driving a controller over a stream of requests: with the serving loop that live runs use.

The loop (:class:`specpilot.decoding.loop.ServeLoop`), the controller and the arrivals are the same in a
live run and in its replay; they differ in the executor and in the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from specpilot.control import RequestInfo
from specpilot.decoding.clock import Clock
from specpilot.decoding.loop import ServeLoop
from specpilot.decoding.seams import Executor
from specpilot.simulation.observed import ObservedController
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.results import RequestRecord


class PausableClock:
    """The machine's clock, which can stand still: policies that take turns each have one of their own."""

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

    def wait_until(self, time_s: float) -> None:
        """Sleep until then; at once if it is past."""
        left = time_s - self.now()
        if left > 0.0:
            time.sleep(left)

    def elapse(self, duration_ms: float) -> None:
        """Nothing: the time has passed."""


def serve(
    controller: ObservedController,
    executor: Executor,
    requests: Sequence[ReplayRequest],
    clock: Clock,
    *,
    closed_loop: bool = False,
) -> None:
    """Serve requests until all have ended; the controller keeps the account.

    Args:
        controller: the policy under test.
        executor: the engine or its stand-in.
        requests: only ids, lengths and arrivals are looked at here.
        clock: real or virtual time.
        closed_loop: each request arrives when the one before has ended: one client that never waits.
    """
    infos = [request_info(request) for request in requests]
    loop = ServeLoop(controller, executor, clock)
    if closed_loop:
        loop.run_closed(infos)
    else:
        loop.run(infos)


def request_info(request: ReplayRequest) -> RequestInfo:
    """How the loop is asked for a request."""
    return RequestInfo(
        request_id=request.request_id,
        prompt_tokens=request.trace.prompt_tokens,
        max_tokens=request.length,
        arrival_s=request.arrival_s,
    )


def request_record(request: ReplayRequest, controller: ObservedController) -> RequestRecord:
    """One arrival's record; refused requests have no cause and end when they arrive."""
    request_id = request.request_id
    arrival_s = controller.arrivals[request_id]
    summary = controller.summaries.get(request_id)
    slo_ms = controller.config.slo_p95_ms
    trace = request.trace
    if summary is None:
        return RequestRecord(request_id, arrival_s, arrival_s, slo_ms, None)
    return RequestRecord(
        request_id=request_id,
        arrival_s=arrival_s,
        end_s=arrival_s + summary.e2e_ms / 1000.0,
        slo_ms=slo_ms,
        cause=summary.cause,
        emitted_tokens=summary.emitted_tokens,
        loop_tokens=trace.loop_tokens(summary.emitted_tokens),
        near_ties=trace.near_ties(summary.emitted_tokens),
        target_passes=summary.target_passes,
    )
