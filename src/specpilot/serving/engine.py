"""The engine thread: one :class:`~specpilot.decoding.loop.ServeLoop` that many clients' requests share.

Requests come in from the server's event loop and are admitted or refused at once, under the loop's lock; the
thread runs their cycles. What happens to a request is told to its listener, on the engine's thread (or, for a
cancellation between cycles, on the caller's).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from specpilot.control import Controller
from specpilot.control.types import (
    Admission,
    BatchPlan,
    CycleOutcome,
    CyclePlan,
    RequestInfo,
    RequestSummary,
    StopCause,
)
from specpilot.decoding.clock import Clock
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.loop import ServeLoop
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.seams import LoopObserver
from specpilot.drafters.base import Drafter
from specpilot.targets.base import Target
from specpilot.trace.schema import TraceRecord
from specpilot.trace.traced import TracedController

LOG = logging.getLogger("specpilot.serving")


class Listener(Protocol):
    """Told what becomes of one request; must return at once and not raise."""

    def progressed(self, text: str, tokens: int) -> None:
        """A cycle is over; ``text`` and its number of tokens are all that is verified so far."""
        ...

    def ended(self, job: Job) -> None:
        """The request is over; ``job.summary`` is set."""
        ...


@dataclass(slots=True)
class Job:
    """One request in the engine, and its account."""

    request: DecodingRequest
    info: RequestInfo
    listener: Listener
    accepted: int = 0
    drafted: int = 0
    engine_s: float = 0.0
    """In how much time the engine ran its cycles (shared ones count in full)."""
    first_cycle_s: float | None = None
    reason: str = ""
    summary: RequestSummary | None = None


class _Executor(LiveExecutor):
    """A live executor that fetches a request from the engine's jobs when it is opened."""

    def __init__(
        self, target: Target, drafter: Drafter | None, jobs: dict[str, Job], evidence_ids: bool
    ) -> None:
        super().__init__(target, drafter, keep_details=True, evidence_ids=evidence_ids)
        self._jobs = jobs

    def open(self, request_id: str) -> int:
        request = self._jobs[request_id].request
        self.add(request)
        try:
            return super().open(request_id)
        except Exception as error:
            request.end(StopCause.ERROR, f"{type(error).__name__}: {error}")
            raise


