"""Solving one decision: from the estimates and a key to τ, its value and the thresholds of the rules.

The arithmetic is in :mod:`~specpilot.control.horizon`; here the estimates become its inputs, for chains and
for token trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import exp
from operator import mul

from specpilot.control.acceptance import survival
from specpilot.control.calibration import PlacedCalibration
from specpilot.control.contexts import Context, Key
from specpilot.control.cost import CostModel
from specpilot.control.ending import EndHazard
from specpilot.control.horizon import Decision, Horizon, best_length, increments, thresholds
from specpilot.control.tree import LookupRule

EASY_SHIFT = 1.0
"""How much easier than forecast a block may turn out (logit scale): sets the ceiling on τ, below which
the confidence stop decides."""
STATIC_DRAFT = 4
"""τ of a drafter's first blocks, and of a probe at most."""
COUNTED_NODES = 32
"""Nodes that a tree of any depth is taken to have at most: where time has its price a deep one is stopped
before it is so large, and where it has none further nodes cost nothing."""
COUPLING_LOSS = 0.2
"""How much easier a chain is by rejection than under shared noise (logit units): 0.13 to 0.24 for single
candidates of the bundled pair (``benchmarks/sampling_rules.py``). Every pair loses: what rejection accepts
with chance a is accepted under shared noise with a ÷ (2 − a) at least (Daliri et al. 2024)."""
NO_PRICE = -(10**6)
"""Stands for log 0 in a decision's key."""


@dataclass(slots=True)  # not frozen: as CycleView
class Inputs:
    """What a decision rests on beside its key; not to be changed.

    ``hazards`` are h_1 … h_ceiling of the context, ``lookup`` the calibration of looked-up text.
    """

    hazards: Sequence[float]
    context: Context
    ends: EndHazard
    cost: CostModel
    max_nodes: int
    lookup: PlacedCalibration


def decide(known: Inputs, key: Key) -> Decision:
    """The best block for what ``key`` says: a tree where the context's rule can judge one, else a chain.

    A tree pays for each node beside the draft's first choices, and where none is worth it what grows is a
    chain. So what it is worth is the better of two forecasts, a tree's and a chain's.
    """
    ceiling, _, _, price, width, _, quarters, matched, beside, sharing = key
    theta = exp(price / 10.0) if price > NO_PRICE else 0.0
    context, cost, nodes = known.context, known.cost, known.max_nodes
    by_node = cost.verify_run_ms(width, max(ceiling, nodes), beside, sharing)
    hazards = known.hazards
    shift = quarters / 4.0
    levels = by_node[: ceiling + 1]
    if not nodes:  # chains alone
        survive = survival(hazards, shift)
        step_ms, start_ms = cost.draft_step_ms / sharing, cost.draft_start_ms / sharing
        return _solve(known, key, theta, hazards, survive, levels, step_ms, start_ms)
    judged = matched and context.trees
    looked_up = _looked_up(known, matched, ceiling) if judged else [0.0] * (ceiling + 1)
    # Where text is found, the draft model is hardly asked; a draft step is one for all who share the pass.
    asked = 1.0 - looked_up[1]
    alone_ms = cost.draft_step_ms / sharing
    step_ms, start_ms = alone_ms * asked, cost.draft_start_ms * asked / sharing
    begun = width == 1
    chain_share = context.yields.share(branching=False) if begun else 1.0
    survive = list(map(max, _scaled(survival(hazards, shift), chain_share), looked_up))
    chain = _solve(known, key, theta, hazards, survive, levels, step_ms, start_ms)
    chain.forecast = (chain.expected - 1.0) / chain_share
    if not context.trees:  # the rule cannot judge them
        return chain
    widened = context.branches.widened(hazards)
    breadth = context.branches.breadth
    most = min(COUNTED_NODES, len(by_node) - 1)
    wider = [by_node[min(round(level * breadth), most)] for level in range(ceiling + 1)]
    share = context.yields.share(branching=True) if begun else 1.0
    survive = list(map(max, _scaled(survival(widened, shift), share), looked_up))
    wide_ms = step_ms + (breadth - 1.0) * cost.side_ms * asked
    began_ms = start_ms + cost.tree_ms
    tree = _solve(known, key, theta, widened, survive, wider, wide_ms, began_ms)
    tree.forecast = (tree.expected - 1.0) / share
    tree.branching = True
    better = tree if tree.value >= chain.value else chain
    better.node_price = tuple([theta * (b - a) for a, b in pairwise(by_node)])
    better.side_price = theta * cost.side_ms
    if context.optional:
        survive = _scaled(survival(hazards, shift + COUPLING_LOSS), chain_share)
        start_ms = cost.draft_start_ms / sharing
        by_rejection = _solve(known, key, theta, hazards, survive, levels, alone_ms, start_ms)
        better.coupling_loss = by_rejection.value - chain.value
    return better


