"""The records of a run, made of a controller's calls and answers (:mod:`specpilot.trace.traced` listens).

What only an executor knows (verdicts, token ids) it hands in with :meth:`TraceRecorder.evidence` before the
cycle is observed.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specpilot.control.stop import StopRule
from specpilot.control.tree import TreeRule
from specpilot.control.types import (
    Admission,
    BatchPlan,
    CycleOutcome,
    CyclePlan,
    RequestInfo,
    RequestSummary,
)
from specpilot.trace.cycles import (
    ABORTED,
    DROPPED,
    NO_EVIDENCE,
    OBSERVED,
    CycleEvidence,
    CycleRecord,
    LedgerState,
)
from specpilot.trace.requests import AdmitRecord, EndRecord, StopRecord
from specpilot.trace.schema import ModeRecord, TraceRecord

EMPTY_LEDGER = LedgerState(0, 0, 0.0)


@dataclass(slots=True)
class _Request:
    info: RequestInfo
    ready_s: float
    """Since when the request has been waiting for a cycle."""
    cycles: int = 0
    open: int | None = None


@dataclass(slots=True)
class _Open:
    plan: CyclePlan
    planned_s: float
    call: int
    place: int
    begin_call: int | None = None
    start_s: float = 0.0
    ledger: LedgerState = EMPTY_LEDGER
    evidence: CycleEvidence = NO_EVIDENCE


class TraceRecorder:
    """Turns a controller's calls and answers into records; each method is told *after* the call.

    Args:
        sink: takes the records, e.g. :meth:`specpilot.trace.files.TraceWriter.write`.
        ledger: the state of the pass ledger; default: unknown, all zero.
    """

    def __init__(
        self, sink: Callable[[TraceRecord], None], ledger: Callable[[], LedgerState] | None = None
    ) -> None:
        self._sink = sink
        self._ledger = ledger
        self._call = 0
        self._requests: dict[str, _Request] = {}
        self._open: dict[int, _Open] = {}

    def admitted(self, request: RequestInfo, admission: Admission, now: float) -> None:
        """``admit`` has answered."""
        self._call += 1
        if admission.admitted:
            ready = now if request.arrival_s is None else request.arrival_s
            self._requests[request.request_id] = _Request(request, ready)
        deadline = admission.deadline_s if math.isfinite(admission.deadline_s) else 0.0
        self._sink(
            AdmitRecord(
                call=self._call,
                time_s=now,
                request=request.request_id,
                arrival_s=request.arrival_s,
                prompt_tokens=request.prompt_tokens,
                max_tokens=request.max_tokens,
                cached_tokens=request.cached_tokens,
                slo_ms=request.slo_ms,
                max_draft=request.max_draft,
                prefill_passes=request.prefill_passes,
                drafter=request.drafter,
                tenant=request.tenant,
                admitted=admission.admitted,
                deadline_s=deadline,
                reason=admission.reason,
                prefill_drafts=request.prefill_drafts,
                acceptance=request.acceptance,
            )
        )

    def planned(self, request_ids: Sequence[str], batch: BatchPlan, now: float) -> None:
        """``plan`` has answered."""
        self._call += 1
        if len(request_ids) == 1:
            places = {request_ids[0]: 0}
        else:
            places = {request_id: place for place, request_id in enumerate(request_ids)}
        for plan in batch.cycles:
            self._open[plan.cycle_id] = _Open(plan, now, self._call, places[plan.request_id])
            self._requests[plan.request_id].open = plan.cycle_id
        for stop in batch.stops:
            reason = stop.reason
            place = places[stop.request_id]
            self._sink(
                StopRecord(
                    self._call,
                    place,
                    now,
                    stop.request_id,
                    stop.cause,
                    reason.binding,
                    reason.numbers,
                    reason.note,
                )
            )

    def begun(self, cycle_ids: Sequence[int], now: float) -> None:
        """``begin`` has returned."""
        self._call += 1
        ledger = EMPTY_LEDGER if self._ledger is None else self._ledger()
        for cycle_id in cycle_ids:
            cycle = self._open[cycle_id]
            cycle.begin_call, cycle.start_s, cycle.ledger = self._call, now, ledger

    def evidence(self, cycle_id: int, evidence: CycleEvidence) -> None:
        """What the executor knows of a running cycle; unknown cycles are ignored."""
        cycle = self._open.get(cycle_id)
        if cycle is not None:
            cycle.evidence = evidence

    def observed(self, outcomes: Sequence[CycleOutcome], now: float) -> None:
        """``observe`` has returned."""
        self._call += 1
        for place, outcome in enumerate(outcomes):
            self._close(outcome.cycle_id, OBSERVED, outcome, now, place)

    def aborted(self, cycle_ids: Sequence[int], now: float) -> None:
        """``abort`` has returned."""
        self._call += 1
        for place, cycle_id in enumerate(cycle_ids):
            self._close(cycle_id, ABORTED, None, now, place)

    def finished(self, summary: RequestSummary, now: float) -> None:
        """``finish`` has answered; a cycle still open was dropped by it."""
        self._call += 1
        request = self._requests[summary.request_id]
        if request.open is not None:
            self._close(request.open, DROPPED, None, now, 0)
        del self._requests[summary.request_id]
        self._sink(
            EndRecord(
                call=self._call,
                time_s=now,
                request=summary.request_id,
                cause=summary.cause,
                emitted_tokens=summary.emitted_tokens,
                target_passes=summary.target_passes,
                pool_passes=summary.pool_passes,
                cycles=summary.cycles,
                e2e_ms=summary.e2e_ms,
                met_slo=summary.met_slo,
            )
        )

    def mode(self, mode: str) -> None:
        """The mode was switched."""
        self._call += 1
        self._sink(ModeRecord(self._call, str(mode)))

    def _close(
        self, cycle_id: int, status: str, outcome: CycleOutcome | None, now: float, place: int
    ) -> None:
        cycle = self._open.pop(cycle_id)
        plan = cycle.plan
        request = self._requests[plan.request_id]
        begun = cycle.begin_call is not None
        start_s = cycle.start_s if begun else cycle.planned_s
        done = outcome or CycleOutcome(cycle_id, 0, 0, 0, 0, verified_tokens=0)
        self._sink(
            CycleRecord(
                request=plan.request_id,
                index=request.cycles,
                start_s=start_s,
                end_s=now,
                prompt_tokens=request.info.prompt_tokens,
                max_draft=plan.max_draft,
                from_pool=plan.from_pool,
                binding=plan.reason.binding,
                drafted=done.drafted,
                proposed=done.proposed,
                accepted=done.accepted,
                emitted=done.emitted,
                draft_ms=done.draft_ms,
                draft_prefill_ms=done.draft_prefill_ms,
                verify_ms=done.verify_ms,
                host_ms=done.host_ms,
                verified_tokens=done.verified_tokens,
                context_tokens=done.context_tokens,
                ledger=cycle.ledger,
                numbers=plan.reason.numbers,
                ended=done.ended,
                draft_fault=done.draft_fault,
                note=plan.reason.note,
                confidences=done.confidences,
                draft_prefill_tokens=done.draft_prefill_tokens,
                batch_size=done.batch_size,
                batch_tokens=done.batch_tokens,
                queue_ms=max(0.0, (start_s - request.ready_s) * 1000.0),
                drafter=done.drafter or request.info.drafter,
                cycle=cycle_id,
                status=status,
                planned_s=cycle.planned_s,
                deadline_s=plan.deadline_s,
                max_nodes=plan.max_nodes,
                shadow_draft=plan.shadow_draft,
                stop_digest=stop_digest(plan.stop, plan.tree),
                plan_call=cycle.call,
                plan_place=cycle.place,
                begin_call=cycle.begin_call,
                end_call=self._call,
                end_place=place,
                side_proposed=done.side_proposed,
                side_accepted=done.side_accepted,
                side_judged=tuple(float(part) for judged in done.side_judged for part in judged),
                side_worth=done.side_worth,
                lookup_judged=done.lookup_judged,
                coupled=plan.coupled,
                evidence=cycle.evidence,
            )
        )
        request.open = None
        request.ready_s = now
        request.cycles += status == OBSERVED


def stop_digest(rule: StopRule, tree: TreeRule | None = None) -> int:
    """A checksum of the coefficients and thresholds of a plan's rules (not of their running product)."""
    values = array("d", (rule.intercept, rule.slope, rule.time_limit_ms, rule.step_ms, rule.verify_ms))
    for part in (rule.keep_at, rule.draft_at):
        values.append(float(len(part)))
        values.extend(part)
    if tree is not None:
        _add_tree(values, tree)
    return zlib.crc32(values.tobytes())


def _add_tree(values: array[float], tree: TreeRule) -> None:
    values.extend((tree.width, tree.model_depth, tree.first_at, tree.side_price, tree.open, tree.branching))
    parts = [tree.worth, tree.node_price, *tree.ranks]
    if tree.lookup is not None:
        parts += [tree.lookup.intercepts, (tree.lookup.slope, float(tree.lookup.depth))]
    for part in parts:
        values.append(float(len(part)))
        values.extend(part)
