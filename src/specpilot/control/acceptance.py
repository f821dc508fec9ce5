"""Forecast of acceptance before drafting: conditional hazards by position, for one context.

A *context* is (drafter, prompt-length bucket). Position k of a block is *reached* when all k − 1
tokens before it were accepted; h_k = P(accepted | reached) and S_k = h_1 ⋯ h_k is the probability
that at least k draft tokens are accepted.

A block that the confidence stop cut short is informative: only confident blocks get far, so the plain
survival estimate over all blocks is biased upward. Two things keep it honest. The token whose
distribution was computed but which was not proposed counts with its calibrated acceptance. And every
so many-th block of a context is *open* (it ignores the stop); what lies beyond the point where it would
have been cut has been seen once in that many blocks, so it weighs as many (inverse propensity).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from operator import mul

MAX_POSITIONS = 32
"""Positions tracked; τ is never larger."""
REFRESH = 6
"""Observations after which a table's hazards are computed anew."""
REJOIN = 30.0
"""Evidence (discounted observations of position 1) after which a restarted table trusts its parent again."""
RECENT_BLOCKS = 8
"""Blocks that a restarted table is taught again: those that made the surprise."""
RISING = 0.5
"""Standard deviations of surprise that are taken for a sign of better times."""
_MAX_WEIGHT = 8.0
"""Cap on the inverse-propensity weight: bounds its variance for little bias."""


@dataclass(slots=True)
class HazardTable:
    """Discounted Bernoulli counts by position, shrunk to a parent table (or to the prior).

    ``accepted[k−1]`` and ``reached[k−1]`` are the discounted counts of position k, and ``squares[k−1]`` those
    with each weight squared, so that reached² ÷ squares observations of equal weight would say as much (Kish
    1965). With the parent's estimate p_k for m more of the like, m' = m · squares ÷ reached,
    h_k = (accepted + m'·p_k) ÷ (reached + m').
    """

    prior: float
    discount: float
    shrinkage: float
    parent: HazardTable | None = None
    accepted: list[float] = field(default_factory=list)
    reached: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    _hazards: list[float] = field(default_factory=list)
    _stale: int = 0
    _alone: bool = False

    def observe(self, position: int, value: float, weight: float = 1.0) -> None:
        """One reached position (from 1): ``value`` is 1 accepted, 0 rejected, or an expectation."""
        if position > MAX_POSITIONS:
            return
        while len(self.reached) < position:
            self.accepted.append(0.0)
            self.reached.append(0.0)
            self.squares.append(0.0)
        index = position - 1
        keep = self.discount**weight
        self.accepted[index] = self.accepted[index] * keep + value * weight
        self.reached[index] = self.reached[index] * keep + weight
        self.squares[index] = self.squares[index] * keep + weight * weight
        self._stale += 1

    def restart(self) -> None:
        """Forget everything, the parent too until there is evidence again: the context has changed."""
        self.accepted, self.reached, self.squares, self._hazards = [], [], [], []
        self._alone = True

    def hazards(self, count: int, *, keep: bool = True) -> list[float]:
        """h_1 … h_count. A position without evidence takes its parent's, else its predecessor's.

        Computed anew after every ``REFRESH`` observations, a block or two: estimates that rest on tens of
        observations do not move more in between. Without ``keep`` nothing is changed by asking: when they
        are computed anew, and so what they are, would depend on who asks.
        """
        if self._stale < REFRESH and count <= len(self._hazards):
            return self._hazards[:count]
        found = self._estimate(MAX_POSITIONS if count > 16 else 16, keep)
        if keep:
            self._stale, self._hazards = 0, found
        return found[:count]

    def _estimate(self, count: int, keep: bool = True) -> list[float]:
        known = min(count, len(self.reached))
        result: list[float] = []
        alone = self._alone and not (known and self.reached[0] >= REJOIN)
        if keep:
            self._alone = alone
        if self.parent is None or alone:
            previous = self.prior
            for index in range(known):
                previous = self._shrunk(index, previous)
                result.append(previous)
            return result + [previous] * (count - known)
        result = self.parent.hazards(count, keep=keep)
        for index in range(known):
            result[index] = self._shrunk(index, result[index])
        return result

    def _shrunk(self, index: int, towards: float) -> float:
        reached = self.reached[index]
        weight = self.shrinkage * self.squares[index] / reached
        return (self.accepted[index] + weight * towards) / (reached + weight)


