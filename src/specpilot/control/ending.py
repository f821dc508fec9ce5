"""How likely a suggestion is to end at the next token: what lies beyond its end is worth nothing."""

from __future__ import annotations

from itertools import accumulate, repeat
from operator import mul


class EndHazard:
    """P(the suggestion ends at a token): one discounted hazard, shrunk to a low prior."""

    def __init__(self, prior: float = 0.02, weight: float = 50.0, memory: float = 0.998) -> None:
        self._ends = prior * weight
        self._tokens = weight
        self._memory = memory

    def observe(self, emitted: int, ended: bool) -> None:
        """``emitted`` tokens were appended; the last one ended the suggestion, or not."""
        keep = self._memory**emitted
        self._ends = self._ends * keep + float(ended)
        self._tokens = self._tokens * keep + emitted

    def survival(self, count: int) -> list[float]:
        """G_0 … G_{count−1}: P(not ended before token j + 1)."""
        stay = 1.0 - min(0.9, self._ends / max(self._tokens, 1.0))
        return list(accumulate(repeat(stay, count - 1), mul, initial=1.0))
