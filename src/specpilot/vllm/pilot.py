"""The controller's books for an engine that schedules in steps and drafts at the end of each.

A step of such an engine (vLLM; not imported here) is: schedule → target pass → sample → draft for
the next step. So the drafts of a cycle exist before its plan does: the plan is made when the pass before it
has been observed, and trims them. How much to draft is asked for one step earlier
(:meth:`Pilot.draft_length`), one number for the whole batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from specpilot.control import (
    Binding,
    BudgetExhausted,
    Controller,
    CycleOutcome,
    CyclePlan,
    PlannedStop,
    RequestInfo,
    StopCause,
)
from specpilot.control.calls import ControllerLike
from specpilot.control.curves import NO_ACCIDENT

LOG = logging.getLogger("vllm.specpilot")  # below vLLM's own logger, whose handlers it so has

IDLE_RATE = 0.1
"""How far one step without drafts moves what such a step is believed to cost the drafter."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What one target pass did for one request.

    ``width`` tokens were run behind ``context`` cached ones; ``proposed`` of them were drafts, ``accepted``
    of those were confirmed, ``emitted`` tokens were appended. ``prefill``: prompt tokens were among them.
    ``drafting``: the drafter ran for this request after the pass. ``ended``: the output ended in it.
    """

    request_id: str
    width: int
    context: int
    proposed: int
    accepted: int
    emitted: int
    prefill: bool
    drafting: bool
    ended: StopCause | None = None


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One step of the engine: the whole of it, and the parts that the worker measured."""

    wall_ms: float
    target_ms: float
    draft_ms: float


@dataclass(slots=True)
class Counters:
    """Totals since the start, for metrics."""

    admitted: int = 0
    refused: int = 0
    passes: int = 0
    prefill_passes: int = 0
    plain_passes: int = 0
    physical_passes: int = 0
    drafted: int = 0
    proposed: int = 0
    accepted: int = 0
    emitted: int = 0
    unpaid: int = 0  # passes that the engine ran for requests without one left
    ended: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Tracked:
    plan: CyclePlan | None = None
    begun: bool = False
    stop: PlannedStop | None = None  # it is over after the pass that runs
    drafted: int = 0  # tokens drafted for the next pass
    draft_ms: float = 0.0  # what that took, for all that were drafted for
    catch_up_ms: float = 0.0
    catch_up_tokens: int = 0