def survival(hazards: Sequence[float], shift: float = 0.0) -> list[float]:
    """S_0 … S_K from hazards h_1 … h_K, with every hazard shifted on the logit scale.

    The shift multiplies the odds by e^shift: h·e ÷ (1 + h·(e − 1)).
    """
    if shift:
        odds = math.exp(shift)
        more = odds - 1.0
        hazards = [hazard * odds / (1.0 + hazard * more) for hazard in hazards]
    return list(accumulate(hazards, mul, initial=1.0))


class Change:
    """Notices that a context is not what it was: a fast average of surprise.

    z accumulates (accepted − expected) over reached positions with a short memory and is compared
    with its standard deviation. A table that has just been wrong for some ten blocks in a row starts over
    from the last few, so that a phase change costs tens of cycles and not hundreds, while a steady context
    keeps a long memory (the idea of Adams and MacKay 2007, on a budget: one hypothesis at a time).
    """

    def __init__(self, memory: float = 0.9, limit: float = 3.5) -> None:
        self._memory = memory
        self._limit = limit
        self._surprise = 0.0
        self._variance = 0.0
        self._rise = 0.0  # surprise upward only: what went before a rise says nothing against it
        self.recent: deque[list[tuple[int, float, float]]] = deque(maxlen=RECENT_BLOCKS)
        """(position, value, weight) of the last blocks' observations."""

    @property
    def rising(self) -> bool:
        """Whether the last blocks were better than expected: too few of them to be sure, worth a look."""
        return self._rise > RISING * math.sqrt(max(1.0, self._variance))

    def observe(self, surprise: float, variance: float) -> bool:
        """Add one block's Σ(y − h) and Σh(1 − h); True if the change is beyond chance."""
        self._surprise = self._surprise * self._memory + surprise
        self._variance = self._variance * self._memory**2 + variance
        self._rise = max(0.0, self._rise * self._memory + surprise)
        # The floor asks for some evidence: where almost all is accepted one rejection is no change.
        if self._surprise**2 > self._limit**2 * max(1.0, self._variance):
            self._surprise = self._variance = self._rise = 0.0
            return True
        return False


class AcceptanceModel:
    """The hazards of all contexts, learned from cycle outcomes."""

    def __init__(self, prior: float, discount: float, shrinkage: float, open_every: int) -> None:
        self._prior, self._discount, self._shrinkage = prior, discount, shrinkage
        self._open_weight = min(float(open_every), _MAX_WEIGHT)
        self._pooled: dict[str, HazardTable] = {}
        self._tables: dict[tuple[str, int], HazardTable] = {}
        self._changes: dict[tuple[str, int], Change] = {}

    def table(self, drafter: str, bucket: int) -> HazardTable:
        """The context's table, made on first use."""
        key = (drafter, bucket)
        table = self._tables.get(key)
        if table is None:
            pooled = self._pooled.get(drafter)
            if pooled is None:
                pooled = HazardTable(self._prior, self._discount, self._shrinkage)
                self._pooled[drafter] = pooled
            table = HazardTable(self._prior, self._discount, self._shrinkage, pooled)
            self._tables[key] = table
            self._changes[key] = Change()
        return table

    def rising(self, drafter: str, bucket: int) -> bool:
        """Whether a context's last blocks were better than expected."""
        return self._changes[drafter, bucket].rising

    def observe(
        self,
        drafter: str,
        bucket: int,
        accepted: int,
        proposed: int,
        cut_at: int | None,
        dropped: float | None,
    ) -> bool:
        """Learn from one block; returns True where a change of phase was noticed.

        Args:
            drafter: the block's drafter.
            bucket: prompt-length bucket.
            accepted: accepted draft tokens.
            proposed: proposed draft tokens.
            cut_at: in an open block, the first position that the stop rule would not have computed.
            dropped: calibrated acceptance of the token that was computed but not proposed.
        """
        table = self.table(drafter, bucket)
        reached = min(accepted + 1, proposed, MAX_POSITIONS)
        expected = table.hazards(reached)
        surprise = variance = 0.0
        seen: list[tuple[int, float, float]] = []
        for position in range(1, reached + 1):
            hazard = expected[position - 1]
            value = 1.0 if position <= accepted else 0.0
            surprise += value - hazard
            variance += hazard * (1.0 - hazard)
            weight = self._open_weight if cut_at is not None and position >= cut_at else 1.0
            seen.append((position, value, weight))
        if dropped is not None and accepted == proposed:
            seen.append((proposed + 1, dropped, 1.0))
        for position, value, weight in seen:
            table.observe(position, value, weight)
            if table.parent:
                table.parent.observe(position, value, weight)
        change = self._changes[drafter, bucket]
        change.recent.append(seen)
        if not reached or not change.observe(surprise, variance):
            return False
        table.restart()
        for position, value, weight in chain.from_iterable(change.recent):
            table.observe(position, value, weight)
        return True
