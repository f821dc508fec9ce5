"""The seam between the controller (which enforces the promises) and a planner (which chooses τ).

The controller owns admission, the pass ledger, deadlines and the circuit breaker, so every planner
— specpilot's own or a published rule used as a baseline — plays under exactly the same constraints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from specpilot.control.cost import PassTimes
from specpilot.control.stop import StopRule
from specpilot.control.tree import TreeRule
from specpilot.control.types import AcceptanceName, Binding, CycleOutcome, Reason

TYPICAL_DRAFT = 4
"""τ that work not planned yet is taken to draft."""


@dataclass(slots=True)  # not frozen: one is made for every decision, and a frozen one takes 3 µs longer
class CycleView:
    """What a planner may look at when it chooses one cycle of one request; not to be changed.

    ``context_tokens`` counts prompt and output so far; ``new_context_tokens`` of them are not in the
    target's cache yet (the prompt before the first pass, one token later), ``draft_behind_tokens`` not in
    the draft's (more after plain cycles, which leave it behind). ``remaining_tokens`` are still wanted
    (max_tokens − emitted); ``own_passes`` are the request's own unspent passes, this one included if it is
    not drawn from the pool (``from_pool``). ``max_draft`` is the cap on τ from the configuration, the
    request, the context limit and the deadline. ``time_left_ms`` is until the request's internal deadline;
    ``cycle_limit_ms`` is what this cycle may take, less where others wait their first pass. ``waiting``
    counts other requests that have a cycle to run now. ``pass_price`` is λ in tokens,
    ``pool_passes`` are whole passes in the pool. ``speculation_allowed`` is False while the drafter's
    breaker is open. ``times`` are those of a pass that drafts up to ``max_draft`` (``None`` where that is
    0). ``max_nodes`` caps a token tree (0: chains only), ``max_lookup`` the tokens of looked-up text in it.
    ``sharing`` requests are planned for the same target pass, this one included; the others bring
    ``beside_tokens`` context tokens that are not in the target's cache yet. ``acceptance`` is the rule that
    the request began with.
    """

    request_id: str
    drafter: str
    prompt_tokens: int
    context_tokens: int
    new_context_tokens: int
    draft_behind_tokens: int
    emitted_tokens: int
    remaining_tokens: int
    cycle_limit_ms: float
    own_passes: int
    from_pool: bool
    max_draft: int
    time_left_ms: float
    waiting: int
    pass_price: float
    speculation_allowed: bool = True
    pool_passes: int = 0
    times: PassTimes | None = None
    max_nodes: int = 0
    max_lookup: int = 0
    sharing: int = 1
    beside_tokens: int = 0
    acceptance: AcceptanceName = "greedy"

    @property
    def typical_ms(self) -> float:
        """The cycle's time with a few tokens drafted, by the upper quantiles; 0 where it is not known."""
        times = self.times
        return 0.0 if times is None else times[0] + min(TYPICAL_DRAFT, self.max_draft) * times[2]


@dataclass(slots=True)
class Choice:
    """A planner's answer: how deep to draft at most, when to stop by itself, and why; not to be changed.

    ``bid_tokens`` is the expected gain of this pass in tokens; the controller grants a pass from the
    pool only for a bid that is worth its price. ``end`` asks to end the request instead. ``shadow_draft``
    is what the policy would have drafted where a static τ is run. With ``tree`` the block may branch, up to
    ``max_nodes`` nodes. ``coupled``: as :attr:`~specpilot.control.types.CyclePlan.coupled`.
    """

    max_draft: int
    stop: StopRule
    reason: Reason
    bid_tokens: float = 1.0
    end: bool = False
    shadow_draft: int | None = None
    tree: TreeRule | None = None
    max_nodes: int = 0
    coupled: bool = False


def static_choice(view: CycleView, draft: int, shadow: Choice | None) -> Choice:
    """A static τ; ``shadow`` is what the policy would have done, recorded beside it."""
    depth = min(draft, view.max_draft) if view.speculation_allowed else 0
    if shadow is None:
        return Choice(depth, StopRule(), Reason(Binding.MAX, note="static"))
    planned = 0 if shadow.end else shadow.max_draft
    return Choice(depth, StopRule(), shadow.reason, shadow.bid_tokens, shadow_draft=planned)


class Planner(Protocol):
    """Chooses τ. Pure: no clock, random source or I/O; the same calls give the same answers."""

    @property
    def name(self) -> str: ...

    def admitted(self, request_id: str, prompt_tokens: int, *, now: float) -> None:
        """A request was admitted."""
        ...

    def choose(self, view: CycleView, *, now: float) -> Choice:
        """Plan one cycle. ``choice.max_draft`` must not exceed ``view.max_draft``."""
        ...

    def observe(self, view: CycleView, outcome: CycleOutcome, *, now: float) -> None:
        """Learn from a finished cycle; ``view`` is what :meth:`choose` saw."""
        ...

    def discarded(self, request_id: str) -> None:
        """The choice just made for this request will not be run: a static τ is (shadow mode)."""
        ...

    def finished(self, request_id: str, *, now: float) -> None:
        """The request has ended; forget what belongs to it alone."""
        ...
