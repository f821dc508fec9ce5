"""Noticing that acceptance is not what it was: a fast average of surprise.

A block's surprise is its score: the derivative of its log-likelihood by a shift δ of all log-odds, whose mean
is 0 and whose variance is known while nothing changes. The positions that verification reached give Σ(y − h),
y being 1 where the token was accepted. The first token's confidence gives more: with logit α̂ so far from what
it usually is by r, which a shift would move by slope · δ, it gives slope · r ÷ Var r. A draft that gets worse
mostly knows it, and its confidence says so before the first rejection.

A table that has been wrong for some ten blocks in a row starts over from the last few, so that a phase change
costs tens of cycles and not hundreds, while what is steady keeps a long memory (the idea of Adams and MacKay
2007, on a budget: one hypothesis at a time). r is taken against the forecast and its usual distance from it,
so it comes to rest when the table has started over.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

RECENT_BLOCKS = 8
"""Blocks that a table which starts over is taught again: those that made the surprise."""
RISING = 0.5
"""Standard deviations of surprise that are taken for a sign of better times."""
_LEAST_SCATTER = 0.3
"""Confidences that scatter less (variance of logit α̂) say no more of a shift than with this."""
_DOUBT = 1.3
"""How much more is taken for chance where there are confidences: they are not normal, a request's blocks are
alike, and of two sums either may be off."""

Observation = tuple[int, float, float]
"""(position, value, weight): what one reached position teaches a table of hazards."""


class Shown(NamedTuple):
    """What the first token's confidence says of a block: logit α̂ less what it is as a rule, how far that
    scatters (its variance), and the calibration's slope.
    """

    away: float
    variance: float
    slope: float


class Surprise(NamedTuple):
    """A block's score and its variance; and those of its accepted and rejected tokens alone."""

    score: float
    variance: float
    bits: float
    bits_variance: float


def surprise(hazards: Sequence[float], accepted: int, shown: Shown | None = None) -> Surprise:
    """Of a block that reached positions with these hazards, at least one, and accepted the first so many."""
    bits = accepted - sum(hazards)
    bits_variance = sum([hazard * (1.0 - hazard) for hazard in hazards])
    if shown is None:
        return Surprise(bits, bits_variance, bits, bits_variance)
    scatter = max(_LEAST_SCATTER, shown.variance)
    # The two are not independent: a confident token is accepted more often. Cov(r, y − h) ≈ h(1 − h) · Var r.
    together = 2.0 * shown.slope * hazards[0] * (1.0 - hazards[0])
    return Surprise(
        bits + shown.slope * shown.away / scatter,
        _DOUBT * (bits_variance + shown.slope**2 / scatter + together),
        bits,
        _DOUBT * bits_variance,
    )


class Change:
    """Sums of surprise with a short memory, compared with their standard deviations: an exponentially
    weighted control chart (Roberts 1959).

    The tokens' own sum counts by itself too: where confidences do not follow what is accepted, as those of a
    draft that is surely wrong, they would hide the change.

    Args:
        limit: standard deviations beyond which it is no chance.
        memory: what a block still counts for after the next one.
    """

    def __init__(self, limit: float = 3.5, memory: float = 0.9) -> None:
        self._limit = limit
        self._memory = memory
        self._score = self._variance = 0.0
        self._bits = self._bits_variance = 0.0
        self._rise = 0.0
        self.recent: deque[tuple[int, list[Observation]]] = deque(maxlen=RECENT_BLOCKS)
        """The last blocks: each one's prompt-length bucket and observations."""

    @property
    def rising(self) -> bool:
        """Whether the last blocks were better than expected: too few of them to be sure, worth a look.

        Tokens that were accepted, and no confidences: a draft that is asked again for its confidence alone
        costs more than it finds where it is slow.
        """
        return self._rise > RISING * math.sqrt(max(1.0, self._bits_variance))

    def observe(self, block: Surprise) -> bool:
        """Add one block's; True if the change is beyond chance."""
        keep = self._memory
        self._score = self._score * keep + block.score
        self._variance = self._variance * keep**2 + block.variance
        self._bits = self._bits * keep + block.bits
        self._bits_variance = self._bits_variance * keep**2 + block.bits_variance
        # What went before a rise says nothing against it.
        self._rise = max(0.0, self._rise * keep + block.bits)
        if not (self._beyond(self._score, self._variance) or self._beyond(self._bits, self._bits_variance)):
            return False
        self.settle()
        return True

    def _beyond(self, total: float, variance: float) -> bool:
        # The floor asks for some evidence: where almost all is accepted one rejection is no change.
        return abs(total) > self._limit * math.sqrt(max(1.0, variance))

    def settle(self) -> None:
        """What is expected is new: what came before is no surprise any more."""
        self._score = self._variance = self._bits = self._bits_variance = self._rise = 0.0
