"""One cycle for a batch of requests: draft → verify (one target pass for all) → accept → commit → emit.

The part of a live run that touches models; *which* requests run and how long they draft is decided
elsewhere (:mod:`specpilot.decoding.loop`, the controller). What can go wrong and what then happens:

* the drafter fails in any way: this very cycle decodes with the target alone, and says so;
* the target's pass fails: the requests in that pass end with ``error``, all others are unharmed;
* one request's acceptance, commit, text or judging fails: that request alone ends with ``error``, and keeps
  what was appended until then, all of it verified;
* whoever is told of the evidence fails: the log says so, and nothing else happens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specpilot.control.types import CycleOutcome, CyclePlan, StopCause
from specpilot.decoding.evidence import cycle_evidence
from specpilot.decoding.judged import judged_lookup, judged_ranks
from specpilot.decoding.request import CycleDetail, DecodingRequest
from specpilot.decoding.types import Acceptance, Draft, Verification
from specpilot.drafters.base import Drafter, DraftItem
from specpilot.drafters.guarded import GuardedDrafter
from specpilot.targets.base import Target, VerifyItem
from specpilot.trace.cycles import CycleEvidence

LOG = logging.getLogger("specpilot.decoding")


@dataclass(slots=True)
class _Turn:
    """One request's part of the cycle that is running; the second half is filled in after the pass."""

    plan: CyclePlan
    request: DecodingRequest
    draft: Draft
    accepted: int = 0
    side_accepted: int = 0
    emitted: int = 0
    verify_ms: float = 0.0
    new_tokens: int = 0
    context_tokens: int = 0
    side_judged: tuple[tuple[int, float, bool], ...] = ()
    lookup_judged: tuple[float, int, int] | None = None

    @property
    def main(self) -> int:
        """How many nodes lead the block as the drafter's own chain."""
        return self.draft.block.main_chain if self.draft.main is None else self.draft.main

    @property
    def drafted(self) -> int:
        """Draft steps made."""
        draft = self.draft
        return max(len(draft.confidences), draft.block.depth) if draft.steps is None else draft.steps


