"""What is learnt of times that depend on a width: a curve, its slope over the context, an upper quantile.

A curve is piecewise linear and monotone; an innovation is clamped so that one preempted pass does not spoil
it, and an upper quantile follows by pinball steps for deadlines.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import exp, log, sqrt
from operator import mul

KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
LEAST_MS = 1e-3
_LARGEST = 1e9
"""No time in ms and no variance is larger."""
NO_ACCIDENT = -0.5
"""By what share a time may fall short by chance: a pass may be preempted and take any time, but none takes
less than half of its time.
"""
SETTLED, CLAMP = 3, 0.25
"""Passes about as wide after which a single one is believed to be off by so much at most."""
_LEAST_RATIO = 1e-3
"""Of what was predicted: no time counts for less."""
_MOST_MOVED = 7.0
"""Logarithm of the factor, a thousand, that one pass moves a knot by at most."""
_SCALE, _BEND = 2.25, 0.09
"""Variances of the first guess's errors on the logarithmic scale: of all knots alike, and from one knot to
the next. A factor of 4.5 either way, and a third more or less for each doubling of the width."""
_NOISE = 0.01
"""Variance of a measured time: a tenth of it."""
_DRIFT = 5e-5
"""Variance that a pass adds: an engine gets slower or faster as a whole, by so much, and as much again where
it is used and its curve may bend anew. So a pass goes on counting for a tenth."""
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
    """Milliseconds as a piecewise-linear, non-decreasing function of a width in tokens.

    The logarithms of its values at ``KNOTS`` are learnt by an extended Kalman filter (Kalman 1960). The first
    guess is taken to be right in shape, roughly, and in scale hardly at all: its error is one offset for all
    knots and a random walk from one to the next. So the first pass moves the whole curve, a second one at
    another width bends it, and widths between the same two knots do not undo what each other taught.
    """

    def __init__(self, values_ms: Sequence[float]) -> None:
        self.values = [max(LEAST_MS, value) for value in values_ms]
        """Milliseconds at ``KNOTS``."""
        self._slopes = _slopes(self.values)
        self._seen = [0] * len(KNOTS)
        self.covariance = [[_SCALE + _BEND * min(i, j) for j in range(len(KNOTS))] for i in range(len(KNOTS))]
        """Of the errors of their logarithms."""
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
        """Move the curve towards an observation.

        Where three passes about as wide have been seen one is believed to be ±25 % off at most, unless less
        than half of what was predicted shows that the prediction is wrong.
        """
        predicted = self.at(width)
        nearer, above, share = _nearer(width)
        ratio = observed_ms / predicted - 1.0
        if self._seen[nearer] >= SETTLED and ratio > NO_ACCIDENT:
            ratio = max(-CLAMP, min(CLAMP, ratio))
        error = log(max(_LEAST_RATIO, 1.0 + ratio))
        self.observations += 1
        # By the width alone, not by the values: a gradient that turns with what is learnt would carry them
        # off where one width says nothing of how its two knots share its cost.
        below, beyond = 1.0 - share, share
        rows = self.covariance
        common = [below * p + beyond * q for p, q in zip(rows[above - 1], rows[above], strict=True)]
        doubt = below * common[above - 1] + beyond * common[above] + _NOISE
        gains = [each / doubt for each in common]
        moves = [max(-_MOST_MOVED, min(_MOST_MOVED, gain * error)) for gain in gains]
        self.values = [
            max(LEAST_MS, value * exp(move)) for value, move in zip(self.values, moves, strict=True)
        ]
        self.covariance = rows = [
            [p - gain * q + _DRIFT for p, q in zip(row, common, strict=False)]
            for row, gain in zip(rows, gains, strict=True)
        ]
        own = _DRIFT / (below * below + beyond * beyond)
        for place, part in ((above - 1, below), (above, beyond)):
            rows[place][above - 1] += part * below * own
            rows[place][above] += part * beyond * own
        self._seen[nearer] += 1
        self._make_monotone(nearer)
        self._slopes = _slopes(self.values)

    def sound(self) -> bool:
        """Whether its parts fit each other: rising values, their slopes, and a covariance that is one."""
        values, rows = self.values, self.covariance
        return (
            values[0] >= LEAST_MS
            and values[-1] <= _LARGEST
            and values == sorted(values)
            and self._slopes == _slopes(values)
            and min([*self._seen, self.observations]) >= 0
            and _is_covariance(rows)
        )

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


def _is_covariance(rows: Sequence[Sequence[float]]) -> bool:
    """Symmetric but for rounding, and positive definite (by Cholesky's decomposition)."""
    factor: list[list[float]] = []
    for i, row in enumerate(rows):
        if not 0.0 < row[i] <= _LARGEST:
            return False
        found: list[float] = []
        for j, other in enumerate(factor):
            if not abs(row[j] - rows[j][i]) <= 1e-6 * (row[i] + rows[j][j]):
                return False
            found.append((row[j] - sum(map(mul, found, other))) / other[j])
        left = row[i] - sum(map(mul, found, found))
        if not left > 0.0:
            return False
        factor.append([*found, sqrt(left)])
    return True


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
