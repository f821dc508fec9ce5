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
* not valid for EAGLE/MTP heads, lookup drafters, sliding windows or token trees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specpilot.control.types import CycleOutcome, CyclePlan, StopCause
from specpilot.simulation.costs import EngineCosts
from specpilot.trace.agreement import AgreementTrace

LIMITS = (
    "Accepted lengths are exact for greedy decoding with a token-level draft model and chain blocks.",
    "Confidences beyond a block's first disagreement are the on-path ones (off_path_confidences).",
    "Unknown bits are drawn from a fitted hazard, seeded (drawn_bits).",
    "Times are the measured medians: no noise and no other load.",
    "Not valid for EAGLE or MTP heads, lookup drafters, sliding windows or token trees.",
)


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """One request of a replay: a trace without unknown bits, and how it is asked for.

    ``cached_tokens`` is how much of the prompt a session's caches hold (both models').
    """

    request_id: str
    trace: AgreementTrace
    max_tokens: int
    arrival_s: float = 0.0
    cached_tokens: int = 0

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


class TraceExecutor:
    """Runs cycles by looking them up; the clock is whoever's: each cycle's times are in its outcome.

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
        )
        return cached

    def run(self, plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
        """One cycle for each plan, one after the other."""
        return [self._cycle(plan, self._states[plan.request_id]) for plan in plans]

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
        prefill_tokens = draft_rows = 0
        prefill_ms = draft_ms = 0.0
        confidences: list[float] = []
        proposed = 0
        if plan.max_draft:
            # The first step feeds the last known token; whatever else is missing is prefill.
            prefill_tokens = max(0, context - 1 - state.draft_rows)
            prefill_ms = costs.draft_prefill(prefill_tokens) if prefill_tokens else 0.0
            step_ms = costs.draft_step(context)
            drafted = self._draft(plan, state, start, prefill_ms, step_ms, run, confidences)
            proposed = drafted[1]
            draft_ms = drafted[0] * step_ms
            draft_rows = drafted[0]
        accepted = min(run, proposed)
        emitted = min(accepted + 1, left)
        new_tokens = max(1, context - state.target_rows) + proposed
        verify_ms = costs.verify_ms(new_tokens, state.target_rows)
        cached = state.target_rows
        state.emitted = start + emitted
        # Rows of the accepted path stay; the token after it has not been fed yet.
        state.target_rows = context + accepted
        if draft_rows:
            state.draft_rows = context + min(accepted, draft_rows - 1)
        ended = None
        if state.emitted >= state.length:
            ended = StopCause.EOS if state.ends_with_eos else StopCause.MAX_TOKENS
        return CycleOutcome(
            cycle_id=plan.cycle_id,
            drafted=draft_rows,
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
        )

    def _draft(
        self,
        plan: CyclePlan,
        state: _State,
        start: int,
        elapsed_ms: float,
        step_ms: float,
        run: int,
        confidences: list[float],
    ) -> tuple[int, int]:
        """(drafted, proposed) under the plan's stop rule; fills in the confidences."""
        stop, known = plan.stop, state.confidence
        stop.start()
        drafted = proposed = 0
        while proposed < plan.max_draft and stop.draft_on(proposed + 1, elapsed_ms):
            drafted += 1
            elapsed_ms += step_ms
            if known:
                position = start + drafted - 1
                if drafted > run + 1 or position >= len(known):
                    self.off_path_confidences += 1
                    position = min(position, len(known) - 1)
                confidences.append(known[position])
                if not stop.keep(drafted, known[position]):
                    break
            proposed += 1
        return drafted, proposed
