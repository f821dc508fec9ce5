"""Teacher-forced re-scoring: what the draft model says with a fresh cache, against what a trace holds of it.

A request's prompt and output go through the draft model once, in one pass and a cache of their own. That
gives the draft's choice and confidence at every position on the way that the output really took; so each
block's first tokens, up to and including the first rejected one, can be compared. Where a request begins to
differ, what its cache needed just before says what was done wrongly: a crop, or the feeding of a bonus
token. Later differences of a request prove nothing more: a wrong row stays.

The controls are first cycles on a cache that the request itself filled. Where it was admitted with cached
tokens, an earlier request of its session left the cache, perhaps a wrong one: what such a request shows first
is counted apart and decides nothing.

This needs greedy requests whose prompt and tokens are in the trace; they are written only if asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from specpilot.binomial import binomial
from specpilot.models.base import CausalLM, ForwardItem
from specpilot.trace.cycles import OBSERVED
from specpilot.trace.files import TraceReader

TOLERANCE = 0.02
"""A probability that differs by less is the same: other kernels and other passes round differently."""
MOST_REQUESTS = 400
"""So many requests are re-scored at most, the first ones that can be."""
FEWEST, SHARE = 3, 0.05
"""Confirmed: at least so many requests begin to differ at that kind, and this share of its cycles."""
HEALTHY_SHARE = 0.01
"""Refuted: no more than this, and:"""
ODDS = 0.01
"""a fault of :data:`SHARE` of the cycles would show so few differences less often than this."""
CONTROLS = 5
"""Fewer first cycles confirm nothing: a model that differs in half of them passes five 1 time in 32."""
FIRST, CROP, FULL, CAUGHT, NEITHER = "first", "crop", "full_accept", "catching_up", "nothing_needed"
REUSED = "reused_cache"
CONFIRMED, REFUTED, OPEN, TOO_FEW = "confirmed", "refuted", "open", "not_enough_evidence"
KINDS = {"kv_misalignment": (CROP, CAUGHT), "missing_bonus_token": (FULL,)}
"""What a draft's cache needed where each cause shows."""
LOOKED_UP = "lookup"
NEEDED = ("drafter", "drafted", "proposed", "accepted", "confidences", "proposed_ids", "emitted_ids")


@dataclass(frozen=True, slots=True)
class Rescored:
    """What re-scoring found: per kind of cycle, those whose request had not differed before, and onsets."""

    requests: int
    left_out: int
    """Requests that could not be re-scored (sampled, or tokens missing) or were beyond the limit."""
    compared_tokens: int
    clean: Mapping[str, int]
    onsets: Mapping[str, int]
    largest: float
    """The largest difference of a confidence."""

    @property
    def same_model(self) -> bool:
        """Whether the controls, first cycles in which no cache can be wrong yet, agree with this model."""
        return self.onsets.get(FIRST, 0) <= SHARE * max(1, self.clean.get(FIRST, 0))

    def examined(self, cause: str) -> tuple[int, int]:
        """Cycles that could have shown a cause, and how many of them did.

        Raises:
            ValueError: for a cause that re-scoring cannot judge.
        """
        if cause not in KINDS:
            raise ValueError(f"cause: {cause!r} cannot be re-scored; {', '.join(KINDS)} can")
        kinds = KINDS[cause]
        return sum(self.clean.get(kind, 0) for kind in kinds), sum(self.onsets.get(k, 0) for k in kinds)

    def verdict(self, cause: str) -> str:
        """``confirmed``, ``refuted``, ``not_enough_evidence`` or ``open``.

        Raises:
            ValueError: for a cause that re-scoring cannot judge.
        """
        cycles, onsets = self.examined(cause)
        if not self.same_model:
            return OPEN
        counts = [(self.onsets.get(kind, 0), self.clean.get(kind, 0)) for kind in KINDS[cause]]
        if any(seen >= FEWEST and seen >= SHARE * clean for seen, clean in counts):
            return CONFIRMED if self.clean.get(FIRST, 0) >= CONTROLS else TOO_FEW
        if odds_of_at_most(onsets, cycles) > ODDS:
            return TOO_FEW
        return REFUTED if onsets <= HEALTHY_SHARE * cycles else OPEN

    def evidence(self, cause: str) -> dict[str, float]:
        """The numbers behind a verdict."""
        values = {"rescored_requests": self.requests, "largest_confidence_difference": self.largest}
        for kind in (FIRST, *KINDS[cause], NEITHER):
            if self.clean.get(kind):
                values[f"rescored_cycles_{kind}"] = self.clean[kind]
                values[f"requests_that_begin_to_differ_{kind}"] = self.onsets.get(kind, 0)
        return values

    def to_json(self) -> dict[str, Any]:
        """The result object's ``rescored``."""
        return {
            "requests": self.requests,
            "left_out": self.left_out,
            "compared_tokens": self.compared_tokens,
            "clean_cycles": dict(self.clean),
            "onsets": dict(self.onsets),
            "largest_confidence_difference": self.largest,
            "same_model": self.same_model,
            "verdicts": {cause: self.verdict(cause) for cause in KINDS},
            "examined_cycles": {cause: self.examined(cause)[0] for cause in KINDS},
            "cycles_needed_to_refute": {cause: cycles_needed(self.examined(cause)[1]) for cause in KINDS},
            "odds_of_missing": {cause: odds_of_at_most(*reversed(self.examined(cause))) for cause in KINDS},
        }


