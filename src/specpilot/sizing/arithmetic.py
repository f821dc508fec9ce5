"""Closed forms: what acceptance and costs give, without load, deadline or budget.

One cycle drafts τ tokens for s + τ · d ms (s: what the first step takes beyond a later one) and verifies
them in one pass of v(τ + 1) ms; it emits E(τ) = Σ_{j=0}^{τ} S_j tokens, S_j = h_1 · … · h_j (Leviathan et al.
2023 for a flat h: E = (1 − α^{τ+1}) ÷ (1 − α)). Speed-up is over plain decoding with the same target:
E(τ) · v(1) ÷ (s + τ · d + v(τ + 1)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from specpilot.simulation.costs import EngineCosts

MAX_DRAFT = 16
"""τ is looked for up to here, as everywhere."""


@dataclass(frozen=True, slots=True)
class PassCosts:
    """What one cycle takes at a context length, in ms: a draft step, a target pass by its width, and what a
    block's first draft step takes beyond that.
    """

    draft_ms: float
    verify_ms: Callable[[int], float]
    start_ms: float = 0.0

    @classmethod
    def at(cls, costs: EngineCosts, context_tokens: int) -> PassCosts:
        """Measured costs behind so many cached tokens; the host's time is the pass's."""
        return cls(
            costs.draft_step(context_tokens),
            lambda width: costs.verify_ms(width, context_tokens) + costs.host,
            costs.draft_start,
        )

    def cycle_ms(self, tau: int) -> float:
        """A cycle that drafts τ tokens and verifies them."""
        return (self.start_ms + tau * self.draft_ms if tau else 0.0) + self.verify_ms(tau + 1)


@dataclass(frozen=True, slots=True)
class Limits:
    """What no tuning can pass: speed-ups over plain decoding, each with the τ that gives it."""

    free_draft: tuple[float, int]
    """These acceptances from a draft that costs nothing."""
    perfect_draft: tuple[float, int]
    """This draft's cost with every token accepted."""

    @classmethod
    def of(cls, hazards: Sequence[float], costs: PassCosts) -> Limits:
        """The limits of a draft with these acceptances and costs."""
        return cls(
            best_length(hazards, PassCosts(0.0, costs.verify_ms)),
            best_length((1.0,) * MAX_DRAFT, costs),
        )


def survival(hazards: Sequence[float], tau: int) -> list[float]:
    """S_0 … S_τ; the last hazard stands for all positions beyond the list.

    Raises:
        ValueError: for no hazards or one outside 0…1.
    """
    check(hazards)
    longer = [hazards[min(position, len(hazards) - 1)] for position in range(tau)]
    return list(accumulate(longer, mul, initial=1.0))


def check(hazards: Sequence[float], name: str = "acceptance") -> None:
    """Refuse what is no list of probabilities.

    Raises:
        ValueError: for no hazards or one outside 0…1.
    """
    if not hazards:
        raise ValueError(f"{name}: the list is empty; give P(accepted | reached) by position, e.g. 0.7")
    for place, value in enumerate(hazards):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}[{place}]: {value} is not in 0…1; give a probability")


def tokens_per_pass(hazards: Sequence[float], tau: int) -> float:
    """E(τ): tokens that a block of τ is expected to emit, the bonus or recovered token included."""
    return sum(survival(hazards, tau))


def speed_up(hazards: Sequence[float], tau: int, costs: PassCosts) -> float:
    """Tokens per ms with τ over those of plain decoding."""
    return tokens_per_pass(hazards, tau) * costs.verify_ms(1) / costs.cycle_ms(tau)


def best_length(hazards: Sequence[float], costs: PassCosts, cap: int = MAX_DRAFT) -> tuple[float, int]:
    """(speed-up, τ) of the fastest block length, 0 for plain decoding; the shorter one at a tie."""
    return max(((speed_up(hazards, tau, costs), tau) for tau in range(cap + 1)), key=lambda x: (x[0], -x[1]))


def break_even_acceptance(costs: PassCosts) -> float | None:
    """The least acceptance, the same at every position, at which some τ ≥ 1 is faster than plain decoding.

    ``None`` where not even a perfect draft is.
    """

    def pays(alpha: float) -> bool:
        return any(speed_up((alpha,), tau, costs) >= 1.0 for tau in range(1, MAX_DRAFT + 1))

    return _least(pays)


def break_even_draft_ms(hazards: Sequence[float], costs: PassCosts) -> float:
    """The dearest draft step at which some τ ≥ 1 is as fast as plain decoding; below 0 where none is."""
    plain = costs.verify_ms(1)
    return max(
        (tokens_per_pass(hazards, tau) * plain - costs.verify_ms(tau + 1) - costs.start_ms) / tau
        for tau in range(1, MAX_DRAFT + 1)
    )


def needed_acceptance(tokens: float, passes: float) -> float | None:
    """The flat acceptance at which so many passes of τ = 16 give ``tokens`` tokens; ``None`` if none does."""
    return _least(lambda alpha: passes * tokens_per_pass((alpha,), MAX_DRAFT) >= tokens)


def _least(holds: Callable[[float], bool]) -> float | None:
    """The least α in 0…1 at which a condition that α only helps comes true."""
    if not holds(1.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
