"""Exact replay: any chain policy over agreement traces, with the engine's measured costs.

The same controller and the same serving loop as live; only the executor differs: instead of running two
models it looks the accepted length up in the agreement bits and charges measured times.

What is exact and what is not (stated again in every replay's output):

* the accepted length of a block of given length is exact under greedy decoding with a token-level draft;
* a confidence beyond the first disagreement would need the draft's own (wrong) path; the on-path one is
  taken instead, and counted (``off_path_confidences``). It can only change how long a block is drafted
  after it has failed already, never what is accepted;
* unknown bits are drawn from a fitted hazard, seeded and counted (``drawn_bits``);
* times are medians from a table: no noise, no other load on the machine;
* session reuse takes the cached tokens of the request, whatever was evicted meanwhile;
* a draft outage (``draft_fails``) raises at once: a hanging drafter would cost its time-out instead;
* token trees and looked-up text are replayed from recorded choices; what the draft would say behind a wrong
  node is taken from the same output position (:mod:`specpilot.simulation.tree_replay`), counted with the
  rest;
* not valid for EAGLE/MTP heads, other drafters, or sliding windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specpilot.control.stop import StopRule
from specpilot.control.types import CycleOutcome, CyclePlan, StopCause
from specpilot.drafters.lookup import LookupDrafter
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.tree_replay import replay_tree
from specpilot.trace.agreement import AgreementTrace

STEP_TOKENS = 2
"""Feeding this many tokens still counts as a draft step (after a full accept two are fed), as live."""
OUTAGE = "exception: the simulated drafter is down"
"""The fault of a drafter that raises; it took one step to find out."""
LIMITS = (
    "Accepted lengths are exact for greedy decoding with a token-level draft model and chain blocks.",
    "Confidences beyond a block's first disagreement are the on-path ones (off_path_confidences).",
    "Unknown bits are drawn from a fitted hazard, seeded (drawn_bits).",
    "Times are the measured medians: no noise and no other load.",
    "Of token trees the draft's choices behind a wrong node are those on the path (off_path_confidences).",
    "Not valid for EAGLE or MTP heads or sliding windows.",
)


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """One request of a replay: a trace without unknown bits, and how it is asked for.

    ``cached_tokens`` is how much of the prompt a session's caches hold (both models'). With
    ``draft_fails`` its drafter raises whenever it is asked: an outage.
    """

    request_id: str
    trace: AgreementTrace
    max_tokens: int
    arrival_s: float = 0.0
    cached_tokens: int = 0
    draft_fails: bool = False

    @property
    def length(self) -> int:
        """Most tokens the request can get: what it asks for, or what was recorded."""
        return min(self.max_tokens, len(self.trace.agree))


@dataclass(slots=True)
class _State:
    """Where a request stands: tokens emitted, and rows in the two models' caches."""

    agree: Sequence[int | None]
    confidence: Sequence[float]
    prompt_tokens: int
    length: int
    ends_with_eos: bool
    emitted: int
    target_rows: int
    draft_rows: int
    draft_fails: bool
    trace: AgreementTrace