def odds_of_at_most(seen: int, cycles: int, share: float = SHARE) -> float:
    """P(a fault shows at most ``seen`` times in ``cycles``), if each shows it with probability ``share``.

    The binomial distribution, exact; cycles count as independent, since none is counted after a difference.
    """
    if seen >= cycles:
        return 1.0
    return math.fsum(binomial(count, cycles, share) for count in range(seen + 1))


def cycles_needed(seen: int) -> int:
    """The fewest examined cycles with ``seen`` differences that can refute a fault."""
    low, high = seen, max(1, math.ceil(seen / HEALTHY_SHARE))
    while odds_of_at_most(seen, high) > ODDS:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if odds_of_at_most(seen, middle) > ODDS else (low, middle)
    return max(high, math.ceil(seen / HEALTHY_SHARE))


@dataclass(slots=True)
class _Request:
    """A request's cycles in order; of one that cannot be re-scored none are kept."""

    fresh: bool
    """Whether no earlier request filled its cache."""
    prompt: list[int] | None = None
    cycles: list[Mapping[str, Any]] = field(default_factory=list)
    whole: bool = True

    def add(self, record: Mapping[str, Any], wanted: bool) -> None:
        if not self.cycles:
            self.prompt = record.get("prompt_ids")
        told = record.get("emitted_ids") is not None and record["index"] == len(self.cycles)
        self.whole &= wanted and bool(self.prompt) and told and record.get("temperature") == 0.0
        if self.whole:
            self.cycles.append({name: record.get(name) for name in NEEDED})
        else:
            self.cycles.clear()


