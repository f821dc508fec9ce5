"""Recording a run: a tap on the controller that writes down every call and every answer.

:class:`TracedController` stands in front of any controller, on any engine, and takes nothing else: the
serving loop, the HTTP server and a foreign engine's plugin call it as they would call the controller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from specpilot.control import Controller, ControllerConfig
from specpilot.control.calls import ControllerLike
from specpilot.control.planner import OptimalPlanner
from specpilot.control.types import (
    Admission,
    BatchPlan,
    CycleOutcome,
    RequestInfo,
    RequestSummary,
    StopCause,
)
from specpilot.trace.cycles import LedgerState
from specpilot.trace.recorder import TraceRecorder
from specpilot.trace.schema import TraceHeader, TraceRecord


class TracedController:
    """Any controller with a tap (a decorator; what is not a call of the protocol is passed through).

    Args:
        controller: does the work.
        sink: takes the records; the header is the caller's (see :func:`header_for`).
    """

    def __init__(self, controller: ControllerLike, sink: Callable[[TraceRecord], None]) -> None:
        self.controller = controller
        ledger = getattr(controller, "ledger", None)
        state = None if ledger is None else (lambda: ledger_state(ledger))
        self.recorder = TraceRecorder(sink, state)

    def admit(self, request: RequestInfo, *, now: float) -> Admission:
        """Admit, and record."""
        admission = self.controller.admit(request, now=now)
        self.recorder.admitted(request, admission, now)
        return admission

    def plan(self, request_ids: Sequence[str], *, now: float) -> BatchPlan:
        """Plan, and record."""
        batch = self.controller.plan(request_ids, now=now)
        self.recorder.planned(request_ids, batch, now)
        return batch

    def begin(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Begin, and record."""
        self.controller.begin(cycle_ids, now=now)
        self.recorder.begun(cycle_ids, now)

    def observe(self, outcomes: Sequence[CycleOutcome], *, now: float) -> None:
        """Observe, and record."""
        self.controller.observe(outcomes, now=now)
        self.recorder.observed(outcomes, now)

    def abort(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Abort, and record."""
        self.controller.abort(cycle_ids, now=now)
        self.recorder.aborted(cycle_ids, now)

    def finish(self, request_id: str, cause: StopCause, *, now: float) -> RequestSummary:
        """Finish, and record."""
        summary = self.controller.finish(request_id, cause, now=now)
        self.recorder.finished(summary, now)
        return summary

    @property
    def mode(self) -> str:
        """The controller's mode; setting it is recorded."""
        return str(getattr(self.controller, "mode"))  # noqa: B009

    @mode.setter
    def mode(self, mode: str) -> None:
        setattr(self.controller, "mode", mode)  # noqa: B010
        self.recorder.mode(mode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.controller, name)


def header_for(
    controller: Controller, source: str, *, engine: str = "", target: str = "", draft: str = ""
) -> TraceHeader:
    """The header of a trace of this controller, which must not have served yet for it to be replayable."""
    own = isinstance(controller.planner, OptimalPlanner)
    fresh = not own or controller.snapshot() == Controller(controller.config).snapshot()
    unused = controller.ledger.admitted == 0 and controller.ledger.passes_started == 0
    return TraceHeader(
        source=source,
        policy=controller.planner.name,
        engine=engine,
        target=target,
        draft=draft,
        config=config_json(controller.config) | {"mode": str(controller.mode)},
        snapshot=None if fresh else controller.snapshot().decode(),
        replayable=own and unused,
    )


def config_json(config: ControllerConfig) -> dict[str, Any]:
    """A configuration's fields; JSON has no infinity, so an unlimited budget is null."""
    values = asdict(config)
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}


def ledger_state(ledger: Any) -> LedgerState:
    """A :class:`~specpilot.control.budget.PassLedger`'s state."""
    return LedgerState(ledger.admitted, ledger.passes_started, ledger.pool)