class TraceExecutor:
    """Runs cycles by looking them up (an :class:`~specpilot.decoding.seams.Executor`); the virtual clock
    moves by the times in their outcomes.

    Args:
        requests: by request id.
        costs: the engine's times.
    """

    def __init__(self, requests: Mapping[str, ReplayRequest], costs: EngineCosts) -> None:
        self._requests = requests
        self._costs = costs
        self._states: dict[str, _State] = {}
        self.off_path_confidences = 0

    def open(self, request_id: str) -> int:
        """Take up a request; returns how many prompt tokens need no prefill."""
        request = self._requests[request_id]
        trace = request.trace
        cached = max(0, min(request.cached_tokens, trace.prompt_tokens - 1))
        self._states[request_id] = _State(
            agree=trace.agree,
            confidence=trace.confidence or (),
            prompt_tokens=trace.prompt_tokens,
            length=request.length,
            ends_with_eos=trace.ended == "eos" and len(trace.agree) <= request.max_tokens,
            emitted=0,
            target_rows=cached,
            draft_rows=cached,
            draft_fails=request.draft_fails,
            trace=trace,
        )
        return cached

    def run(self, plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
        """One cycle for each plan, one after the other."""
        return [self._cycle(plan, self._states[plan.request_id]) for plan in plans]

    def seek(self, request_id: str, emitted: int) -> None:
        """Go on from where so many tokens have been emitted."""
        self._states[request_id].emitted = emitted

    def close(self, request_id: str, cause: StopCause) -> None:
        """Let go of a request."""
        self._states.pop(request_id, None)

    def _cycle(self, plan: CyclePlan, state: _State) -> CycleOutcome:
        costs = self._costs
        start = state.emitted
        context = max(1, state.prompt_tokens + start)
        agree = state.agree
        run = 0  # the accepted length of an endless block
        left = state.length - start
        while run < plan.max_draft and run < left and agree[start + run] == 1:
            run += 1
        # A draft that proposes EOS drafts no further.
        limit = left if state.ends_with_eos and run == left else plan.max_draft
        prefill_tokens = drafted = proposed = 0
        prefill_ms = draft_ms = 0.0
        confidences: list[float] = []
        if plan.tree is not None and state.trace.shares is not None and not state.draft_fails:
            return self._tree_cycle(plan, state, left)
        plan.stop.start()
        asked = plan.max_draft > 0 and plan.stop.draft_on(1, 0.0)
        step_ms = costs.draft_step(context) if asked else 0.0
        if asked and state.draft_fails:
            draft_ms = costs.draft_ms(1, context)
        elif asked:
            fed = max(1, context - state.draft_rows)
            if fed > STEP_TOKENS:
                # The first draft pass catches up and makes a step; what is beyond a step is prefill.
                prefill_tokens = fed - 1
                prefill_ms = max(0.0, costs.draft_forward(fed) - step_ms)
            began_ms = prefill_ms + costs.draft_start
            drafted, proposed = self._draft(
                plan.stop, state, (start, run, min(plan.max_draft, limit)), (began_ms, step_ms), confidences
            )
            draft_ms = costs.draft_ms(drafted, context)
        accepted = min(run, proposed)
        emitted = min(accepted + 1, left)
        new_tokens = max(1, context - state.target_rows) + proposed
        verify_ms = costs.verify_ms(new_tokens, state.target_rows)
        cached = state.target_rows
        state.emitted = start + emitted
        # Rows of the accepted path stay; the token after it has not been fed yet.
        state.target_rows = context + accepted
        if drafted:
            # The last token drafted is never fed.
            state.draft_rows = context + min(accepted, drafted - 1)
        ended = None
        if state.emitted >= state.length:
            ended = StopCause.EOS if state.ends_with_eos else StopCause.MAX_TOKENS
        return CycleOutcome(
            cycle_id=plan.cycle_id,
            drafted=drafted,
            proposed=proposed,
            accepted=accepted,
            emitted=emitted,
            confidences=tuple(confidences),
            draft_ms=draft_ms,
            draft_prefill_ms=prefill_ms,
            draft_prefill_tokens=prefill_tokens,
            verify_ms=verify_ms,
            verified_tokens=new_tokens,
            context_tokens=cached,
            host_ms=costs.host,
            ended=ended,
            draft_fault=OUTAGE if asked and state.draft_fails else None,
        )

    def _tree_cycle(self, plan: CyclePlan, state: _State, left: int) -> CycleOutcome:
        costs, context = self._costs, max(1, state.prompt_tokens + state.emitted)
        step_ms = costs.draft_step(context)
        fed = max(1, context - state.draft_rows)
        prefill_ms = max(0.0, costs.draft_forward(fed) - step_ms) if fed > STEP_TOKENS else 0.0
        tree = replay_tree(plan, state.trace, state.emitted, left, costs, (prefill_ms, step_ms))
        self.off_path_confidences += tree.off_path
        path = tree.accepted + tree.side_accepted
        emitted = min(path + 1, left)
        new_tokens = max(1, context - state.target_rows) + tree.nodes
        cached = state.target_rows
        state.emitted += emitted
        state.target_rows = context + path
        prefilled = tree.steps > 0 and fed > STEP_TOKENS
        if tree.steps:
            # Of the draft's rows those of its main chain stay; the last of it was never fed.
            state.draft_rows = context + min(tree.accepted, tree.steps - 1)
        ended = None
        if state.emitted >= state.length:
            ended = StopCause.EOS if state.ends_with_eos else StopCause.MAX_TOKENS
        return CycleOutcome(
            cycle_id=plan.cycle_id,
            drafted=tree.steps or tree.main,
            proposed=tree.main,
            accepted=tree.accepted,
            emitted=emitted,
            confidences=tree.confidences,
            draft_ms=tree.draft_ms,
            draft_prefill_ms=prefill_ms if prefilled else 0.0,
            draft_prefill_tokens=fed - 1 if prefilled else 0,
            verify_ms=costs.verify_ms(new_tokens, cached),
            verified_tokens=new_tokens,
            context_tokens=cached,
            host_ms=costs.host,
            ended=ended,
            side_proposed=tree.nodes - tree.main,
            side_accepted=tree.side_accepted,
            side_judged=tree.side_judged,
            side_worth=tree.side_worth,
            lookup_judged=tree.lookup_judged,
            drafter=LookupDrafter.name if tree.looked_up else None,
        )

    def _draft(
        self,
        stop: StopRule,
        state: _State,
        block: tuple[int, int, int],
        times_ms: tuple[float, float],
        confidences: list[float],
    ) -> tuple[int, int]:
        """(drafted, proposed) under a stop rule that has allowed the first step; fills in the confidences.

        ``block`` is (first output position, accepted length of an endless block, most tokens),
        ``times_ms`` (what came before the first step, one step).
        """
        (start, run, limit), (elapsed_ms, step_ms) = block, times_ms
        known = state.confidence
        drafted = proposed = 0
        while True:
            drafted += 1
            elapsed_ms += step_ms
            if known:
                position = start + drafted - 1
                if drafted > run + 1 or position >= len(known):
                    self.off_path_confidences += 1
                    position = min(position, len(known) - 1)
                confidences.append(known[position])
                if not stop.keep(drafted, known[position]):
                    return drafted, proposed
            proposed += 1
            if proposed >= limit or not stop.draft_on(proposed + 1, elapsed_ms):
                return drafted, proposed
