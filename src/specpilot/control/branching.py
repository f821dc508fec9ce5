"""What a context has learned of trees: how often a side branch saves a block.

The forecast before drafting goes on from the main chain's hazards (those have their own remedies against
informative stopping): where the main chain fails with 1 − h, a side branch goes on with P(rescued | failed).
"""

from __future__ import annotations

from collections.abc import Sequence


class Branches:
    """Discounted counts, shrunk to a prior: P(rescued | main chain failed)."""

    def __init__(self, memory: float = 0.98, prior: float = 0.25, weight: float = 6.0) -> None:
        self._memory = memory
        self._failed = weight
        self._rescued = prior * weight

    @property
    def rescue(self) -> float:
        """P(a side branch is right | the main chain is wrong there)."""
        return self._rescued / self._failed

    def observe(self, *, rescued: bool) -> None:
        """A tree's main chain was wrong within the block; whether a branch was right there."""
        self._failed = self._failed * self._memory + 1.0
        self._rescued = self._rescued * self._memory + rescued

    def widened(self, hazards: Sequence[float]) -> list[float]:
        """The hazards of the tree's best path: h + (1 − h) · P(rescued | failed)."""
        rescue = self.rescue
        return [hazard + (1.0 - hazard) * rescue for hazard in hazards]
