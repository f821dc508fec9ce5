"""The calls that change a controller: a tap in front of one writes them down, and a replay makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from specpilot.control.types import (
    Admission,
    BatchPlan,
    CycleOutcome,
    RequestInfo,
    RequestSummary,
    StopCause,
)


class ControllerLike(Protocol):
    """What is asked of a controller (see :class:`specpilot.control.controller.Controller`)."""

    def admit(self, request: RequestInfo, *, now: float) -> Admission:
        """Take a request up or refuse it."""
        ...

    def plan(self, request_ids: Sequence[str], *, now: float) -> BatchPlan:
        """A cycle or an end for each of the requests."""
        ...

    def begin(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Their target passes start."""
        ...

    def observe(self, outcomes: Sequence[CycleOutcome], *, now: float) -> None:
        """What the cycles did."""
        ...

    def abort(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Give cycles up."""
        ...

    def finish(self, request_id: str, cause: StopCause, *, now: float) -> RequestSummary:
        """The request has ended."""
        ...
