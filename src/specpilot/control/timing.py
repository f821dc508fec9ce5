"""What fits into the time that is left, by the measured costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from specpilot.control.cost import CostModel, PassTimes
from specpilot.control.planning import TYPICAL_DRAFT, CycleView

POOL_PASSES = 2
"""Passes from the pool that a request may hope for when it shares out its time."""
SHARED_PASSES = 16
"""Passes that time is shared out to, at most."""


def fitting_draft(
    cost: CostModel,
    cap: int,
    uncached: int,
    behind: int,
    context: int,
    left_ms: float,
    plain_ms: float | None = None,
    beside: int = 0,
    sharing: int = 1,
) -> tuple[int, PassTimes | None]:
    """The longest draft, up to ``cap``, with which this pass ends in time, and the times of such a pass.

    There are no times where nothing may be drafted.

    Args:
        cost: the engine's costs.
        cap: τ's cap for other reasons.
        uncached: context tokens that the target has not cached.
        behind: context tokens that the draft has not cached.
        context: all context tokens.
        left_ms: time to the request's internal deadline.
        plain_ms: expected time of the pass with nothing drafted, where it is known already.
        beside: context tokens of the others in the pass that are not cached.
        sharing: requests in the pass.
    """
    if cap <= 0:
        return 0, None
    times = cost.pass_times(cap, uncached, behind, context, plain_ms, beside, sharing)
    if not cost.calibrated:
        return cap, times
    first, _, token, _, _ = times
    fitting = int((left_ms - first) / token)
    if fitting >= cap:
        return cap, times
    if fitting <= 0:
        return 0, None
    return fitting, cost.pass_times(fitting, uncached, behind, context, None, beside, sharing)


def fitting_nodes(cost: CostModel, view: CycleView, depth: int) -> tuple[int, float]:
    """How many nodes can be verified in time beside ``depth`` draft steps, and the time of such a pass in ms.

    At least ``depth``, for a chain of that length has its time already, and at most ``view.max_nodes``.
    """
    uncached, context = view.new_context_tokens, view.context_tokens
    most = max(depth, view.max_nodes)
    beside, sharing = view.beside_tokens, view.sharing
    first, _, token, step, verify_ms = cost.pass_times(
        most, uncached, view.draft_behind_tokens, context, None, beside, sharing
    )
    if cost.calibrated:
        node = max(token - step, 1e-9) + sharing * cost.side_ms * cost.draft_upper.ratio
        spare = view.cycle_limit_ms - first - cost.tree_ms - depth * token
        if spare < (most - depth) * node:
            nodes = depth + max(0, int(spare / node))
            verify_ms = cost.verify_ms(uncached + beside + sharing * nodes, context - uncached)
            return nodes, verify_ms * cost.verify_upper.ratio
    return most, verify_ms


def ample_time(cost: CostModel, view: CycleView) -> bool:
    """Whether the longest drafts fit into every pass that the request may get."""
    passes = view.own_passes + POOL_PASSES
    times = view.times
    if times is None or not cost.calibrated:
        return True
    return view.time_left_ms >= times[0] + (passes - 1) * times[1] + passes * view.max_draft * times[2]


def shared_draft(view: CycleView, survive: Sequence[float]) -> tuple[int, int]:
    """(τ, own passes that will fit): how to share the request's time so that it earns the most tokens.

    For a view without :func:`ample_time`. Drafting up to the deadline leaves no time for a later pass; one
    more pass costs its verification. Each number of passes that the request may get is tried with an equal
    share of the drafting that then fits; one from the pool has to be worth its price besides.

    Args:
        view: the cycle, with its times.
        survive: S_0 … S_τ for τ up to ``view.max_draft``.
    """
    cap = view.max_draft
    own = view.own_passes
    if view.times is None:
        return cap, own
    first, later, token, _, _ = view.times
    most = max(1, min(own + min(POOL_PASSES, view.pool_passes), SHARED_PASSES, view.remaining_tokens))
    if view.time_left_ms >= first + (most - 1) * later + most * cap * token:
        return cap, own
    earned = list(accumulate(survive))
    best, answer = -math.inf, (cap, own)
    for passes in range(1, most + 1):
        spare = view.time_left_ms - first - (passes - 1) * later
        if passes > 1 and spare < 0.0:
            break
        each, over = divmod(min(max(0, int(spare / token)), passes * cap), passes)
        total = (passes - over) * earned[each] + (over * earned[each + 1] if over else 0.0)
        total = min(total, view.remaining_tokens) - view.pass_price * max(0, passes - own)
        if total > best:
            best, answer = total, (each + (over > 0), own if passes == most else min(own, passes))
    return answer


def shared_cost(cost: CostModel, sharing: int) -> float:
    """What a pass that ``sharing`` requests share costs each of them, as a share of a pass of its own."""
    if sharing <= 1:
        return 1.0
    return min(1.0, cost.verify_ms(sharing * TYPICAL_DRAFT) / (sharing * cost.verify_ms(TYPICAL_DRAFT)))
