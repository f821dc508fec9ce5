"""Rules for engines that are wrong, not slow: what they show cannot come from a working one.

Each returns evidence (numbers) and a confidence, or ``None``. Where a signature is statistical, it is a
difference that is both large and many standard errors away from what a correct engine shows on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from specpilot.diagnosis.columns import GAP, NO_BONUS, SKIPPED, UNCOVERED, Bools, Floats, Ints, TraceColumns

Evidence = dict[str, float]
FIRM = 0.99
"""Confidence where a single occurrence is proof."""
SHIFT = 0.10
"""Least loss of acceptance that is blamed on a wrong KV cache."""
STRONG_Z = 4.0
CONTRAST_Z = 3.5


@dataclass(frozen=True, slots=True)
class Signature:
    """What a rule has found."""

    evidence: Evidence
    confidence: float


def unverified_emission(trace: TraceColumns) -> Signature | None:
    """Tokens were emitted that no pass covered, or that the target's pass had rejected."""
    if not trace.tells("emitted", "verified_tokens"):
        return None
    uncovered = int(((trace.odd & UNCOVERED) > 0).sum())
    rejected = int(((trace.odd & SKIPPED) > 0).sum())
    if not uncovered + rejected:
        return None
    return Signature(
        {
            "cycles_without_a_covering_pass": uncovered,
            "cycles_emitting_a_rejected_token": rejected,
            "share_of_cycles": (uncovered + rejected) / len(trace),
        },
        FIRM,
    )


def non_prefix_accept(trace: TraceColumns) -> Signature | None:
    """Accepted positions are not the first ones of the block."""
    count = int(((trace.odd & GAP) > 0).sum())
    if not count:
        return None
    return Signature({"cycles_with_a_gap": count, "share_of_cycles": count / len(trace)}, FIRM)


def lost_bonus(trace: TraceColumns) -> Signature | None:
    """Full accepts that end without the target's own token, although the output went on."""
    if not trace.tells("emitted", "accepted"):
        return None
    full = (trace.proposed > 0) & (trace.accepted == trace.proposed) & (trace.ended == 0)
    count = int(((trace.odd & NO_BONUS) > 0).sum())
    if not count:
        return None
    return Signature(
        {"full_accepts_without_bonus": count, "share_of_full_accepts": count / max(1, int(full.sum()))}, FIRM
    )


def cache_shift(trace: TraceColumns) -> tuple[Signature | None, Signature | None]:
    """(KV misalignment, bonus token not fed to the draft).

    Draft tokens are taken with their confidence. What a confidence is worth is learnt from cycles whose draft
    cache cannot be wrong yet (each request's first). A later cycle's first token is compared with that, by
    what its cache needed before it: rows cropped (a rejection inside the block), the bonus token fed (a full
    accept), many tokens caught up (after plain cycles), or nothing (the last token drafted was the one
    rejected). Text that was rejected once is harder, so a rejection alone is no proof: the loss after a crop
    must also exceed the loss after a rejection that needed no crop. After a full accept text is easier.
    """
    if not trace.tells("confidences", "drafted"):
        return None, None
    expected = _calibration(trace)
    history = _History.of(trace)
    if expected is None:
        return None, None
    loss = np.where(history.asked, (trace.accepted > 0) - expected, np.nan)
    # A wrong row may be felt for some cycles, so cycles with a single kind of event behind them come first.
    crop = _first_clear(loss, history.cropped, ~history.full_before)
    full = _first_clear(loss, history.full, ~history.crop_before)
    neither = _first_clear(loss, history.neither, ~history.crop_before & ~history.full_before)
    caught = _first_clear(loss, history.caught, ~history.crop_before & ~history.full_before)
    # Without enough cycles that needed nothing, a rejection is granted what it costs at most by difficulty.
    allowed = min(0.0, neither.value + neither.error) if neither.count >= 40 else -0.12
    shifted = crop.below(allowed - SHIFT) or crop.worse_than(neither)
    shifted = shifted and not full.value < crop.value - SHIFT
    evidence = {
        "loss_after_crop": -crop.value,
        "loss_after_crop_se": crop.error,
        "cycles_after_crop": crop.count,
        "loss_when_nothing_was_needed": -neither.value,
        "cycles_when_nothing_was_needed": neither.count,
        "loss_after_full_accept": -full.value,
        "cycles_after_full_accept": full.count,
        "loss_after_catching_up": -caught.value,
        "cycles_after_catching_up": caught.count,
    }
    evidence = {name: value for name, value in evidence.items() if not math.isnan(value)}
    catching = caught.below(-0.3 - SHIFT)
    unfed = (full.below(-0.6 * SHIFT) or full.worse_than(crop)) and not shifted
    found = Signature(evidence, sure(min(crop.z(0.0), 0.0))) if shifted or catching else None
    bonus = Signature(evidence, sure(full.z(0.0))) if unfed else None
    return found, bonus