class Engine(LoopObserver):
    """Runs requests in a thread of its own.

    Args:
        controller: plans; read its state only under :attr:`lock`.
        target: verifies.
        drafter: proposes.
        clock: the time that deadlines are on.
        max_batch: most requests in a target pass.
        observers: told of everything; one that raises is logged and kept.
        trace: takes a record of every call of the controller.
        trace_ids: token ids (a user's text) are part of it.
    """

    def __init__(
        self,
        controller: Controller,
        target: Target,
        drafter: Drafter | None,
        clock: Clock,
        *,
        max_batch: int = 4,
        observers: Sequence[LoopObserver] = (),
        trace: Callable[[TraceRecord], None] | None = None,
        trace_ids: bool = False,
    ) -> None:
        self.controller = controller
        self._called: Controller | TracedController = controller
        self._jobs: dict[str, Job] = {}
        self._executor = _Executor(target, drafter, self._jobs, trace_ids)
        if trace is not None:
            traced = TracedController(controller, trace)
            # Verdicts and acceptance probabilities; tokens are a user's text, so only if asked for.
            self._executor.report_evidence(traced.recorder.evidence)
            self._called = traced
        self._clock = clock
        self._loop = ServeLoop(self._called, self._executor, clock, max_batch, self)
        self._observers = tuple(observers)
        self._wake = threading.Event()
        self._stopping = False
        self._cycle_began_s: float | None = None
        self._thread = threading.Thread(target=self._work, name="specpilot-engine", daemon=True)

    @property
    def lock(self) -> threading.RLock:
        """Held around every call of the controller."""
        return self._loop.lock

    @property
    def outstanding(self) -> int:
        """Requests admitted and not ended."""
        return self._loop.outstanding

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def cycle_s(self) -> float:
        """For how long the cycle that runs now has been running; 0 between cycles."""
        began_s = self._cycle_began_s
        return 0.0 if began_s is None else self._clock.now() - began_s

    def now(self) -> float:
        """Seconds on the engine's clock."""
        return self._clock.now()

    def set_mode(self, mode: str) -> None:
        """Switch who chooses the draft length; the next cycle follows.

        Raises:
            ValueError: for an unknown mode.
        """
        with self.lock:
            self._called.mode = mode

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Serve out what is in flight, at most ``timeout_s``, then end the rest; False if the thread hangs.

        Nothing may be submitted any more.
        """
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            for request_id in list(self._jobs):
                self.cancel(request_id)
            self._thread.join(1.0)
        return not self._thread.is_alive()

    def submit(self, request: DecodingRequest, info: RequestInfo, listener: Listener) -> Admission:
        """Offer a request, from any thread; the answer does not wait for the cycle that is running."""
        with self.lock:
            self._jobs[info.request_id] = Job(request, info, listener)
            admitted = False
            try:
                admission = self._loop.offer(info)
                admitted = admission.admitted
            finally:
                if not admitted:
                    del self._jobs[info.request_id]
        if admitted:
            self._wake.set()
        return admission

    def cancel(self, request_id: str) -> None:
        """The client has left: the request ends before the next cycle."""
        self._loop.cancel(request_id)
        self._wake.set()

    def _work(self) -> None:
        while True:
            self._wake.clear()
            self._cycle_began_s = self._clock.now()
            try:
                busy = self._loop.step()
            except BaseException as error:
                LOG.exception("the serving loop failed; the requests in flight end with an error")
                self._abandon()
                if not isinstance(error, Exception):  # the thread ends; nothing more is taken
                    raise
                busy = True
            finally:
                self._cycle_began_s = None
            if not busy:
                if self._stopping:
                    return
                self._wake.wait()

    def _abandon(self) -> None:
        """After a failure that nobody has placed: every client gets its answer, whatever else is broken."""
        with self.lock:
            try:
                self._loop.abandon()
            except Exception:
                LOG.exception("requests could not be ended in order")
            now = self.now()
            for job in list(self._jobs.values()):
                e2e_ms = (now - (now if job.info.arrival_s is None else job.info.arrival_s)) * 1000.0
                request_id = job.info.request_id
                try:
                    self.finished(
                        job.info, RequestSummary(request_id, StopCause.ERROR, 0, 0, 0, 0, e2e_ms, False), now
                    )
                except Exception:  # the thread must live on for the others
                    LOG.exception("request %s could not be ended in order", request_id)

    # --- told by the loop ------------------------------------------------------------------------

    def admitted(self, info: RequestInfo, admission: Admission, now: float) -> None:
        """Passed on."""
        self._tell(lambda observer: observer.admitted(info, admission, now))

    def refused(self, info: RequestInfo, admission: Admission, now: float) -> None:
        """Passed on."""
        self._tell(lambda observer: observer.refused(info, admission, now))

    def planned(self, plan: BatchPlan, now: float) -> None:
        """Remembers why requests end; passed on."""
        for stop in plan.stops:
            if job := self._jobs.get(stop.request_id):
                job.reason = str(stop.reason)
        self._tell(lambda observer: observer.planned(plan, now))

    def cycle(
        self, info: RequestInfo, plan: CyclePlan, outcome: CycleOutcome, start_s: float, end_s: float
    ) -> None:
        """Tells the listener what is verified; passed on."""
        job = self._jobs[info.request_id]
        job.accepted += outcome.accepted + outcome.side_accepted
        job.drafted += outcome.proposed + outcome.side_proposed
        job.engine_s += end_s - start_s
        if job.first_cycle_s is None:
            job.first_cycle_s = start_s
        try:
            job.listener.progressed(job.request.text, job.request.emitted)
        except Exception:
            LOG.exception("request %s: its listener failed; the request goes on", info.request_id)
        self._tell(lambda observer: observer.cycle(info, plan, outcome, start_s, end_s))

    def finished(self, info: RequestInfo, summary: RequestSummary, now: float) -> None:
        """Tells the listener; passed on."""
        job = self._jobs.pop(info.request_id)
        # One that was never opened is unknown to the executor, which therefore did not end it.
        job.request.end(summary.cause)
        job.summary = summary
        self._tell(lambda observer: observer.finished(info, summary, now))
        try:
            job.listener.ended(job)
        except Exception:
            LOG.exception("request %s: its listener failed at its end", info.request_id)

    def _tell(self, call: Callable[[LoopObserver], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception:
                LOG.exception("%s failed; serving goes on", type(observer).__name__)