def _solve(
    known: Inputs,
    key: Key,
    theta: float,
    hazards: Sequence[float],
    survive: Sequence[float],
    verify: Sequence[float],
    step_ms: float,
    start_ms: float,
) -> Decision:
    """The best τ for blocks that are accepted so and cost so.

    ``survive`` is S_0 … S_ceiling, ``hazards`` what the rules' thresholds rest on; ``verify`` the
    pass's time by the depth of the block, in ms. Drafting costs ``start_ms`` and ``step_ms`` for each step.
    """
    ceiling, wanted, later, _, _, behind, quarters, _, _, sharing = key
    cost = known.cost
    # θ · cost of the pass over the context alone, then of each further draft position. Drafting at all
    # needs the draft's own prefill, once for all passes still to come.
    costs = [
        theta * verify[0],
        *[theta * (step_ms + after - before) for before, after in pairwise(verify)],
    ]
    costs[1] += theta * start_ms
    costs[1] += theta * cost.draft_prefill_ms(behind - 1) / (later + 1)
    horizon = Horizon(wanted, later, known.ends.survival(max(wanted, ceiling) + 2))
    # A later pass has one new context token instead of the prompt; positions cost alike.
    later_ms = (cost.verify_ms(sharing) + cost.host_ms) / sharing
    later_costs = [theta * later_ms, *costs[1:]] if later else costs
    worth = increments(survive, horizon, later_costs, ceiling)
    tau, value, plain = best_length(survive, worth, costs)
    static = sum([s * w - c for s, w, c in zip(survive[: STATIC_DRAFT + 1], worth, costs, strict=False)])
    depth = max(tau, 1)  # one adverse decision is not yet fallback
    if known.context.has_confidence and tau < ceiling:
        easy = survival(hazards, quarters / 4.0 + EASY_SHIFT)
        depth = max(depth, best_length(easy, worth, costs)[0])
    keep_at, draft_at = thresholds(hazards, worth, costs, verify, theta, depth)
    return Decision(
        tau,
        value,
        plain,
        survive[1],
        survive[tau],
        sum(survive[: tau + 1]),
        depth,
        keep_at,
        (0.0, *draft_at[1:]),  # position 1 of a chain is settled by the choice of τ
        first_at=draft_at[0],
        stake=worth[1],
        static=static,
        worth=tuple(worth[1:]) if known.max_nodes else (),
        gains=tuple(
            [
                s * w - theta * (after - before)
                for s, w, before, after in zip(survive[1:], worth[1:], verify, verify[1:], strict=False)
            ]
        ),
    )


def _scaled(survive: Sequence[float], share: float) -> list[float]:
    """S_j for j ≥ 1 by what of it comes true."""
    return [1.0, *[min(1.0, share * s) for s in survive[1:]]]


def _looked_up(known: Inputs, matched: int, count: int) -> list[float]:
    """S_0 … S_count of text that goes on a match of so many tokens."""
    rule = LookupRule(known.lookup.intercepts(known.context.bucket), known.lookup.slope, count)
    chances = [rule.chance(position, matched / (matched + 1.0)) for position in range(1, count + 1)]
    return list(accumulate(chances, mul, initial=1.0))