def rescore(path: Path, draft: CausalLM, *, partial: bool = False) -> Rescored:
    """Run the requests of a trace through the draft model, one fresh pass each.

    Args:
        path: the trace.
        draft: the draft model that the engine ran.
        partial: accept a trace that was cut.

    Raises:
        ValueError: if the trace has no request that can be re-scored, or tokens that the model does not have.
        OSError: if the file cannot be read.
    """
    reader = TraceReader(path, partial)
    requests: dict[str, _Request] = {}
    taken = 0
    cached: dict[str, int | None] = {}
    for record in reader.objects():
        if record.get("kind") == "admit":
            cached[record["request"]] = record.get("cached_tokens")
        elif record.get("kind") == "cycle" and record.get("status") == OBSERVED:
            name = record["request"]
            if name not in requests:
                # A trace that was cut may lack the admission: then nothing is known of the cache.
                requests[name] = _Request(cached.pop(name, None) == 0)
            taken += not requests[name].cycles
            requests[name].add(record, taken <= MOST_REQUESTS)
            taken -= not requests[name].cycles
    usable = [request for request in requests.values() if request.whole]
    if not usable:
        raise ValueError(
            f"rescore: {path.name} has no greedy request with its prompt_ids, proposed_ids and emitted_ids. "
            "They are a user's text and written only if asked for (`specpilot serve --trace FILE "
            "--trace-ids`); record such a trace, or diagnose without --rescore"
        )
    clean: Counter[str] = Counter()
    onsets: Counter[str] = Counter()
    tokens, largest = 0, 0.0
    for request in usable:
        compared, most = _compare(path.name, request, draft, clean, onsets)
        tokens += compared
        largest = max(largest, most)
    return Rescored(len(usable), len(requests) - len(usable), tokens, clean, onsets, largest)


def _compare(
    name: str, request: _Request, draft: CausalLM, clean: Counter[str], onsets: Counter[str]
) -> tuple[int, float]:
    """Count a request's cycles up to the first that differs; (tokens compared, largest difference)."""
    prompt = request.prompt
    assert prompt is not None
    sequence = [*prompt]
    for record in request.cycles:
        sequence += record["emitted_ids"]
    sequence = sequence[: draft.context_limit]
    worst = max(sequence)
    if worst >= draft.vocab_size or min(sequence) < 0:
        raise ValueError(
            f"rescore: {name} holds token id {worst}, the draft model knows {draft.vocab_size}; give the "
            "models that the engine ran (--pair-draft)"
        )
    first = len(prompt) - 1
    if first >= len(sequence):
        return 0, 0.0
    (rows,) = draft.forward([ForwardItem(draft.new_cache(), sequence, logits_from=first)])
    logits = rows.astype(np.float64)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    at, tokens, largest = 0, 0, 0.0
    before: Mapping[str, Any] | None = None
    proven = request.fresh
    for record in request.cycles:
        gaps = _gaps(record, sequence[first + 1 + at :], chances[at:])
        if gaps:
            # On a reused cache the first comparison says whether it was right; a later cycle may inherit it.
            kind = _kind(before) if proven else REUSED
            proven = True
            clean[kind] += 1
            tokens += len(gaps)
            largest = max(largest, *gaps)
            if max(gaps) > TOLERANCE:
                onsets[kind] += 1
                break
        at += len(record["emitted_ids"])
        before = record
    return tokens, largest


def _gaps(record: Mapping[str, Any], taken: Sequence[int], chances: np.ndarray) -> list[float]:
    """How far the draft's choices are from a fresh pass's, as far as they lie on the output's way."""
    proposed, confidences = record.get("proposed_ids"), record.get("confidences")
    if not proposed or not confidences or record.get("drafter") == LOOKED_UP:
        return []
    gaps = []
    for place in range(min(len(proposed), len(confidences), len(chances))):
        top = float(chances[place].max())
        # Another token is a difference by what it lacks: a near-tie may fall either way.
        gaps.append(max(abs(top - confidences[place]), top - float(chances[place][proposed[place]])))
        if place >= len(taken) or taken[place] != proposed[place]:
            break
    return gaps


def _kind(before: Mapping[str, Any] | None) -> str:
    """What the draft's cache needed after the cycle before."""
    if before is None:
        return FIRST
    if not before["drafted"] or before.get("drafter") == LOOKED_UP:
        return CAUGHT
    if before.get("proposed_ids") is None:
        return CROP  # a tree: one path of its rows was kept
    if before["accepted"] == before["proposed"]:
        return FULL
    return CROP if before["accepted"] < before["drafted"] - 1 else NEITHER
