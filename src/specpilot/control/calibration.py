"""From the draft's confidence to the probability that the target accepts: an online logistic fit.

α̂ = σ(intercept + slope · logit(max q)): an extended Kalman filter on the two coefficients, so that each
observation costs about a microsecond and old ones fade. Adaptive verification in vLLM fits one logistic on
logit(max q) with per-position intercepts in batch; position and prompt length are in the hazards here
(:mod:`specpilot.control.acceptance`), and what they add to a draft model's confidence is too little to be
learnt. Looked-up text in a tree and a draft's further choices do differ by place: there small corrections
of the intercept are learnt too, with one-dimensional Newton steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specpilot.control.stop import logit, sigmoid

POSITIONS = 8
"""Positions with a correction of their own; later ones share the last."""
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


class LogisticFit:
    """σ(intercept + slope · x), fitted as observations come.

    Starts at α̂ = max q (intercept 0, slope 1), which is what a perfectly calibrated greedy draft of
    the target's own distribution would show.
    """

    def __init__(self, discount: float = 0.998) -> None:
        self._discount = discount
        self.intercept = 0.0
        self.slope = 1.0
        # Covariance of (intercept, slope).
        self._c00, self._c01, self._c11 = _C00, 0.0, _C11

    def _learn(self, x: float, y: float, offset: float) -> None:
        predicted = sigmoid(self.intercept + offset + self.slope * x)
        self._filter(x, y - predicted, max(predicted * (1.0 - predicted), 1e-3))

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


class Calibration(LogisticFit):
    """Acceptance given confidence, for one drafter."""

    def __init__(self, discount: float = 0.998) -> None:
        super().__init__(discount)
        self.blocks = 0
        """Blocks of this drafter seen, with or without confidences."""

    def log_odds(self, confidences: Sequence[float]) -> list[float]:
        """Logits of α̂ of tokens whose distributions have their maxima at ``confidences``."""
        return [self.intercept + self.slope * logit(confidence) for confidence in confidences]

    def observe(self, confidence: float, accepted: bool) -> None:
        """Learn from one token that verification reached."""
        self._learn(logit(confidence), 1.0 if accepted else 0.0, 0.0)


class PlacedCalibration(LogisticFit):
    """The same with corrections by place: a position (or a choice's rank) and a prompt-length bucket."""

    def __init__(self, discount: float = 0.998, prior: float = 4.0) -> None:
        super().__init__(discount)
        self._prior = prior
        self._positions = [Offset() for _ in range(POSITIONS)]
        self._buckets: dict[int, Offset] = {}

    def intercepts(self, bucket: int = 0) -> tuple[float, ...]:
        """What is added to slope · logit(confidence) by position (the last stands for all later ones)."""
        offset = self._buckets.get(bucket)
        base = self.intercept + (offset.value if offset else 0.0)
        return tuple([base + position.value for position in self._positions])

    def observe(self, confidence: float, accepted: bool, position: int = 1, bucket: int = 0) -> None:
        """Learn from one token at ``position`` (from 1) that verification reached."""
        y = 1.0 if accepted else 0.0
        x = logit(confidence)
        place = self._positions[min(position, POSITIONS) - 1]
        offset = self._buckets.setdefault(bucket, Offset())
        self._learn(x, y, place.value + offset.value)
        for correction in (place, offset):
            predicted = sigmoid(self.intercept + place.value + offset.value + self.slope * x)
            correction.update(y, predicted, self._discount, self._prior)