def tokenizer_mismatch(trace: TraceColumns) -> Signature | None:
    """Confident drafts that are never right: for all tokens, or for some token ids while others are fine.

    A token id is dead if it was judged often, its confidences promised several accepts and none came. Where
    the ids of draft and target are permuted, the target's own token is moreover always the same one.
    """
    first = _first_confidence(trace)
    # A request's first cycle: no rejection has yet had a chance to spoil the draft's cache.
    fresh = (trace.cycles["index"] == 0) & (trace.proposed > 0) & ~np.isnan(first)
    asked = fresh if fresh.sum() >= 40 else (trace.proposed > 0) & ~np.isnan(first)
    if asked.sum() >= 40:
        right = float((trace.accepted[asked] > 0).mean())
        promised = float(first[asked].mean())
        answers = _answers(trace)
        if promised > 0.15 and right < 0.1 and right < 0.25 * promised and not answers < 0.4:
            evidence = {"acceptance": right, "confidence": promised}
            known = {} if math.isnan(answers) else {"share_replaced_by_one_and_the_same_token": answers}
            return Signature(evidence | known, 0.95 if known else 0.75)
    return _dead_ids(trace)


def _answers(trace: TraceColumns) -> float:
    """How often a rejected id is replaced by its most frequent replacement; NaN where too little is known."""
    proposed, own, right, _ = trace.ids
    wrong, own = proposed[~right], own[~right]
    if not len(wrong):
        return math.nan
    counts = np.bincount(wrong)
    often = np.flatnonzero(counts >= 3)
    if len(often) < 5:
        return math.nan
    same = sum(int(np.bincount(own[wrong == token]).max()) for token in often)
    return same / float(counts[often].sum())


def _dead_ids(trace: TraceColumns) -> Signature | None:
    proposed, own, right, confidence = trace.ids
    if len(proposed) < 200:
        return None
    size = int(proposed.max()) + 1
    seen = np.bincount(proposed, minlength=size)
    hits = np.bincount(proposed, weights=right, minlength=size)
    promised = np.bincount(proposed, weights=confidence, minlength=size)
    # Drafts may be overconfident; what all tokens together show is taken off.
    worth = min(1.0, float(right.sum()) / max(1e-9, float(confidence.sum())))
    worth = max(worth, 0.5)
    dead = (hits == 0) & (promised * worth >= 3.0)
    judged = promised * worth >= 3.0
    if dead.sum() < 3 or not judged.any():
        return None
    wrong = ~right & dead[proposed]
    same = 0
    for token in np.flatnonzero(dead):
        same += int(np.bincount(own[wrong & (proposed == token)]).max())
    one_answer = same / max(1, int(wrong.sum()))
    share = float(seen[dead].sum() / seen.sum())
    if share < 0.04 or one_answer < 0.5:
        return None
    return Signature(
        {
            "token_ids_never_accepted": int(dead.sum()),
            "token_ids_judged_as_often": int(judged.sum()),
            "share_of_draft_tokens": share,
            "share_replaced_by_one_and_the_same_token": one_answer,
            "accepts_promised_by_confidence": float(promised[dead].sum()),
        },
        0.95,
    )


@dataclass(frozen=True, slots=True)
class _Estimate:
    value: float
    error: float
    count: int

    def z(self, limit: float) -> float:
        """How many standard errors above ``limit``."""
        return (self.value - limit) / max(self.error, 1e-9) if self.count else 0.0

    def below(self, limit: float) -> bool:
        """Clearly below: at least forty cycles, and four standard errors below the half-way to 0."""
        return self.count >= 40 and self.value < limit and self.z(limit * 0.5) < -STRONG_Z

    def worse_than(self, other: _Estimate) -> bool:
        """Clearly worse than cycles of another kind, and than expected; both are needed in number."""
        if self.count < 40 or other.count < 60:
            return False
        gap = self.value - other.value
        return (
            gap < -SHIFT
            and self.value < -0.5 * SHIFT
            and gap < -CONTRAST_Z * math.hypot(self.error, other.error)
        )


