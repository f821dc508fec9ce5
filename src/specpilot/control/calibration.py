"""From the draft's confidence to the probability that the target accepts: an online logistic fit.

α̂ = σ(intercept + slope · logit(max q) + (1 − slope) · logit(level)), where the intercept is the sum of a
drafter-wide one and small corrections for the position in the block and the prompt-length bucket, and the
level is the acceptance that the context has shown lately: what a noisy confidence does not say is taken
from there, so a change of phase moves α̂ as fast as it moves the level. Adaptive verification in vLLM fits
one logistic on logit(max q) with per-position intercepts in batch; here it is an extended Kalman filter
(two shared coefficients) with one-dimensional Newton steps for the corrections, so each observation costs a
few microseconds and old ones fade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specpilot.control.stop import logit, sigmoid

POSITIONS = 8
"""Positions with a correction of their own; later ones share the last."""
NO_LEVEL = 0.5
"""Stands for a level that is not known: its logit is 0."""
_C00, _C11 = 0.5, 0.1
"""Prior variance of intercept and slope."""


@dataclass(slots=True)
class Offset:
    """One additive correction on the logit scale, shrunk to 0 by ``precision`` pseudo-information."""

    value: float = 0.0
    information: float = 0.0

    def update(self, accepted: float, predicted: float, discount: float, prior: float) -> None:
        """One Newton step on the penalised log-likelihood of one Bernoulli observation.

        With information I (discounted) and prior precision P the step is
        (y − α̂ − P·value·(1−discount)) ÷ (I + P): the gradient over the curvature, where the pull to
        0 is spread over the observations that the discount remembers.
        """
        self.information = self.information * discount + predicted * (1.0 - predicted)
        pull = prior * self.value * (1.0 - discount)
        self.value += (accepted - predicted - pull) / (self.information + prior)


class Calibration:
    """Acceptance given confidence, for one drafter.

    Starts at α̂ = max q (intercept 0, slope 1), which is what a perfectly calibrated greedy draft of
    the target's own distribution would show.
    """

    def __init__(self, discount: float = 0.998, prior: float = 4.0) -> None:
        self._discount = discount
        self._prior = prior
        self.blocks = 0
        """Blocks of this drafter seen, with or without confidences."""
        self.intercept = 0.0
        self.slope = 1.0
        # Covariance of (intercept, slope).
        self._c00, self._c01, self._c11 = _C00, 0.0, _C11
        self._positions = [Offset() for _ in range(POSITIONS)]
        self._buckets: dict[int, Offset] = {}

    def intercepts(self, bucket: int, level: float = NO_LEVEL) -> tuple[float, ...]:
        """What is added to slope · logit(max q) by position (the last stands for all later ones) in a
        prompt-length bucket whose acceptance is at ``level``.
        """
        offset = self._buckets.get(bucket)
        base = self.intercept + (offset.value if offset else 0.0) + (1.0 - self.slope) * logit(level)
        return tuple([base + position.value for position in self._positions])

    def log_odds(self, bucket: int, confidences: Sequence[float], level: float = NO_LEVEL) -> list[float]:
        """Logits of α̂ of a block's tokens, whose distributions have their maxima at ``confidences``."""
        intercepts, slope = self.intercepts(bucket, level), self.slope
        last = POSITIONS - 1
        return [
            intercepts[place if place < last else last] + slope * logit(confidence)
            for place, confidence in enumerate(confidences)
        ]

    def observe(
        self, position: int, bucket: int, confidence: float, accepted: bool, level: float = NO_LEVEL
    ) -> None:
        """Learn from one token that verification reached."""
        y = 1.0 if accepted else 0.0
        base = logit(level)
        x = logit(confidence) - base
        place = self._positions[min(position, POSITIONS) - 1]
        offset = self._buckets.get(bucket)
        if offset is None:
            offset = self._buckets[bucket] = Offset()
        predicted = sigmoid(base + self.intercept + place.value + offset.value + self.slope * x)
        self._filter(x, y - predicted, max(predicted * (1.0 - predicted), 1e-3))
        predicted = sigmoid(base + self.intercept + place.value + offset.value + self.slope * x)
        place.update(y, predicted, self._discount, self._prior)
        predicted = sigmoid(base + self.intercept + place.value + offset.value + self.slope * x)
        offset.update(y, predicted, self._discount, self._prior)

    def _filter(self, x: float, residual: float, weight: float) -> None:
        """Extended Kalman step for (intercept, slope): gain = C·h ÷ (h'Ch + 1/weight)."""
        g0 = self._c00 + self._c01 * x
        g1 = self._c01 + self._c11 * x
        denominator = g0 + g1 * x + 1.0 / weight
        step = residual / weight / denominator
        self.intercept += g0 * step
        self.slope = min(3.0, max(0.0, self.slope + g1 * step))
        self._c00 -= g0 * g0 / denominator
        self._c01 -= g0 * g1 / denominator
        self._c11 -= g1 * g1 / denominator
        # Forgetting: the covariance grows back, up to where it started.
        grow = min(1.0 / self._discount, _C00 / self._c00, _C11 / self._c11)
        self._c00 *= grow
        self._c01 *= grow
        self._c11 *= grow
