"""What fits into the time that is left, by the measured costs."""

from __future__ import annotations

from specpilot.control.cost import CostModel

MAX_SHARED_PASSES = 8
"""Later passes that a request's remaining time is shared with, at most."""
TYPICAL_DRAFT = 4
"""τ that work not planned yet is taken to draft."""


def fitting_draft(
    cost: CostModel, cap: int, own: int, uncached: int, behind: int, context: int, left_ms: float
) -> int:
    """The longest draft, up to ``cap``, that leaves time for this pass and for the request's later ones.

    By the upper quantiles. Time is shared equally among as many of its ``own`` passes as still fit with
    a draft each: two short blocks yield more than one that runs up to the deadline.

    Args:
        cost: the engine's costs.
        cap: τ's cap for other reasons.
        own: passes of its own that the request may still start.
        uncached: context tokens that the target has not cached.
        behind: context tokens that the draft has not cached.
        context: all context tokens.
        left_ms: time to the request's internal deadline.
    """
    if not cost.calibrated or cap <= 0:
        return cap
    step = cost.draft_step_ms * cost.draft_upper.ratio
    first = cost.verify_ms(uncached + cap, context - uncached) + cost.draft_prefill_ms(behind - 1)
    later = cost.verify_ms(1 + cap, context)
    for passes in range(max(1, min(own, MAX_SHARED_PASSES)), 0, -1):
        verify = (first + (passes - 1) * later) * cost.verify_upper.ratio + passes * cost.host_ms
        fits = int((left_ms - verify) / (passes * step))
        if fits >= 1 or passes == 1:
            return min(cap, max(0, fits))
    return 0


def work_ms(cost: CostModel, own: int, prompt_tokens: int, uncached: int, *, started: bool) -> float:
    """Expected engine time that a request still needs for its ``own`` passes; the first prefills."""
    cycle = cost.verify_ms(TYPICAL_DRAFT, prompt_tokens) + TYPICAL_DRAFT * cost.draft_step_ms + cost.host_ms
    if started:
        return own * cycle
    first = cost.verify_ms(uncached + TYPICAL_DRAFT) + cost.draft_prefill_ms(uncached)
    return first + max(0, own - 1) * cycle


def shared_cost(cost: CostModel, sharing: int) -> float:
    """What a pass that ``sharing`` requests share costs each of them, as a share of a pass of its own."""
    if sharing <= 1:
        return 1.0
    return min(1.0, cost.verify_ms(sharing * TYPICAL_DRAFT) / (sharing * cost.verify_ms(TYPICAL_DRAFT)))