def _mean(values: Floats, mask: Bools) -> _Estimate:
    part = values[mask & ~np.isnan(values)]
    if len(part) < 2:
        return _Estimate(math.nan, math.nan, len(part))
    return _Estimate(float(part.mean()), float(part.std(ddof=1)) / math.sqrt(len(part)), len(part))


def _first_clear(values: Floats, mask: Bools, clear: Bools) -> _Estimate:
    """Over the clear cases where there are enough of them, else over all."""
    found = _mean(values, mask & clear)
    return found if found.count >= 40 else _mean(values, mask)


def sure(z: float) -> float:
    """A confidence from a z (negative: against the healthy engine)."""
    return min(FIRM, 1.0 - 0.5 * math.exp(z / 4.0))


def _first_confidence(trace: TraceColumns) -> Floats:
    """Each cycle's first confidence; NaN where there is none."""
    lists = trace.confidences
    first = np.full(len(trace), np.nan)
    there = lists.lengths() > 0
    first[there] = lists.values[lists.offsets[:-1][there]]
    return first


def _calibration(trace: TraceColumns, bins: int = 6, parts: int = 5) -> Floats | None:
    """What each cycle's first confidence is worth, from the tokens judged in requests' first cycles."""
    first = _first_confidence(trace)
    lists = trace.confidences
    start = np.flatnonzero(trace.cycles["index"] == 0)
    lengths = lists.lengths()
    judged = np.minimum(np.minimum(trace.accepted[start] + 1, trace.proposed[start]), lengths[start])
    if judged.sum() < 100:
        return None
    cycle = np.repeat(start, judged)
    place = np.arange(len(cycle)) - np.repeat(np.cumsum(judged) - judged, judged)
    confidence = lists.values[lists.offsets[:-1][cycle] + place].astype(np.float64)
    right = trace.accepted[cycle] > place
    # Acceptance may fall with the context, and long contexts are cropped more often: they are told apart.
    context = np.log2(np.maximum(trace.prompt_tokens, 1).astype(np.float64))
    cuts = np.quantile(context[start], np.linspace(0.0, 1.0, parts + 1)[1:-1])
    fifth = np.searchsorted(cuts, context)
    expected = np.full(len(trace), np.nan)
    known = ~np.isnan(first)
    overall = float(right.mean())
    for part in range(len(cuts) + 1):
        there = fifth[cycle] == part
        mine = known & (fifth == part)
        if not there.any():
            expected[mine] = overall
            continue
        edges = np.quantile(confidence[there], np.linspace(0.0, 1.0, bins + 1)[1:-1])
        group = np.searchsorted(edges, confidence[there])
        hits = np.bincount(group, weights=right[there], minlength=bins)
        worth = (hits + 4.0 * overall) / (np.bincount(group, minlength=bins) + 4.0)
        expected[mine] = worth[np.searchsorted(edges, first[mine])]
    return expected


@dataclass(frozen=True, slots=True)
class _History:
    """What each cycle's draft cache needed, and what its request's cycles before that had needed."""

    asked: Bools
    cropped: Bools
    full: Bools
    neither: Bools
    caught: Bools
    crop_before: Bools
    full_before: Bools

    @classmethod
    def of(cls, trace: TraceColumns) -> _History:
        count = len(trace)
        order = np.lexsort((trace.cycles["index"], trace.request))
        request = trace.request[order]
        same = np.zeros(count, dtype=bool)
        same[1:] = request[1:] == request[:-1]
        drafted, accepted, proposed = (
            _before(getattr(trace, name)[order]) for name in ("drafted", "accepted", "proposed")
        )
        was = same & (drafted > 0) & (proposed > 0)
        full = was & (accepted == proposed)
        cropped = was & ~full & (accepted < drafted - 1)
        neither = was & ~full & ~cropped
        caught = same & (drafted == 0)
        asked = trace.proposed[order] > 0
        result = []
        parts = (asked, cropped, full, neither, caught, _so_far(cropped, same), _so_far(full, same))
        for part in parts:
            back = np.empty(count, dtype=bool)
            back[order] = part
            result.append(back)
        return cls(*result)


def _before(values: Ints) -> Ints:
    return np.concatenate([values[:1], values[:-1]])


def _so_far(event: Bools, same: Bools) -> Bools:
    """Whether the event has happened in an earlier cycle of the request (the cycle itself left out)."""
    total = np.cumsum(event)
    starts = np.flatnonzero(~same)
    base: Ints = np.repeat(total[starts] - event[starts], np.diff(np.append(starts, len(event))))
    return np.asarray(total - event - base > 0)
