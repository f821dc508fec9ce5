"""Noticing that acceptance is not what it was: a fast average of surprise.

A block's surprise is what it accepted less what was expected of the positions that verification reached,
Σ(y − h), y being 1 where the token was accepted: the score of its log-likelihood by a shift of all log-odds.
Its mean is 0 and its variance Σh(1 − h) while nothing changes.

A table that has been wrong for some ten blocks in a row starts over from the last few, so that a phase change
costs tens of cycles and not hundreds, while what is steady keeps a long memory (the idea of Adams and MacKay
2007, on a budget: one hypothesis at a time). Accepted tokens and no confidences: with the first token's in
the sum a change was seen in nine blocks instead of fourteen, which earned less than half a per cent anywhere,
and a draft that is surely wrong could hide one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

RECENT_BLOCKS = 8
"""Blocks that a table which starts over is taught again: those that made the surprise."""
RISING = 0.5
"""Standard deviations of surprise that are taken for a sign of better times."""

_MEMORY = 0.9
"""What a block still counts for after the next one."""

Observation = tuple[int, float, float]
"""(position, value, weight): what one reached position teaches a table of hazards."""


def surprise(hazards: Sequence[float], accepted: int) -> tuple[float, float]:
    """(surprise, its variance) of a block that reached positions with these hazards and accepted the first
    so many.
    """
    return accepted - sum(hazards), sum([hazard * (1.0 - hazard) for hazard in hazards])


class Change:
    """A sum of surprise with a short memory, compared with its standard deviation: an exponentially weighted
    control chart (Roberts 1959).
    """

    def __init__(self) -> None:
        self._sum = self._variance = self._rise = 0.0
        self.recent: deque[tuple[int, list[Observation]]] = deque(maxlen=RECENT_BLOCKS)
        """The last blocks: each one's prompt-length bucket and observations."""

    @property
    def rising(self) -> bool:
        """Whether the last blocks were better than expected: too few of them to be sure, worth a look."""
        return self._rise > RISING * math.sqrt(max(1.0, self._variance))

    def observe(self, surprise: float, variance: float, limit: float) -> bool:
        """Add one block's; True if the sum is beyond ``limit`` standard deviations, which is no chance."""
        keep = _MEMORY
        self._sum = self._sum * keep + surprise
        self._variance = self._variance * keep**2 + variance
        # What went before a rise says nothing against it.
        self._rise = max(0.0, self._rise * keep + surprise)
        # The floor asks for some evidence: where almost all is accepted one rejection is no change.
        if abs(self._sum) <= limit * math.sqrt(max(1.0, self._variance)):
            return False
        self.settle()
        return True

    def settle(self) -> None:
        """What is expected is new: what came before is no surprise any more."""
        self._sum = self._variance = self._rise = 0.0