class Pilot:
    """Tracks requests between an engine's scheduler and the controller.

    Args:
        controller: decides.
        calls: the same controller with a tap in front of it (a recorder); default: the controller.
    """

    def __init__(self, controller: Controller, calls: ControllerLike | None = None) -> None:
        self.controller = controller
        self.counters = Counters()
        self._calls: ControllerLike = calls or controller
        self._tracked: dict[str, _Tracked] = {}
        self._idle_draft_ms = 0.0
        """What the drafter takes in a step that drafts nothing; 0 until one was seen."""

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._tracked

    def admit(self, info: RequestInfo, *, now: float) -> str:
        """Take a request up; the answer is empty, or why it is refused."""
        admission = self._calls.admit(info, now=now)
        if not admission.admitted:
            self.counters.refused += 1
            return admission.reason
        self.counters.admitted += 1
        self._tracked[info.request_id] = _Tracked()
        return ""

    def plan(self, request_ids: Iterable[str], *, now: float) -> list[PlannedStop]:
        """Plan the next pass of those that have none planned; returns those that end instead."""
        asked = [name for name in request_ids if name in self._tracked and self._tracked[name].plan is None]
        if not asked:
            return []
        batch = self._calls.plan(asked, now=now)
        for plan in batch.cycles:
            self._tracked[plan.request_id].plan = plan
        return list(batch.stops)

    def unplan(self, request_ids: Iterable[str], *, now: float) -> None:
        """The engine did not schedule these after all: their planned passes cost nothing."""
        plans = []
        for name in request_ids:
            tracked = self._tracked.get(name)
            if tracked is not None and tracked.plan is not None and not tracked.begun:
                plans.append(tracked.plan.cycle_id)
                tracked.plan = None
        if plans:
            self._calls.abort(plans, now=now)

    def begin(self, request_ids: Iterable[str], *, now: float) -> None:
        """The target passes of these requests start; every one of them is withdrawn from the ledger.

        One that the engine scheduled out of turn, before it had a plan, gets it here. If it was to end
        instead, this one pass is taken from its own ones and it ends afterwards (:meth:`overdue`). If it has
        none left (:meth:`spent` tells before), the pass cannot be stopped any more and breaks the promise:
        it is counted apart, and said.
        """
        names = [name for name in request_ids if name in self._tracked]
        for stop in self.plan(names, now=now):
            try:
                self.controller.ledger.start_pass(stop.request_id)
            except BudgetExhausted as broken:
                self.counters.unpaid += 1
                LOG.error(
                    "%s: the engine runs a target pass that it has no budget for (%s); it ends after it",
                    stop.request_id,
                    broken,
                )
            self._tracked[stop.request_id].stop = stop
        begun = []
        for name in names:
            tracked = self._tracked[name]
            if tracked.plan is not None and not tracked.begun:
                tracked.begun = True
                begun.append(tracked.plan.cycle_id)
        if begun:
            self._calls.begin(begun, now=now)

    def spent(self, request_id: str) -> bool:
        """Whether the request has neither a pass planned nor one of its own left: the pool must have one.

        It had begun, and the engine has taken it back (a preemption).
        """
        tracked = self._tracked.get(request_id)
        if tracked is None or tracked.plan is not None:
            return False
        return not self.controller.ledger.own_passes(request_id)

    def draft_length(self, request_ids: Iterable[str], *, now: float) -> int:
        """How many tokens to draft for each of these requests, for their next plans.

        A probe that came due after its drafting (the one before it has just succeeded) is asked for again by
        the controller at once, before a new forecast: so its draft is made now.
        """
        controller = self.controller
        names = [name for name in request_ids if name in self._tracked]
        length = controller.expected_draft(names, now=now)
        for name in names:
            tracked = self._tracked[name]
            plan = tracked.plan
            if plan is None or tracked.drafted or plan.reason.binding is not Binding.PROBE:
                continue
            if controller.ledger.may_start_pass(name):
                length = max(length, plan.max_draft)
        return length

    def draft_limit(self, request_id: str) -> int | None:
        """τ of the request's next pass; ``None`` for a request that is not steered."""
        tracked = self._tracked.get(request_id)
        if tracked is None:
            return None
        return tracked.plan.max_draft if tracked.plan is not None else 0

    def drafted(self, request_id: str, tokens: int) -> None:
        """The drafter has proposed so many tokens for the request's next pass, before they are trimmed."""
        tracked = self._tracked.get(request_id)
        if tracked is not None:
            tracked.drafted = tokens

    def observe(self, passes: Sequence[Pass], times: StepTimes, draft_length: int, *, now: float) -> None:
        """A step is over: learn from its passes, and keep what its drafting took for the next ones."""
        width = sum(done.width for done in passes)
        host_ms = max(0.0, times.wall_ms - times.target_ms - times.draft_ms)
        outcomes = []
        self.counters.physical_passes += bool(passes)
        for done in passes:
            tracked = self._tracked.get(done.request_id)
            if tracked is None:
                continue
            self._count(done, tracked)
            if tracked.plan is None or not tracked.begun:
                continue
            outcomes.append(
                CycleOutcome(
                    cycle_id=tracked.plan.cycle_id,
                    drafted=max(tracked.drafted, done.proposed),
                    proposed=done.proposed,
                    accepted=done.accepted,
                    emitted=done.emitted,
                    draft_ms=tracked.draft_ms,
                    draft_prefill_ms=tracked.catch_up_ms,
                    draft_prefill_tokens=tracked.catch_up_tokens,
                    verify_ms=times.target_ms,
                    verified_tokens=done.width,
                    context_tokens=done.context,
                    batch_size=len(passes),
                    batch_tokens=width,
                    host_ms=host_ms,
                    ended=done.ended,
                )
            )
            tracked.plan, tracked.begun = None, False
            tracked.drafted = tracked.catch_up_tokens = 0
            tracked.draft_ms = tracked.catch_up_ms = 0.0
        if outcomes:
            self._calls.observe(outcomes, now=now)
        self._keep_draft_times(passes, times.draft_ms, draft_length)

    def overdue(self, request_ids: Iterable[str]) -> list[PlannedStop]:
        """Requests that were to end and got one more pass because the engine had scheduled it already."""
        found = (self._tracked[name].stop for name in request_ids if name in self._tracked)
        return [stop for stop in found if stop is not None]

    def finish(self, request_id: str, cause: StopCause, *, now: float) -> None:
        """The request is over; unknown ones are ignored."""
        if self._tracked.pop(request_id, None) is not None:
            self._calls.finish(request_id, cause, now=now)
            self.counters.ended[cause.value] = self.counters.ended.get(cause.value, 0) + 1

    def _count(self, done: Pass, tracked: _Tracked) -> None:
        counters = self.counters
        counters.passes += 1
        counters.prefill_passes += done.prefill
        counters.plain_passes += not done.prefill and done.proposed == 0
        counters.drafted += max(tracked.drafted, done.proposed)
        counters.proposed += done.proposed
        counters.accepted += done.accepted
        counters.emitted += done.emitted

    def _keep_draft_times(self, passes: Sequence[Pass], draft_ms: float, draft_length: int) -> None:
        """Note the step's drafting with the requests it was done for.

        Its steps are one for all of them; catching up is shared out. The drafter first runs over the
        tokens that are new to it, then steps. Where a prompt is among them the two are told apart in the
        proportion that the cost model expects. Elsewhere what a step costs that drafts nothing (vLLM runs
        the draft once even then) is not the drafts' cost: it would be paid anyway.
        """
        drafting = [done for done in passes if done.drafting and done.request_id in self._tracked]
        if not drafting or draft_ms <= 0.0:
            return
        if any(done.prefill for done in drafting):
            self._tell_apart(drafting, draft_ms, draft_length)
            return
        if draft_length:
            if draft_ms < (1.0 + NO_ACCIDENT) * self._idle_draft_ms:
                # That forward is part of this step too, so it has become faster. Else drafts would be free,
                # always be made, and it would never be seen alone again.
                self._idle_draft_ms = 0.0
            # The forward that is made anyway gives the first token: it counts as that one's step.
            catch_up = min(draft_ms, max(0.0, self._idle_draft_ms - self.controller.cost.draft_step_ms))
        else:
            seen = self._idle_draft_ms
            self._idle_draft_ms = seen + IDLE_RATE * (draft_ms - seen) if seen else draft_ms
            catch_up = draft_ms
        for done in drafting:
            tracked = self._tracked[done.request_id]
            tracked.draft_ms = draft_ms - catch_up
            if catch_up:
                tracked.catch_up_tokens, tracked.catch_up_ms = done.emitted, catch_up / len(drafting)

    def _tell_apart(self, drafting: Sequence[Pass], draft_ms: float, draft_length: int) -> None:
        cost = self.controller.cost
        step_ms = cost.draft_start_ms + draft_length * cost.draft_step_ms
        parts = []
        for done in drafting:
            tokens = done.width if done.prefill else (0 if draft_length else done.emitted)
            parts.append((tokens, cost.draft_prefill_ms(tokens)))
        expected = step_ms + sum(catch_up for _, catch_up in parts)
        if expected <= 0.0:
            return
        scale = draft_ms / expected
        for done, (tokens, catch_up) in zip(drafting, parts, strict=True):
            tracked = self._tracked[done.request_id]
            tracked.draft_ms = step_ms * scale
            tracked.catch_up_tokens, tracked.catch_up_ms = tokens, catch_up * scale
