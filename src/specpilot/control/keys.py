"""What a decision depends on, coarsely, so that requests alike share the few that a context has just made."""

from __future__ import annotations

from math import log

from specpilot.control.acceptance import survival
from specpilot.control.config import ControllerConfig
from specpilot.control.contexts import Context, Key, coarse, grid
from specpilot.control.cost import CostModel
from specpilot.control.knowledge import Knowledge
from specpilot.control.planning import CycleView
from specpilot.control.solving import NO_PRICE
from specpilot.control.timing import ample_time, shared_draft

LATER_PASSES = 16
"""Most passes that a decision looks ahead; solving more takes longer than a pass."""
CAUGHT_UP = 8
"""Tokens that a draft model catches up with in hardly more than a step."""


def decision_key(
    known: Knowledge,
    cost: CostModel,
    config: ControllerConfig,
    view: CycleView,
    context: Context,
    theta: float,
    *,
    keep: bool,
) -> Key:
    """The key of the decision for a view at this price of time.

    Prices are on a grid of a tenth, widths of a fifth and shifts of a quarter of a logit. Without ``keep``
    nothing is changed by asking.
    """
    posterior = known.posteriors.get(view.request_id)
    # How much easier this request is than others so far: logit units, four to one.
    shift = round(known.shift(context, posterior) * 4.0) if posterior else 0
    ceiling, own = view.max_draft, view.own_passes
    if not ample_time(cost, view):
        hazards = known.hazards(context, ceiling, keep=keep)
        ceiling, own = shared_draft(view, survival(hazards, shift / 4.0))
    later = own if view.from_pool else own - 1
    remaining = view.remaining_tokens
    price = round(log(theta) * 10.0) if theta > 0.0 else NO_PRICE
    width, behind = grid(view.new_context_tokens), grid(view.draft_behind_tokens)
    wanted = 0
    if later >= remaining:
        # A pass for each token: only time is scarce, and what lies beyond two blocks changes nothing.
        # Nor does its price, nearly: all tokens come anyway, and every way to them is paid in time. So
        # what is decided for many tokens holds for few, cut to their number.
        if ceiling == remaining - 1:
            ceiling = config.max_draft
        wanted = later = coarse(2 * (max(ceiling, view.max_lookup) + 1) + 1)
        price = price // 5 * 5
        behind = behind if behind > CAUGHT_UP else 1
    elif later > 0:
        if later > 1:
            # The more passes, the less each token of this one counts. Rounded up, for a block that falls
            # one token short of the end costs a pass; what is too long is cut to the view's ceiling.
            may_end, remaining = ceiling == remaining - 1, -coarse(-remaining)
            if may_end:
                ceiling = min(remaining - 1, config.max_draft)
                remaining = ceiling + 1
        wanted = min(remaining, (later + 1) * (max(ceiling, view.max_lookup) + 1) + 1)
        if later > LATER_PASSES:
            # Tokens are as scarce in so many passes as in all of them.
            wanted = max(round(wanted * (LATER_PASSES + 1) / (later + 1)), LATER_PASSES, ceiling) + 1
            later = LATER_PASSES
        else:
            later = coarse(later)
    matched = known.matches.get(view.request_id, 0)
    sharing, beside = view.sharing, view.beside_tokens
    if sharing > 1:
        sharing, beside = grid(sharing), grid(beside)
    return ceiling, wanted, later, price, width, behind, shift, matched, beside, sharing
