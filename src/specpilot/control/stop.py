"""The stop rule: the part of a plan that runs inside the drafter, with no callback to the policy.

Positions count from 1. Both questions are answered from what is known *before* the token at that
position is drawn (invariant I4): the draft's distribution q_k, never the sample x_k. That is what
keeps rejection sampling unbiased under an adaptive block length. Under coupled sampling the confidence is
of q under the shared noise, which settles x_k: there the target's token is the same whatever is proposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import exp, log

_LOGIT_CAP = 12.0
_ODDS_CAP = math.exp(_LOGIT_CAP)


def logit(probability: float) -> float:
    """log(p / (1 − p)), capped at ±12 so that a saturated softmax stays finite."""
    if probability <= 0.0:
        return -_LOGIT_CAP
    if probability >= 1.0:
        return _LOGIT_CAP
    value = log(probability / (1.0 - probability))
    return value if -_LOGIT_CAP < value < _LOGIT_CAP else math.copysign(_LOGIT_CAP, value)


def sigmoid(value: float) -> float:
    """1 / (1 + e^−x), without overflow."""
    if value >= 0.0:
        return 1.0 / (1.0 + exp(-value))
    power = exp(value)
    return power / (1.0 + power)


@dataclass(slots=True)
class StopRule:
    """Decides, position by position, whether to keep a drafted token and whether to draft another.

    The probability that the whole block up to position k is accepted is S_k = Π α̂(q_i) with
    α̂(q) = σ(intercept + slope · logit(max q)). A token is kept while ``S_k >= keep_at[k−1]``;
    another draft step is run while ``S_k >= draft_at[k]`` and the upper-quantile time of the steps
    so far, one more, and the verification fits ``time_limit_ms`` (counted from the cycle's start).
    An empty threshold tuple means "no threshold".

    The object is mutable only in its running product; :meth:`start` resets it for a new block.
    """

    intercept: float = 0.0
    slope: float = 1.0
    keep_at: tuple[float, ...] = ()
    draft_at: tuple[float, ...] = ()
    time_limit_ms: float = math.inf
    step_ms: float = 0.0
    verify_ms: float = 0.0
    survival: float = 1.0

    def start(self) -> None:
        """Begin a new block: nothing is drafted, S_0 = 1."""
        self.survival = 1.0

    def draft_on(self, position: int, elapsed_ms: float) -> bool:
        """Whether to run the draft step for ``position`` (from 1), ``elapsed_ms`` into the cycle."""
        if elapsed_ms + self.step_ms + self.verify_ms > self.time_limit_ms:
            return False
        return position > len(self.draft_at) or self.survival >= self.draft_at[position - 1]

    def keep(self, position: int, confidence: float) -> bool:
        """Whether to propose the token at ``position``, given ``confidence`` = max q there.

        Called exactly once for each computed position, in order; it advances the running product.
        """
        # σ(intercept + slope · logit(confidence)) written out: this runs once for every drafted token.
        odds = confidence / (1.0 - confidence) if confidence < 1.0 else _ODDS_CAP
        odds = min(_ODDS_CAP, max(1.0 / _ODDS_CAP, odds))
        power = self.intercept + self.slope * log(odds)
        self.survival *= 1.0 / (1.0 + exp(-power)) if power > -700.0 else 0.0
        return position > len(self.keep_at) or self.survival >= self.keep_at[position - 1]
