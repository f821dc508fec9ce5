"""A controller with a tap: everything it decides and sees, recorded; the budget, counted a second time.

Recording is a decorator around the policy and not part of it. The budget is checked here from the calls
alone, at every pass start, without looking at the ledger: a ledger with a bug cannot vouch for itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from specpilot.control import (
    Admission,
    BatchPlan,
    Controller,
    ControllerConfig,
    CycleOutcome,
    CyclePlan,
    RequestInfo,
    RequestSummary,
    StopCause,
)
from specpilot.control.planning import Planner
from specpilot.simulation.results import CycleTotals
from specpilot.trace.cycles import OBSERVED, CycleRecord
from specpilot.trace.recorder import TraceRecorder
from specpilot.trace.schema import TraceHeader, TraceRecord
from specpilot.trace.traced import header_for, ledger_state


class ObservedController(Controller):
    """A :class:`~specpilot.control.Controller` that also keeps an account of the run.

    Args:
        config: as the controller's.
        planner: as the controller's.
        keep_cycles: keep a trace of the run (every call and every cycle), not only the sums.
        keep_requests: keep a summary per request; without it memory is bounded by the requests in flight.
    """

    def __init__(
        self,
        config: ControllerConfig | None = None,
        planner: Planner | None = None,
        *,
        keep_cycles: bool = False,
        keep_requests: bool = True,
    ) -> None:
        super().__init__(config, planner)
        self.totals = CycleTotals()
        self.header: TraceHeader = header_for(self, "run")
        self.trace: list[TraceRecord] = []
        """The records of the run, without header and last line; empty unless cycles are kept."""
        self.summaries: dict[str, RequestSummary] = {}
        self.refusals: dict[str, str] = {}
        self.arrivals: dict[str, float] = {}
        """Request id → scheduled arrival, in seconds on the caller's clock; refused ones included."""
        self.budget_violations = 0
        self._keep_requests = keep_requests
        ledger = self.ledger
        self.recorder = (
            TraceRecorder(self.trace.append, lambda: ledger_state(ledger)) if keep_cycles else None
        )
        self._plans: dict[int, CyclePlan] = {}
        self._passes_of: dict[str, int] = {}
        self._counted_admitted = 0
        self._counted_passes = 0

    def admit(self, request: RequestInfo, *, now: float) -> Admission:
        """Admit, and count."""
        admission = super().admit(request, now=now)
        if self._keep_requests:
            self.arrivals[request.request_id] = now if request.arrival_s is None else request.arrival_s
        if admission.admitted:
            self._counted_admitted += 1
            self._passes_of[request.request_id] = 0
        elif self._keep_requests:
            self.refusals[request.request_id] = admission.reason
        if self.recorder is not None:
            self.recorder.admitted(request, admission, now)
        return admission

    def plan(self, request_ids: Sequence[str], *, now: float) -> BatchPlan:
        """Plan, and remember."""
        batch = super().plan(request_ids, now=now)
        for plan in batch.cycles:
            self._plans[plan.cycle_id] = plan
        if self.recorder is not None:
            self.recorder.planned(request_ids, batch, now)
        return batch

    def begin(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Start passes, and check the budget at each of them."""
        super().begin(cycle_ids, now=now)
        for cycle_id in cycle_ids:
            self._counted_passes += 1
            self._passes_of[self._plans[cycle_id].request_id] += 1
            self._check_budget()
        if self.recorder is not None:
            self.recorder.begun(cycle_ids, now)

    def observe(self, outcomes: Sequence[CycleOutcome], *, now: float) -> None:
        """Learn, and record."""
        super().observe(outcomes, now=now)
        for outcome in outcomes:
            del self._plans[outcome.cycle_id]
            self.totals.add(outcome.drafted, outcome.proposed, outcome.accepted)
        if self.recorder is not None:
            self.recorder.observed(outcomes, now)

    def abort(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Give cycles up, and forget them."""
        super().abort(cycle_ids, now=now)
        for cycle_id in cycle_ids:
            self._plans.pop(cycle_id, None)
        if self.recorder is not None:
            self.recorder.aborted(cycle_ids, now)

    def finish(self, request_id: str, cause: StopCause, *, now: float) -> RequestSummary:
        """Settle, and keep the account; a request without any pass takes its deposit back."""
        summary = super().finish(request_id, cause, now=now)
        if self._keep_requests:
            self.summaries[request_id] = summary
        if self._passes_of.pop(request_id) == 0:
            self._counted_admitted -= 1
            self._check_budget()
        if self.recorder is not None:
            self.recorder.finished(summary, now)
        return summary

    @property
    def cycle_records(self) -> list[CycleRecord]:
        """The observed cycles of the trace, in the order in which they ended."""
        return [r for r in self.trace if isinstance(r, CycleRecord) and r.status == OBSERVED]

    def _check_budget(self) -> None:
        # The slack is for rounding only: it is far below the millicredit that the ledger counts in.
        if self._counted_passes > self.config.pass_budget * self._counted_admitted + 1e-6:
            self.budget_violations += 1
