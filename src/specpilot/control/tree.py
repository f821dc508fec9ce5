"""How a token tree grows: the part of a plan that says what each node must be worth.

Nodes are taken best first: a node whose path is accepted with probability P at depth d is worth P · ΔV_d
tokens and costs θ times what one position more makes the pass longer, so depth and breadth follow from
confidence, the price of time and the measured verify curve (dynamic trees as in EAGLE-2, Li et al. 2024;
the value of a node as in Sequoia, Chen et al. 2024). Like the stop rule it runs inside the drafter, with no
callback to the policy.

Ranks count from 1 (the draft's first choice). A candidate's *share* is its probability among those not
ranked before it: q_r ÷ (1 − q_1 − … − q_{r−1}). The first choice is right with the stop rule's α̂; the
r-th, given that none before it was, with σ(a_r + b_r · logit(share)).
"""

from __future__ import annotations

from dataclasses import dataclass

from specpilot.control.stop import StopRule, logit, sigmoid

RANKS = 5
"""Choices of the draft that are looked at, its first included."""


@dataclass(slots=True)
class LookupRule:
    """How far text that was seen before is believed.

    A match of confidence c is continued rightly at a position with σ(intercept_k + slope · logit(c));
    ``depth`` is the most tokens taken from it.
    """

    intercepts: tuple[float, ...]
    slope: float
    depth: int

    def chance(self, position: int, confidence: float) -> float:
        """P(the token at ``position`` (from 1) is right, given that those before it are)."""
        intercept = self.intercepts[min(position, len(self.intercepts)) - 1]
        return sigmoid(intercept + self.slope * logit(confidence))


@dataclass(slots=True)
class TreeRule:
    """What a tree's nodes are worth and cost.

    ``worth[d−1]`` is ΔV of a token at depth d (an empty tuple: 1 everywhere), ``node_price[n−1]`` what
    verifying the n-th node costs in tokens (empty: nothing). A node that the draft model proposes beside its
    first choices costs ``side_price`` more. At most ``width`` nodes are expanded in a draft step.
    ``ranks`` holds (a_r, b_r) for r = 2, 3 … (the last stands for all later ones; empty: the draft is
    believed). With ``model_depth`` the draft model is asked for so many levels, a deeper block comes from
    ``lookup``. In an ``open`` block the main chain is kept whatever it costs. The model's first step is
    made where what is looked up leaves at least ``first_at`` uncertain. Not ``branching``, only the draft's
    first choices are looked at, one node a step.
    """

    worth: tuple[float, ...] = ()
    node_price: tuple[float, ...] = ()
    side_price: float = 0.0
    ranks: tuple[tuple[float, float], ...] = ()
    width: int = 6
    model_depth: int = 32
    first_at: float = 0.0
    lookup: LookupRule | None = None
    open: bool = False
    branching: bool = True

    def right(self, rank: int, share: float) -> float:
        """P(the draft's ``rank``-th choice (from 2) is right, given that none before it is)."""
        if not self.ranks:
            return share
        intercept, slope = self.ranks[min(rank - 2, len(self.ranks) - 1)]
        return sigmoid(intercept + slope * logit(share))

    def value(self, depth: int, reach: float) -> float:
        """What a node at ``depth`` (from 1) whose path is accepted with probability ``reach`` is worth."""
        worth = self.worth
        return reach * worth[min(depth, len(worth)) - 1] if worth else reach

    def price(self, node: int, *, side: bool) -> float:
        """What the ``node``-th node (from 1) costs, in tokens; ``side``: beside the draft's first choices."""
        prices = self.node_price
        price = prices[min(node, len(prices)) - 1] if prices else 0.0
        return price + self.side_price if side else price


def first_chance(stop: StopRule, confidence: float) -> float:
    """α̂ of the draft's first choice, by the plan's stop rule."""
    return sigmoid(stop.intercept + stop.slope * logit(confidence))
