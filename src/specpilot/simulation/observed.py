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
from specpilot.trace.cycles import CycleRecord, LedgerState


class ObservedController(Controller):
    """A :class:`~specpilot.control.Controller` that also keeps an account of the run.

    Args:
        config: as the controller's.
        planner: as the controller's.
        keep_cycles: keep a record per cycle (a live run or a trace), not only the sums.
    """

    def __init__(
        self,
        config: ControllerConfig | None = None,
        planner: Planner | None = None,
        *,
        keep_cycles: bool = False,
    ) -> None:
        super().__init__(config, planner)
        self.totals = CycleTotals()
        self.cycle_records: list[CycleRecord] = []
        self.summaries: dict[str, RequestSummary] = {}
        self.refusals: dict[str, str] = {}
        self.arrivals: dict[str, float] = {}
        """Request id → scheduled arrival, in seconds on the caller's clock; refused ones included."""
        self.budget_violations = 0
        self._keep_cycles = keep_cycles
        self._plans: dict[int, CyclePlan] = {}
        self._started: dict[int, tuple[float, LedgerState]] = {}
        self._prompt_tokens: dict[str, int] = {}
        self._cycles_of: dict[str, int] = {}
        self._passes_of: dict[str, int] = {}
        self._counted_admitted = 0
        self._counted_passes = 0

    def admit(self, request: RequestInfo, *, now: float) -> Admission:
        """Admit, and count."""
        admission = super().admit(request, now=now)
        self.arrivals[request.request_id] = now if request.arrival_s is None else request.arrival_s
        if admission.admitted:
            self._counted_admitted += 1
            self._passes_of[request.request_id] = 0
            self._cycles_of[request.request_id] = 0
            self._prompt_tokens[request.request_id] = request.prompt_tokens
        else:
            self.refusals[request.request_id] = admission.reason
        return admission

    def plan(self, request_ids: Sequence[str], *, now: float) -> BatchPlan:
        """Plan, and remember."""
        batch = super().plan(request_ids, now=now)
        for plan in batch.cycles:
            self._plans[plan.cycle_id] = plan
        return batch

    def begin(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Start passes, and check the budget at each of them."""
        super().begin(cycle_ids, now=now)
        for cycle_id in cycle_ids:
            self._counted_passes += 1
            self._passes_of[self._plans[cycle_id].request_id] += 1
            self._check_budget()
            if self._keep_cycles:
                ledger = self.ledger
                state = LedgerState(ledger.admitted, ledger.passes_started, ledger.pool)
                self._started[cycle_id] = (now, state)

    def observe(self, outcomes: Sequence[CycleOutcome], *, now: float) -> None:
        """Learn, and record."""
        super().observe(outcomes, now=now)
        for outcome in outcomes:
            plan = self._plans.pop(outcome.cycle_id)
            self.totals.add(
                plan.max_draft, outcome.drafted, outcome.proposed, outcome.accepted, outcome.emitted
            )
            if self._keep_cycles:
                self.cycle_records.append(self._record(plan, outcome, now))
            self._cycles_of[plan.request_id] += 1

    def abort(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Give cycles up, and forget them."""
        super().abort(cycle_ids, now=now)
        for cycle_id in cycle_ids:
            self._plans.pop(cycle_id, None)
            self._started.pop(cycle_id, None)

    def finish(self, request_id: str, cause: StopCause, *, now: float) -> RequestSummary:
        """Settle, and keep the account; a request without any pass takes its deposit back."""
        summary = super().finish(request_id, cause, now=now)
        self.summaries[request_id] = summary
        if self._passes_of.pop(request_id) == 0:
            self._counted_admitted -= 1
            self._check_budget()
        del self._prompt_tokens[request_id], self._cycles_of[request_id]
        return summary

    def _check_budget(self) -> None:
        # The slack is for rounding only: it is far below the millicredit that the ledger counts in.
        if self._counted_passes > self.config.pass_budget * self._counted_admitted + 1e-6:
            self.budget_violations += 1

    def _record(self, plan: CyclePlan, outcome: CycleOutcome, now: float) -> CycleRecord:
        start_s, ledger = self._started.pop(outcome.cycle_id)
        return CycleRecord(
            request=plan.request_id,
            index=self._cycles_of[plan.request_id],
            start_s=start_s,
            end_s=now,
            prompt_tokens=self._prompt_tokens[plan.request_id],
            max_draft=plan.max_draft,
            from_pool=plan.from_pool,
            binding=plan.reason.binding,
            drafted=outcome.drafted,
            proposed=outcome.proposed,
            accepted=outcome.accepted,
            emitted=outcome.emitted,
            draft_ms=outcome.draft_ms,
            draft_prefill_ms=outcome.draft_prefill_ms,
            verify_ms=outcome.verify_ms,
            host_ms=outcome.host_ms,
            verified_tokens=outcome.verified_tokens,
            context_tokens=outcome.context_tokens,
            ledger=ledger,
            numbers=plan.reason.numbers,
            ended=outcome.ended,
            draft_fault=outcome.draft_fault,
        )
