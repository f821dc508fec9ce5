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
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul

from specpilot.control.change import Change, Observation, surprise

MAX_POSITIONS = 32
"""Positions tracked; τ is never larger."""
REFRESH = 6
"""Observations after which a table's hazards are computed anew."""
REJOIN = 30.0
"""Evidence (discounted observations of position 1) after which a restarted table trusts its parent again."""
OWN_LIMIT, COMMON_LIMIT = 3.5, 4.0
"""Standard deviations of surprise beyond which a context has changed; and over all contexts of a drafter,
under one rule of acceptance, beyond which all of them have. A context's own is the lower one: where most of
the traffic is its, the others are not to go by it."""
KEPT = 0.1
"""What a context's evidence still counts for when all contexts of its drafter have changed."""
_NOTHING = 1e-9
"""Evidence that is none: each change of all contexts leaves a tenth of it."""
MAX_WEIGHT = 8.0
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

    def fade(self, share: float) -> None:
        """Keep ``share`` of the evidence: the context has changed, and so has its parent."""
        for counts in (self.accepted, self.reached, self.squares):
            counts[:] = [count * share for count in counts]
        self._hazards = []
        self._alone = False

    def learn(self, seen: Sequence[Observation]) -> None:
        """One block's observations."""
        for position, value, weight in seen:
            self.observe(position, value, weight)

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
        if reached < _NOTHING:  # faded away
            return towards
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


class AcceptanceModel:
    """The hazards of all contexts, learned from cycle outcomes."""

    def __init__(self, prior: float, discount: float, shrinkage: float, open_every: int) -> None:
        self._prior, self._discount, self._shrinkage = prior, discount, shrinkage
        self._open_weight = min(float(open_every), MAX_WEIGHT)
        self._pooled: dict[str, HazardTable] = {}
        self._tables: dict[tuple[str, int], HazardTable] = {}
        self._changes: dict[tuple[str, int], Change] = {}
        self._common: dict[str, Change] = {}

    def table(self, drafter: str, bucket: int) -> HazardTable:
        """The context's table, made on first use."""
        key = (drafter, bucket)
        table = self._tables.get(key)
        if table is None:
            pooled = self._pooled.get(drafter)
            if pooled is None:
                pooled = HazardTable(self._prior, self._discount, self._shrinkage)
                self._pooled[drafter] = pooled
                self._common[drafter] = Change()
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
    ) -> list[int]:
        """Learn from one block; returns the buckets of the drafter whose acceptance was seen to have changed.

        A context that has changed starts over from its last blocks, by itself until there is evidence again.
        Surprise is summed over all contexts of a drafter too: what changes them all is seen sooner there, and
        in those that hardly draft any more.

        Args:
            drafter: the block's drafter.
            bucket: prompt-length bucket.
            accepted: accepted draft tokens.
            proposed: proposed draft tokens.
            cut_at: in an open block, the first position that the stop rule would not have computed.
            dropped: calibrated acceptance of the token that was computed but not proposed.
        """
        table, pooled = self.table(drafter, bucket), self._pooled[drafter]
        reached = min(accepted + 1, proposed, MAX_POSITIONS)
        expected = table.hazards(reached)
        seen: list[Observation] = []
        for position in range(1, reached + 1):
            weight = self._open_weight if cut_at is not None and position >= cut_at else 1.0
            seen.append((position, 1.0 if position <= accepted else 0.0, weight))
        if dropped is not None and accepted == proposed:
            seen.append((proposed + 1, dropped, 1.0))
        table.learn(seen)
        pooled.learn(seen)
        change, common = self._changes[drafter, bucket], self._common[drafter]
        change.recent.append((bucket, seen))
        common.recent.append((bucket, seen))
        if not reached:
            return []
        block = surprise(expected, min(accepted, reached))
        has_changed, all_have = change.observe(*block, OWN_LIMIT), common.observe(*block, COMMON_LIMIT)
        buckets = self._start_over(drafter) if all_have else []
        if buckets or not has_changed:
            return buckets
        table.restart()
        for _, observations in change.recent:
            table.learn(observations)
        return [bucket]

    def _start_over(self, drafter: str) -> list[int]:
        """All contexts of a drafter have changed: little of what was known stands. Returns their buckets."""
        pooled = self._pooled[drafter]
        pooled.restart()
        buckets = [bucket for name, bucket in self._tables if name == drafter]
        for bucket in buckets:
            self._tables[drafter, bucket].fade(KEPT)
            self._changes[drafter, bucket].settle()
        for bucket, observations in self._common[drafter].recent:
            self._tables[drafter, bucket].learn(observations)
            pooled.learn(observations)
        return buckets
