"""Whether a request is easier or harder than its context, from its accept lengths and its confidences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from specpilot.control.stop import logit, sigmoid

_LEAST_VARIANCE = 0.05
_LEAST_CHANCE = 1e-6


class Residuals:
    """How far α̂ of a block's first token lies from the hazard forecast for it, on the logit scale.

    Discounted mean and variance over a context's blocks. Other tokens' confidences are seen only where the
    ones before them were good enough, the first one's in every block. The spread is how much confidence tells
    tokens apart: what a stop in the block can earn, and what a request's confidences say of the request.
    """

    def __init__(self, memory: float = 0.98, weight: float = 4.0, variance: float = 0.5) -> None:
        self._memory = memory
        self._weight = weight
        self._sum = 0.0
        self._squares = variance * weight

    @property
    def mean(self) -> float:
        """The mean."""
        return self._sum / self._weight

    @property
    def variance(self) -> float:
        """The variance, ≥ 0."""
        return max(0.0, self._squares / self._weight - self.mean**2)

    def observe(self, residual: float) -> None:
        """Take in logit α̂ − logit h of one block's first token."""
        keep = self._memory
        self._weight = self._weight * keep + 1.0
        self._sum = self._sum * keep + residual
        self._squares = self._squares * keep + residual * residual


class Difficulty:
    """Whether this request is easier or harder than its context: a posterior over three classes.

    The classes shift every hazard by −1, 0, +1 on the logit scale; the population's weights are
    learned (online EM), so where requests do not differ the middle class takes over and the
    correction vanishes. With two passes a request, one block is all the history it has: so what its
    confidences say counts as well as how many tokens were accepted.
    """

    SHIFTS = (-1.0, 0.0, 1.0)

    def __init__(self, rate: float = 0.02) -> None:
        self._rate = rate
        self.weights = [0.2, 0.6, 0.2]

    def posterior(
        self, weights: Sequence[float], hazards: Sequence[float], accepted: int, proposed: int
    ) -> list[float]:
        """Update class weights by one block: ``accepted`` of ``proposed`` draft tokens."""
        logits = [logit(hazard) for hazard in hazards[: accepted + 1]]
        rejected = logits[accepted] if accepted < proposed and accepted < len(hazards) else None
        result = []
        for weight, shift in zip(weights, self.SHIFTS, strict=True):
            weight = math.prod([sigmoid(value + shift) for value in logits[:accepted]], start=weight)
            if rejected is not None:
                weight *= 1.0 - sigmoid(rejected + shift)
            result.append(weight)
        return _normalised(result, weights)

    def posterior_by_confidence(
        self,
        weights: Sequence[float],
        hazards: Sequence[float],
        log_odds: Sequence[float],
        accepted: int,
        proposed: int,
        residuals: Residuals,
        slope: float,
    ) -> list[float]:
        """Update class weights by one block and its confidences.

        A class δ shifts the truth by δ. The calibrated log-odds follow it by slope · δ, so each drafted token
        says so much of the class by itself; what is left of the shift, (1 − slope) · δ, shows in whether the
        token is accepted, given its confidence.

        Args:
            weights: the classes' before.
            hazards: h_1 … of the context.
            log_odds: logit α̂ of each computed token.
            accepted: accepted draft tokens …
            proposed: … of so many.
            residuals: the context's.
            slope: the calibration's.
        """
        mean, variance = residuals.mean, max(_LEAST_VARIANCE, residuals.variance)
        away = [odds - logit(hazard) - mean for odds, hazard in zip(log_odds, hazards, strict=False)]
        total, count = sum(away), len(away)
        judged = log_odds[: min(accepted + 1, proposed)]
        rest = 1.0 - slope
        logs = []
        for weight, shift in zip(weights, self.SHIFTS, strict=True):
            moved = slope * shift
            # Σ (r − moved)², less what all classes have in common.
            value = math.log(max(weight, _LEAST_CHANCE)) + moved * (total - 0.5 * count * moved) / variance
            for place, odds in enumerate(judged):
                chance = sigmoid(odds + rest * shift)
                value += math.log(max(_LEAST_CHANCE, chance if place < accepted else 1.0 - chance))
            logs.append(value)
        top = max(logs)
        return _normalised([math.exp(value - top) for value in logs], weights)

    def learn(self, posterior: Sequence[float]) -> None:
        """Move the population's weights towards a finished request's posterior."""
        self.weights = [
            weight + self._rate * (new - weight) for weight, new in zip(self.weights, posterior, strict=True)
        ]

    def shift(self, posterior: Sequence[float]) -> float:
        """The request's expected shift relative to the population's (which the hazards contain)."""
        # Σ shift · (own − base), written out: the middle class shifts nothing.
        base = self.weights
        return (posterior[2] - base[2]) - (posterior[0] - base[0])


def _normalised(weights: Sequence[float], otherwise: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights] if total > 0.0 else list(otherwise)
