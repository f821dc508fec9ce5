"""The threshold on a draft's confidence that separates accepted from rejected tokens best."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

WEIGHT = 3.0
"""What an accepted token missed counts against a rejected one let through, as in transformers."""
WINDOW = 512
"""Tokens that are kept."""


class ConfidenceThreshold:
    """argmin over thresholds of FPR + 3 · FNR on recent tokens (transformers' ROC rule).

    A token counts as predicted accepted if its probability is at least the threshold. The candidates
    are the probabilities seen and "above all of them". transformers keeps all samples; here the last
    512, so that a long run stays bounded, and the optimum is searched anew when a twentieth of
    the samples is new.
    """

    def __init__(self, start: float) -> None:
        self.value = start
        self._recent: deque[tuple[float, bool]] = deque()
        self._accepted: list[float] = []
        self._rejected: list[float] = []
        self._pending = 0

    def add(self, confidence: float, accepted: bool) -> None:
        """Take in one verified token, and move the threshold once there are enough of both classes."""
        if len(self._recent) == WINDOW:
            old, was_accepted = self._recent.popleft()
            values = self._accepted if was_accepted else self._rejected
            del values[bisect_left(values, old)]
        self._recent.append((confidence, accepted))
        insort(self._accepted if accepted else self._rejected, confidence)
        self._pending += 1
        # Early every sample matters; later one in twenty of the window moves the optimum by little.
        if self._pending * 20 >= len(self._recent):
            self._pending = 0
            self._move()

    def _move(self) -> None:
        accepted, rejected = self._accepted, self._rejected
        if len(self._recent) <= 5 or not accepted or not rejected:
            return
        best = WEIGHT  # "above all": no false positive, every accepted token missed
        value = max(accepted[-1], rejected[-1]) + 1e-6
        for candidate in sorted({*accepted, *rejected}, reverse=True):
            false_positives = len(rejected) - bisect_left(rejected, candidate)
            false_negatives = bisect_left(accepted, candidate)
            cost = false_positives / len(rejected) + WEIGHT * false_negatives / len(accepted)
            if cost < best:
                best, value = cost, candidate
        self.value = min(value, 1.0)