class LiveExecutor:
    """Runs cycles on a real target and drafter (the ``Executor`` of live runs).

    Args:
        target: verifies.
        drafter: proposes; ``None``: plain target decoding whatever is planned. One that is not a
            :class:`~specpilot.drafters.guarded.GuardedDrafter` is wrapped in one without a time-out.
        keep_details: record each cycle token by token in ``request.details``.
        evidence: told of each settled cycle what only the engine knows, by cycle id
            (:meth:`specpilot.trace.recorder.TraceRecorder.evidence`); ``None``: it is not computed.
        evidence_ids: token ids are part of it.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None = None,
        *,
        keep_details: bool = False,
        evidence: Callable[[int, CycleEvidence], None] | None = None,
        evidence_ids: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if drafter is not None and not isinstance(drafter, GuardedDrafter):
            drafter = GuardedDrafter(drafter, None, target.vocab_size)
        self._target = target
        self._drafter = drafter
        self._keep_details = keep_details
        self._evidence = evidence
        self._evidence_ids = evidence_ids
        self._clock = clock
        self._requests: dict[str, DecodingRequest] = {}

    def report_evidence(self, told: Callable[[int, CycleEvidence], None]) -> None:
        """Tell someone of each settled cycle what only the engine knows, from now on."""
        self._evidence = told

    def add(self, request: DecodingRequest) -> None:
        """Hand in a request, before it is opened; it stays the caller's to read.

        Raises:
            ValueError: if its id is in use.
        """
        if request.request_id in self._requests:
            raise ValueError(f"request_id: {request.request_id!r} is in flight; ids are used once at a time")
        self._requests[request.request_id] = request

    def open(self, request_id: str) -> int:
        """Take up a request; returns how many prompt tokens the target has cached.

        Raises:
            ValueError: if it was not added.
        """
        request = self._request(request_id)
        cached = self._target.open(request_id, request.prompt, request.session_id)
        if self._drafter is not None:
            self._drafter.open(request_id, request.prompt, request.session_id)
        return cached

    def close(self, request_id: str, cause: StopCause) -> None:
        """The request is over; its caches go to its session. Unknown ids are ignored."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        request.end(cause)
        self._target.close(request_id)
        if self._drafter is not None:
            self._drafter.close(request_id)

    def run(self, plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
        """One cycle for each plan, all in one target pass; outcomes in the plans' order.

        In a shared pass ``verify_ms`` and ``host_ms`` are everybody's, and so is a draft step's time.

        Raises:
            ValueError: for a request that was not added, or that has ended.
        """
        began = self._clock()
        requests = [self._running(plan.request_id) for plan in plans]
        drafts = self._draft(plans, requests, began)
        turns = [_Turn(*parts) for parts in zip(plans, requests, drafts, strict=True)]
        verifying = self._clock()
        try:
            verified = self._target.verify(
                [VerifyItem(turn.plan.request_id, turn.request.context, turn.draft.block) for turn in turns]
            )
            if len(verified) != len(turns):
                raise ValueError(
                    f"target: {len(verified)} answers for {len(turns)} requests; give one for each"
                )
        except Exception as error:
            for turn in turns:
                turn.verify_ms = (self._clock() - verifying) * 1000.0
                turn.new_tokens = len(turn.draft.block) + 1
                _fail(turn.request, error)
        else:
            for turn, part in zip(turns, verified, strict=True):
                self._settle(turn, part)
        return self._outcomes(turns, began)

    def _draft(
        self, plans: Sequence[CyclePlan], requests: Sequence[DecodingRequest], began: float
    ) -> list[Draft]:
        drafts = [Draft()] * len(plans)
        if self._drafter is None:
            return drafts
        places: list[int] = []
        items: list[DraftItem] = []
        for place, (plan, request) in enumerate(zip(plans, requests, strict=True)):
            if plan.coupled:
                request.rule = request.rule.coupled()
            room = self._target.capabilities.context_limit - len(request.context)
            depth, nodes = min(plan.max_draft, room), min(plan.max_nodes, room)
            if depth >= 1 and nodes >= 1:
                elapsed_ms = (self._clock() - began) * 1000.0
                places.append(place)
                items.append(
                    DraftItem(
                        plan.request_id,
                        request.context,
                        depth,
                        nodes,
                        plan.stop,
                        request.rule,
                        elapsed_ms,
                        plan.tree,
                    )
                )
        if items:
            for place, draft in zip(places, self._drafter.propose(items), strict=True):
                drafts[place] = draft
        return drafts

    def _settle(self, turn: _Turn, verified: Verification) -> None:
        """Accept, commit, emit; what fails here is this request's alone."""
        request, draft = turn.request, turn.draft
        block = draft.block
        turn.verify_ms = verified.verify_ms
        turn.new_tokens = verified.new_tokens
        turn.context_tokens = verified.context_tokens
        try:
            accepted = request.rule.accept(block, draft.q, verified.logits, len(request.context))
            self._target.commit(request.request_id, accepted.path)
            tokens = [block.token_ids[node] for node in accepted.path]
        except Exception as error:
            _fail(request, error)
            return
        before = request.emitted
        try:
            request.emit([*tokens, accepted.next_token])
        except Exception as error:
            _fail(request, error)
        turn.emitted = request.emitted - before
        # Accepted tokens beyond the output's end were never shown and do not count.
        shown = accepted.path[: turn.emitted]
        # A path leaves the main chain once and for all.
        main = turn.main
        turn.accepted = len(shown) if main == len(block) else sum(node < main for node in shown)
        turn.side_accepted = len(shown) - turn.accepted
        try:
            if draft.ranks:
                turn.side_judged = judged_ranks(draft, accepted)
            if draft.looked_up is not None:
                appended = request.context[len(request.context) - turn.emitted :]
                turn.lookup_judged = judged_lookup(draft.looked_up, appended)
        except Exception as error:
            _fail(request, error)
        if self._evidence is not None:
            self._tell(self._evidence, turn, verified, accepted)
        if self._keep_details:
            request.details.append(
                CycleDetail(
                    cycle_id=turn.plan.cycle_id,
                    max_draft=turn.plan.max_draft,
                    reason=turn.plan.reason,
                    block=block,
                    accepted=tuple(tokens),
                    own=accepted.next_token,
                    full=(accepted.path[-1] if accepted.path else -1) not in block.parents,
                    emitted=tuple(request.context[len(request.context) - turn.emitted :]),
                    fault=draft.fault,
                    path=accepted.path,
                    drafter=draft.drafter,
                )
            )

    def _tell(
        self,
        told: Callable[[int, CycleEvidence], None],
        turn: _Turn,
        verified: Verification,
        accepted: Acceptance,
    ) -> None:
        """Evidence is for onlookers: the request goes on without it."""
        cycle_id = turn.plan.cycle_id
        try:
            told(
                cycle_id,
                cycle_evidence(
                    turn.request,
                    turn.draft,
                    verified,
                    accepted,
                    turn.emitted,
                    cycle_id=cycle_id,
                    ids=self._evidence_ids,
                ),
            )
        except Exception:
            LOG.exception("the evidence of cycle %d could not be told; the request goes on", cycle_id)

    def _outcomes(self, turns: Sequence[_Turn], began: float) -> list[CycleOutcome]:
        width = sum([turn.new_tokens for turn in turns]) if len(turns) > 1 else 0
        drafting = max([turn.draft.draft_ms for turn in turns], default=0.0)
        drafting += sum([turn.draft.prefill_ms for turn in turns])
        verifying = max([turn.verify_ms for turn in turns], default=0.0)
        host_ms = max(0.0, (self._clock() - began) * 1000.0 - drafting - verifying)
        return [
            CycleOutcome(
                cycle_id=turn.plan.cycle_id,
                drafted=turn.drafted,
                proposed=turn.main,
                accepted=turn.accepted,
                emitted=turn.emitted,
                confidences=turn.draft.confidences,
                draft_ms=turn.draft.draft_ms,
                draft_prefill_ms=turn.draft.prefill_ms,
                draft_prefill_tokens=turn.draft.prefill_tokens,
                verify_ms=turn.verify_ms,
                verified_tokens=turn.new_tokens,
                context_tokens=turn.context_tokens,
                batch_size=len(turns),
                batch_tokens=width,
                host_ms=host_ms,
                ended=turn.request.ended,
                draft_fault=turn.draft.fault,
                side_proposed=len(turn.draft.block) - turn.main,
                side_accepted=turn.side_accepted,
                side_judged=turn.side_judged,
                side_worth=turn.draft.side_worth,
                lookup_judged=turn.lookup_judged,
                drafter=turn.draft.drafter,
            )
            for turn in turns
        ]

    def _request(self, request_id: str) -> DecodingRequest:
        try:
            return self._requests[request_id]
        except KeyError:
            raise ValueError(f"request_id: {request_id!r} is unknown; add the request first") from None

    def _running(self, request_id: str) -> DecodingRequest:
        request = self._request(request_id)
        if request.ended is not None:
            raise ValueError(f"request_id: {request_id!r} has ended ({request.ended.value}); close it")
        return request


def _fail(request: DecodingRequest, error: Exception) -> None:
    """The pass was started and is spent, and nothing more of it may be shown."""
    request.end(StopCause.ERROR, f"{type(error).__name__}: {error}")
