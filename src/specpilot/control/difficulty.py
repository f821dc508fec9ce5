"""Whether a request is easier or harder than its context, from its accept lengths and its confidences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from specpilot.control.calibration import POSITIONS
from specpilot.control.stop import logit, sigmoid

_LEAST_VARIANCE = 0.05
_LEAST_CHANCE = 1e-6
_SHRINKAGE = 8.0  # observations that the first position's mean counts for


class Residuals:
    """How far α̂ of a block's tokens lies from the hazards forecast for them, on the logit scale.

    Discounted means by position over a context's blocks (later positions share the last), and the variance
    of the first token's: other tokens' confidences are seen only where the ones before them were good enough.
    The less they vary within a context, the more a request's confidences say of the request.
    """

    def __init__(self, memory: float = 0.98, weight: float = 4.0, variance: float = 0.5) -> None:
        self._memory = memory
        self._sums = [0.0] * POSITIONS
        self._weights = [weight] + [0.0] * (POSITIONS - 1)
        self._squares = variance * weight

    @property
    def variance(self) -> float:
        """Of the first token's, ≥ 0."""
        weight = self._weights[0]
        return max(0.0, self._squares / weight - (self._sums[0] / weight) ** 2)

    def centred(self, residuals: Sequence[float]) -> list[float]:
        """A block's logit α̂ − logit h less what they are at their positions as a rule.

        A later position's mean is shrunk to the first one's.
        """
        return [residual - self._usual(place) for place, residual in enumerate(residuals)]

    def _usual(self, place: int) -> float:
        sums, weights = self._sums, self._weights
        first = sums[0] / weights[0]
        if not place:
            return first
        place = min(place, POSITIONS - 1)
        return (sums[place] + _SHRINKAGE * first) / (weights[place] + _SHRINKAGE)

    def observe(self, residuals: Sequence[float]) -> None:
        """Take in one block's, from the first token's on."""
        keep, sums, weights = self._memory, self._sums, self._weights
        self._squares = self._squares * keep + residuals[0] ** 2
        for place, residual in enumerate(residuals):
            place = min(place, POSITIONS - 1)
            sums[place] = sums[place] * keep + residual
            weights[place] = weights[place] * keep + 1.0


def residuals_of(log_odds: Sequence[float], hazards: Sequence[float]) -> list[float]:
    """Logit α̂ − logit h of a block's tokens, as far as both are known."""
    return [odds - logit(hazard) for odds, hazard in zip(log_odds, hazards, strict=False)]


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
        away: Sequence[float],
        variance: float,
        log_odds: Sequence[float],
        accepted: int,
        proposed: int,
        slope: float,
    ) -> list[float]:
        """Update class weights by one block and its confidences.

        A class δ shifts the truth by δ. The calibrated log-odds follow it by slope · δ, so each drafted token
        says so much of the class by itself; what is left of the shift, (1 − slope) · δ, shows in whether the
        token is accepted, given its confidence.

        Args:
            weights: the classes' before.
            away: how far each computed token's log-odds lie from where the context's are as a rule …
            variance: … and the variance of that.
            log_odds: logit α̂ of each computed token.
            accepted: accepted draft tokens …
            proposed: … of so many.
            slope: the calibration's.
        """
        variance = max(_LEAST_VARIANCE, variance)
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
