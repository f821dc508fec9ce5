"""Replaying a trace through a controller: the same calls must give the same decisions, bit for bit (I7).

A difference means that the policy reads something it was not given, that it was changed since the trace was
written, or that the trace was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from specpilot.control import Controller, ControllerConfig
from specpilot.control.types import (
    BatchPlan,
    CycleOutcome,
    CyclePlan,
    PlannedStop,
    RequestInfo,
)
from specpilot.trace.cycles import ABORTED, OBSERVED, CycleRecord
from specpilot.trace.recorder import stop_digest
from specpilot.trace.requests import AdmitRecord, EndRecord, StopRecord
from specpilot.trace.schema import ModeRecord, TraceHeader, TraceRecord


@dataclass(slots=True)
class Replayed:
    """What a replay compared; ``differences`` are sentences, the first ones only."""

    admissions: int = 0
    plans: int = 0
    stops: int = 0
    ends: int = 0
    different: int = 0
    differences: list[str] = field(default_factory=list)

    def expect(self, what: str, recorded: object, replayed: object) -> None:
        """Count a difference."""
        if recorded != replayed:
            self.different += 1
            if len(self.differences) < 20:
                self.differences.append(f"{what}: recorded {recorded}, replayed {replayed}")


@dataclass(slots=True)
class _Call:
    """One call of the controller, with what the trace says about it."""

    admit: AdmitRecord | None = None
    cycles: list[CycleRecord] = field(default_factory=list)  # planned by this call
    stops: list[StopRecord] = field(default_factory=list)
    begun: list[CycleRecord] = field(default_factory=list)
    closed: list[CycleRecord] = field(default_factory=list)  # observed or aborted by it
    mode: str | None = None
    end: EndRecord | None = None


def replay_decisions(records: Sequence[TraceRecord]) -> Replayed:
    """Drive a fresh controller with the recorded calls and compare every answer.

    Args:
        records: a whole trace, header first.

    Raises:
        ValueError: if the trace is not replayable (another policy, or a controller that had served before),
            or is not a whole one.
    """
    header = records[0] if records else None
    if not isinstance(header, TraceHeader):
        raise ValueError("records: the first is not a header; read the file with read_trace")
    if not header.replayable:
        raise ValueError(
            f"replayable: this trace of {header.policy!r} (source {header.source!r}) does not hold what a "
            "replay needs; record specpilot's own policy from its first request on"
        )
    controller = Controller(config_of(header))
    if header.snapshot is not None:
        controller.restore(header.snapshot.encode())
    result = Replayed()
    ids: dict[int, int] = {}
    for number, call in sorted(_calls(records).items()):
        try:
            _drive(controller, call, ids, result)
        except (ValueError, KeyError) as error:
            raise ValueError(f"call {number}: {error}; the trace does not hold every call") from None
    return result


def config_of(header: TraceHeader) -> ControllerConfig:
    """The configuration of a trace's controller.

    Raises:
        ValueError: for a field that this version does not have, or a value out of its range.
    """
    known = {f.name for f in fields(ControllerConfig)}
    unknown = sorted(set(header.config) - known)
    if unknown:
        raise ValueError(f"config: {', '.join(unknown)} unknown here; use the version that wrote the trace")
    values: dict[str, Any] = dict(header.config)
    if "pass_budget" in values and values["pass_budget"] is None:
        values["pass_budget"] = math.inf
    return ControllerConfig(**values)


def _calls(records: Sequence[TraceRecord]) -> dict[int, _Call]:
    calls: dict[int, _Call] = {}
    for record in records:
        if isinstance(record, AdmitRecord):
            calls.setdefault(record.call, _Call()).admit = record
        elif isinstance(record, StopRecord):
            calls.setdefault(record.call, _Call()).stops.append(record)
        elif isinstance(record, ModeRecord):
            calls.setdefault(record.call, _Call()).mode = record.mode
        elif isinstance(record, EndRecord):
            calls.setdefault(record.call, _Call()).end = record
        elif isinstance(record, CycleRecord):
            calls.setdefault(record.plan_call, _Call()).cycles.append(record)
            if record.begin_call is not None:
                calls.setdefault(record.begin_call, _Call()).begun.append(record)
            if record.status in (OBSERVED, ABORTED):
                calls.setdefault(record.end_call, _Call()).closed.append(record)
    return calls


def _drive(controller: Controller, call: _Call, ids: dict[int, int], result: Replayed) -> None:
    if call.admit is not None:
        _admit(controller, call.admit, result)
    if call.cycles or call.stops:
        _plan(controller, call, ids, result)
    if call.begun:
        begun = sorted(call.begun, key=lambda cycle: cycle.plan_place)
        controller.begin([ids[cycle.cycle] for cycle in begun], now=begun[0].start_s)
    if call.closed:
        closed = sorted(call.closed, key=lambda cycle: cycle.end_place)
        now = closed[0].end_s
        if closed[0].status == OBSERVED:
            controller.observe([outcome_of(cycle, ids[cycle.cycle]) for cycle in closed], now=now)
        else:
            controller.abort([ids[cycle.cycle] for cycle in closed], now=now)
    if call.mode is not None:
        controller.mode = call.mode
    if call.end is not None:
        end = call.end
        summary = controller.finish(end.request, end.cause, now=end.time_s)
        result.ends += 1
        result.expect(
            f"end of {end.request}",
            (end.emitted_tokens, end.target_passes, end.pool_passes, end.e2e_ms, end.met_slo),
            (
                summary.emitted_tokens,
                summary.target_passes,
                summary.pool_passes,
                summary.e2e_ms,
                summary.met_slo,
            ),
        )


def _admit(controller: Controller, told: AdmitRecord, result: Replayed) -> None:
    info = RequestInfo(
        request_id=told.request,
        prompt_tokens=told.prompt_tokens,
        max_tokens=told.max_tokens,
        arrival_s=told.arrival_s,
        cached_tokens=told.cached_tokens,
        slo_ms=told.slo_ms,
        max_draft=told.max_draft,
        prefill_passes=told.prefill_passes,
        drafter=told.drafter,
        tenant=told.tenant,
        prefill_drafts=told.prefill_drafts,
        acceptance=told.acceptance,
    )
    admission = controller.admit(info, now=told.time_s)
    result.admissions += 1
    result.expect(
        f"admission of {told.request}",
        (told.admitted, told.deadline_s, told.reason),
        (admission.admitted, admission.deadline_s, admission.reason),
    )


def _plan(controller: Controller, call: _Call, ids: dict[int, int], result: Replayed) -> None:
    asked: list[CycleRecord | StopRecord] = sorted(
        [*call.cycles, *call.stops],
        key=lambda part: part.place if isinstance(part, StopRecord) else part.plan_place,
    )
    first = asked[0]
    now = first.time_s if isinstance(first, StopRecord) else first.planned_s
    batch: BatchPlan = controller.plan([part.request for part in asked], now=now)
    plans = {plan.request_id: plan for plan in batch.cycles}
    stops = {stop.request_id: stop for stop in batch.stops}
    for part in asked:
        if isinstance(part, CycleRecord):
            result.plans += 1
            plan = plans.get(part.request)
            if plan is not None:
                ids[part.cycle] = plan.cycle_id
            result.expect(f"plan of {part.request}, cycle {part.index}", _recorded(part), _planned(plan))
        else:
            result.stops += 1
            result.expect(f"stop of {part.request}", _told(part), _stopped(stops.get(part.request)))


def outcome_of(cycle: CycleRecord, cycle_id: int) -> CycleOutcome:
    """The outcome that the controller was told."""
    looked_up = cycle.lookup_judged
    return CycleOutcome(
        cycle_id=cycle_id,
        drafted=cycle.drafted,
        proposed=cycle.proposed,
        accepted=cycle.accepted,
        emitted=cycle.emitted,
        confidences=cycle.confidences,
        draft_ms=cycle.draft_ms,
        draft_prefill_ms=cycle.draft_prefill_ms,
        draft_prefill_tokens=cycle.draft_prefill_tokens,
        verify_ms=cycle.verify_ms,
        verified_tokens=cycle.verified_tokens,
        context_tokens=cycle.context_tokens,
        batch_size=cycle.batch_size,
        batch_tokens=cycle.batch_tokens,
        host_ms=cycle.host_ms,
        ended=cycle.ended,
        draft_fault=cycle.draft_fault,
        side_proposed=cycle.side_proposed,
        side_accepted=cycle.side_accepted,
        side_judged=_judged(cycle.side_judged),
        side_worth=cycle.side_worth,
        lookup_judged=None if looked_up is None else (looked_up[0], int(looked_up[1]), int(looked_up[2])),
        drafter=cycle.drafter,
    )


def _judged(flat: Sequence[float]) -> tuple[tuple[int, float, bool], ...]:
    return tuple(
        (int(rank), share, right == 1.0)
        for rank, share, right in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    )


def _recorded(cycle: CycleRecord) -> tuple[object, ...]:
    return (
        cycle.max_draft,
        cycle.max_nodes,
        cycle.from_pool,
        cycle.shadow_draft,
        cycle.deadline_s,
        cycle.binding.value,
        cycle.note,
        dict(cycle.numbers),
        cycle.stop_digest,
        cycle.coupled,
    )


def _planned(plan: CyclePlan | None) -> tuple[object, ...] | None:
    if plan is None:
        return None
    return (
        plan.max_draft,
        plan.max_nodes,
        plan.from_pool,
        plan.shadow_draft,
        plan.deadline_s,
        plan.reason.binding.value,
        plan.reason.note,
        dict(plan.reason.numbers),
        stop_digest(plan.stop, plan.tree),
        plan.coupled,
    )


def _told(stop: StopRecord) -> tuple[object, ...]:
    return (stop.cause.value, stop.binding.value, stop.note, dict(stop.numbers))


def _stopped(stop: PlannedStop | None) -> tuple[object, ...] | None:
    if stop is None:
        return None
    return (stop.cause.value, stop.reason.binding.value, stop.reason.note, dict(stop.reason.numbers))
