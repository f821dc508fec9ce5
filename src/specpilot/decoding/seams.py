"""What the serving loop (:mod:`specpilot.decoding.loop`) asks of controller and executor; whom it tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from specpilot.control.types import (
    Admission,
    BatchPlan,
    CycleOutcome,
    CyclePlan,
    RequestInfo,
    RequestSummary,
    StopCause,
)


class Schedule(Protocol):
    """A controller's ``schedule``, if it has one: whose cycle is next, and who had better run together."""

    def __call__(self, request_ids: Sequence[str], limit: int, *, now: float) -> list[str]:
        """Some of the requests, which come most urgent first, at least one and at most ``limit``."""
        ...


class Executor(Protocol):
    """What runs cycles: models, a recorded trace, a simulated engine."""

    def open(self, request_id: str) -> int:
        """Take up a request; returns how many of its prompt tokens are cached."""
        ...

    def run(self, plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
        """One cycle for each plan, outcomes in the same order."""
        ...

    def close(self, request_id: str, cause: StopCause) -> None:
        """The request is over; unknown ids are ignored."""
        ...


class LoopObserver:
    """Told of everything that happens; override what you need. Times in seconds on the loop's clock."""

    def admitted(self, info: RequestInfo, admission: Admission, now: float) -> None:
        """A request was taken up (``info.cached_tokens`` is filled in)."""

    def refused(self, info: RequestInfo, admission: Admission, now: float) -> None:
        """A request was refused; ``admission.reason`` says why."""

    def planned(self, plan: BatchPlan, now: float) -> None:
        """The controller has planned, nothing has run yet."""

    def cycle(
        self, info: RequestInfo, plan: CyclePlan, outcome: CycleOutcome, start_s: float, end_s: float
    ) -> None:
        """One request's cycle is over."""

    def finished(self, info: RequestInfo, summary: RequestSummary, now: float) -> None:
        """A request has ended."""
