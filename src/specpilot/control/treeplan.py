"""A chain's choice becomes a token tree's: how large it may be, and the rule that the drafter grows it by."""

from __future__ import annotations

from dataclasses import replace

from specpilot.control.contexts import Context
from specpilot.control.cost import CostModel
from specpilot.control.horizon import Decision
from specpilot.control.knowledge import Knowledge
from specpilot.control.planning import Choice, CycleView
from specpilot.control.timing import fitting_nodes
from specpilot.control.tree import RANKS, LookupRule, TreeRule


def with_tree(
    known: Knowledge,
    cost: CostModel,
    view: CycleView,
    context: Context,
    decision: Decision,
    choice: Choice,
    *,
    branching: bool,
    is_open: bool,
) -> Choice:
    """The same choice with a tree as large as time allows.

    Not ``branching``, the tree holds the draft's first choices and looked-up text only.
    """
    depth = choice.max_draft
    nodes, verify_ms = fitting_nodes(cost, view, depth)
    if not context.ranks:
        calibration = known.ranks_of(context.source)
        slope = calibration.slope
        context.ranks = tuple([(at, slope) for at in calibration.intercepts()[: RANKS - 1]])
    lookup = None
    if view.max_lookup:
        lookup = context.lookup
        if lookup is None:
            lookup = LookupRule(known.lookup.intercepts(context.bucket), known.lookup.slope, 0)
            context.lookup = lookup
        lookup = LookupRule(lookup.intercepts, lookup.slope, min(view.max_lookup, nodes))
    tree = TreeRule(
        worth=decision.worth,
        node_price=decision.node_price,
        side_price=decision.side_price,
        ranks=context.ranks,
        model_depth=depth,
        first_at=decision.first_at,
        lookup=lookup,
        open=is_open,
        branching=branching,
    )
    if branching:
        wider_ms = (context.branches.breadth - 1.0) * cost.side_ms
        choice.stop.step_ms += wider_ms * cost.draft_upper.ratio
    choice.stop.verify_ms, choice.stop.time_limit_ms = verify_ms, view.cycle_limit_ms
    deepest = depth if lookup is None else max(depth, lookup.depth)
    return replace(choice, max_draft=deepest, tree=tree, max_nodes=nodes)
