"""What is learnt of times that depend on a width: a curve, its slope over the context, an upper quantile.

A curve is piecewise linear and monotone; an innovation is clamped so that one preempted pass does not spoil
it, and an upper quantile follows by pinball steps for deadlines.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
LEAST_MS = 1e-3
NO_ACCIDENT = -0.5
"""By what share a time may fall short by chance: a pass may be preempted and take any time, but none takes
less than half of its time.
"""
_LAST = len(KNOTS) - 1
_GAPS = [high - low for low, high in pairwise(KNOTS)]
_PLACES = [(knot, offset) for knot, gap in enumerate(_GAPS) for offset in range(gap)]
"""Of the widths from 1: the knot at or below, and how many tokens beyond it."""


class UpperQuantile:
    """Tracks a quantile of observed ÷ predicted by pinball steps; never below 1."""

    def __init__(self, quantile: float = 0.95, step: float = 0.03) -> None:
        self._quantile = quantile
        self._step = step
        self.ratio = 1.15

    def observe(self, ratio: float) -> None:
        """Up by step·q when exceeded, down by step·(1−q) when not: stationary at the quantile."""
        if ratio > self.ratio:
            self.ratio = min(4.0, self.ratio + self._step * self._quantile)
        else:
            self.ratio = max(1.0, self.ratio - self._step * (1.0 - self._quantile))


class CostCurve:
    """Milliseconds as a piecewise-linear, non-decreasing function of a width in tokens."""

    def __init__(self, values_ms: Sequence[float], gain: float = 0.1, clamp: float = 0.25) -> None:
        self.values = list(values_ms)
        """Milliseconds at ``KNOTS``."""
        self._slopes = _slopes(self.values)
        self._seen = [0] * len(KNOTS)
        self._gain = gain
        self._clamp = clamp
        self.observations = 0

    def at(self, width: float) -> float:
        """Cost of ``width`` tokens, extrapolated by the last segment's slope."""
        if width <= 1:
            return self.values[0]
        index = bisect_right(KNOTS, width, 0, _LAST) - 1
        return self.values[index] + self._slopes[index] * (width - KNOTS[index])

    def measured(self, width: float) -> bool:
        """Whether a pass about as wide has been seen: of a width far from all that were, little is known."""
        return self._seen[_nearer(width)[0]] > 0

    def run(self, width: int, count: int) -> list[float]:
        """Costs of ``width``, ``width + 1`` … ``width + count`` tokens (``width`` ≥ 1)."""
        values, slopes = self.values, self._slopes
        places = _PLACES[width - 1 : width + count]
        if len(places) <= count:
            # Beyond the last knot its segment goes on.
            beyond = range(max(width, KNOTS[-1]), width + count + 1)
            places += [(_LAST - 1, at - KNOTS[-2]) for at in beyond]
        return [values[knot] + slopes[knot] * offset for knot, offset in places]

    def observe(self, width: float, observed_ms: float) -> None:
        """Move the two neighbouring knots towards an observation.

        The first observations count fully (gain 1/n down to ``gain``) and also rescale knots that
        have never been seen; later ones are clamped to ±25 % of the prediction, unless less than half of it
        shows that the prediction is wrong.
        """
        predicted = self.at(width)
        self.observations += 1
        nearer, index, share = _nearer(width)
        ratio = observed_ms / predicted - 1.0
        settled = self._seen[nearer] >= 3
        if settled and ratio > NO_ACCIDENT:
            ratio = max(-self._clamp, min(self._clamp, ratio))
        for knot, weight in ((index - 1, 1.0 - share), (index, share)):
            if weight > 0.0:
                self._seen[knot] += 1
                gain = max(self._gain, 1.0 / self._seen[knot])
                step = gain * ratio * weight / (share**2 + (1.0 - share) ** 2)
                self.values[knot] = max(LEAST_MS, self.values[knot] * max(0.1, 1.0 + step))
        if 0 in self._seen:
            rescale = 1.0 + max(self._gain, 1.0 / self.observations) * ratio
            for knot, count in enumerate(self._seen):
                if count == 0:
                    self.values[knot] = max(LEAST_MS, self.values[knot] * rescale)
        self._make_monotone(nearer)
        self._slopes = _slopes(self.values)

    def _make_monotone(self, anchor: int) -> None:
        """The knot just measured is believed; the others give way."""
        values = self.values
        least = most = values[anchor]
        for knot in range(anchor + 1, len(values)):
            if values[knot] < least:
                values[knot] = least
            least = values[knot]
        for knot in range(anchor - 1, -1, -1):
            if values[knot] > most:
                values[knot] = most
            most = values[knot]


def _nearer(width: float) -> tuple[int, int, float]:
    """(the knot nearest to a width, the one above it, how far it is from the one below to that, 0…1)."""
    above = bisect_right(KNOTS, max(width, 1), 0, _LAST)
    low, high = KNOTS[above - 1], KNOTS[above]
    share = min(1.0, max(0.0, (width - low) / (high - low)))
    return above - 1 if share < 0.5 else above, above, share


def _slopes(values: Sequence[float]) -> list[float]:
    """Of each segment between the knots, in ms per token."""
    return [(high - low) / gap for low, high, gap in zip(values, values[1:], _GAPS, strict=False)]


class ContextSlope:
    """How much dearer a pass gets with each cached context token (attention reads it).

    Normalised LMS on the context's deviation from its mean: what is common to all contexts is the curve's
    to learn, so that the two do not take turns in explaining the same milliseconds.
    """

    def __init__(self, rate: float = 0.05, memory: float = 0.98) -> None:
        self._rate = rate
        self._memory = memory
        self._mean = 0.0
        self._variance = 0.0
        self._seen = 0.0
        self.ms_per_token = 0.0

    def observe(self, context_tokens: float, error_ms: float) -> None:
        """A pass behind this much context took ``error_ms`` longer than predicted."""
        self._seen = self._seen * self._memory + 1.0
        away = context_tokens - self._mean
        self._mean += away / self._seen
        away = context_tokens - self._mean
        self._variance += (away * away - self._variance) / self._seen
        # The floor: contexts that are nearly alike say nothing of a slope.
        scale = away * away + self._variance + (0.1 * self._mean) ** 2 + 1.0
        self.ms_per_token = max(0.0, self.ms_per_token + self._rate * error_ms * away / scale)
