"""What a context has learned of trees: how often a side branch saves a block, how many nodes a level takes.

The forecast before drafting goes on from the main chain's hazards (those have their own remedies against
informative stopping): where the main chain fails with 1 − h, a side branch goes on with P(rescued | failed).
"""

from __future__ import annotations

from collections.abc import Sequence


class Branches:
    """Discounted counts, shrunk to a prior: P(rescued | main chain failed), and nodes per level."""

    def __init__(self, memory: float = 0.98, prior: float = 0.25, weight: float = 6.0) -> None:
        self._memory = memory
        self._failed = weight
        self._rescued = prior * weight
        self._levels = weight
        self._nodes = 2.0 * weight

    @property
    def rescue(self) -> float:
        """P(a side branch is right | the main chain is wrong there)."""
        return self._rescued / self._failed

    @property
    def breadth(self) -> float:
        """Nodes per draft step, ≥ 1."""
        return max(1.0, self._nodes / self._levels)

    def observe(self, *, failed: bool, rescued: bool, nodes: int, levels: int) -> None:
        """One tree: whether its main chain was wrong within the block, and whether a branch was right
        there.
        """
        keep = self._memory
        if failed:
            self._failed = self._failed * keep + 1.0
            self._rescued = self._rescued * keep + rescued
        if levels:
            self._levels = self._levels * keep + levels
            self._nodes = self._nodes * keep + nodes

    def widened(self, hazards: Sequence[float]) -> list[float]:
        """The hazards of the tree's best path: h + (1 − h) · P(rescued | failed)."""
        rescue = self.rescue
        return [hazard + (1.0 - hazard) * rescue for hazard in hazards]


class Forks:
    """Whether it pays to ask for a tree: what the nodes beside the draft's own chain are worth, by what the
    drafter says of each tree (calibrated probabilities, so a tree says it with far less noise than the tokens
    that come of it), and the milliseconds that they cost.

    Tokens and time are learnt apart, so that what is known of a quiet hour still counts in a busy one.
    """

    def __init__(self, memory: float = 0.9, tokens: float = 1.0, weight: float = 4.0) -> None:
        self._memory = memory
        self._trees = weight
        self._tokens = tokens * weight
        self._ms = 0.0

    def gain(self, theta: float, tree_ms: float) -> float:
        """Tokens that a tree earns beyond a chain, where asking for one costs ``tree_ms`` whatever grows."""
        return (self._tokens - theta * self._ms) / self._trees - theta * tree_ms

    def observe(self, tokens: float, ms: float) -> None:
        """One tree: what its side nodes were worth, and what they cost."""
        keep = self._memory
        self._trees = self._trees * keep + 1.0
        self._tokens = self._tokens * keep + tokens
        self._ms = self._ms * keep + ms


class Yields:
    """How much of what was forecast came in a request's later cycles: drafted tokens accepted, by the kind of
    forecast that was the better (chain or tree), whichever was grown.

    The context's hazards are those of all its cycles. A tree ends only where none of its choices was right,
    and after so surprising a token the draft is worse for a while. First cycles come as forecast.
    """

    def __init__(self, memory: float = 0.98, weight: float = 12.0) -> None:
        self._memory = memory
        self._brought = [weight] * 2
        self._forecast = [weight] * 2

    def share(self, *, branching: bool) -> float:
        """Brought ÷ forecast, 0.5 … 1.5; 1 where nothing is known."""
        return min(1.5, max(0.5, self._brought[branching] / self._forecast[branching]))

    def observe(self, *, branching: bool, brought: float, forecast: float) -> None:
        """A later block brought so many drafted tokens and was forecast to bring so many."""
        self._brought[branching] = self._brought[branching] * self._memory + brought
        self._forecast[branching] = self._forecast[branching] * self._memory + forecast
