"""The last values of something, also in order: shares and quantiles of them without sorting anew."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque


class Window:
    """The last ``size`` values."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: deque[float] = deque()
        """By age, the oldest first."""
        self.ordered: list[float] = []
        """The same, ascending."""

    def __len__(self) -> int:
        return len(self.ordered)

    def add(self, value: float) -> None:
        """One more; the oldest goes when there are too many."""
        values, ordered = self.values, self.ordered
        if len(ordered) >= self.size:
            del ordered[bisect_left(ordered, values.popleft())]
        values.append(value)
        insort(ordered, value)

    def share_below(self, value: float) -> float:
        """The share of them that is less; 0 where there are none."""
        ordered = self.ordered
        return bisect_left(ordered, value) / len(ordered) if ordered else 0.0

    def upper(self, share: float) -> float:
        """The least value of the highest ``share`` (0…1) of them, at least one.

        Raises:
            IndexError: where there are none.
        """
        count = len(self.ordered)
        return self.ordered[min(count - 1, int((1.0 - share) * count))]
