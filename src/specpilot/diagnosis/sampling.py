"""Is what was sampled a draw of the target's distribution? Three identities and a bet.

Two identities hold for rejection sampling alone, one for every way to sample. The bet is on what holds for
every rule of acceptance, of chains and of trees: an emitted token is a draw from p after its prefix. With
the tokens in order of p, the uniform number that would draw it lies anywhere between two ends, evenly (the
probability integral transform, Rosenblatt 1952; randomised where tokens are atoms). For any density f on
[0, 1] that is fixed before the token is seen, the mean of f between those ends is then 1 on average, exactly;
and the product of such means over all tokens ever reaches 1/α with odds of at most α (Ville 1939).

That is blind to noise that is used twice: each token by itself is right. But a token that won under some
noise is likely to win under the same noise again. So there is a second kind of bet, on the token before it
coming again more often than p says.
"""

from __future__ import annotations

import math

import numpy as np

from specpilot.diagnosis.columns import Bools, Floats, TraceColumns
from specpilot.diagnosis.correctness import FIRM, Evidence, Signature, sure

FALSE_ALARM = 1e-6
"""Odds at most that a trace of a healthy engine, however long, is taken for a wrong one by the bet."""
EXPONENTS = (0.2, 0.5, 2.0, 5.0)
"""Densities b·u^(b − 1): below 1 unlikely tokens come too often (a flatter law, the draft's token), above 1
too seldom (a sharper one, no chance at all)."""
SHARES = (0.03, 0.1, 0.3, 0.9)
"""Of the tokens that the fault is taken to strike."""
REPEATS = (2.0, 5.0, 20.0)
"""Times that the token before comes more often than it should."""
EDGES = np.array([0.0, 1e-4, 1e-3, 1e-2, 3e-2, *np.arange(0.1, 1.0, 0.1), 1.0])
"""Of the density that is learned from the tokens so far, for faults that nobody thought of."""
PRIOR = 200.0
"""Tokens' worth of the uniform density in it."""
STAKES = (0.5, 0.25, 0.25)
"""Directed, repeats, learned."""
CHUNK = 1000
"""Tokens between two looks; the learned density knows the chunks before."""


def sampling_mismatch(trace: TraceColumns) -> Signature | None:
    """Sampled tokens that are not drawn as they should be.

    Whatever the models are: a judged token is accepted with probability Σ min(p, q), and the token drawn is
    q's likeliest one with probability max q (rejection sampling). No distribution at a temperature above 0
    puts all its mass on one token, time after time. And what is emitted is a draw from p (:func:`bet`).
    """
    evidence: Evidence = {}
    confidence = 0.0
    overlaps = trace.overlaps
    judged = overlaps.lengths()
    if judged.sum() >= 200:
        cycle = np.repeat(np.arange(len(trace)), judged)
        place = np.arange(len(cycle)) - overlaps.offsets[:-1][cycle]
        gap, z = _identity(trace.accepted[cycle] > place, overlaps.values)
        if abs(gap) >= 0.03 and abs(z) >= 5.0:
            evidence |= {"acceptance_less_overlap": gap, "overlap_z": z}
            confidence = max(confidence, sure(-abs(z)))
    drawn = trace.proposal_q
    count = drawn.lengths()
    if count.sum() >= 200:
        cycle = np.repeat(np.arange(len(trace)), count)
        place = np.arange(len(cycle)) - drawn.offsets[:-1][cycle]
        known = place < trace.confidences.lengths()[cycle]
        cycle, place = cycle[known], place[known]
        top = trace.confidences.values[trace.confidences.offsets[:-1][cycle] + place]
        likeliest = drawn.values[known] >= top * (1.0 - 1e-4)
        gap, z = _identity(likeliest, top)
        if abs(gap) >= 0.03 and abs(z) >= 5.0:
            evidence |= {"likeliest_token_drawn_less_its_probability": gap, "drawn_z": z}
            confidence = max(confidence, sure(-abs(z)))
        certain = float((top >= 1.0 - 1e-6).mean())
        if certain >= 0.9:
            evidence |= {"share_of_tokens_drawn_without_chance": certain}
            confidence = max(confidence, 0.95)
    low, high, again, repeated = trace.sampled.values.reshape(-1, 4).T
    found = bet(low, high, again, repeated > 0.5)
    if found is not None:
        evidence |= found
        confidence = FIRM
    return Signature(evidence, confidence) if evidence else None


def bet(low: Floats, high: Floats, again: Floats, repeated: Bools) -> Evidence | None:
    """The numbers, where the tokens prove that they are no draws from p; else ``None``.

    Args:
        low: (n,) probability of a token less likely than the one drawn, in the order of drawing.
        high: (n,) of one at most as likely; 0 where p forbids the token.
        again: (n,) p of the token before it.
        repeated: (n,) whether it is that token.
    """
    forbidden = int((high <= 0.0).sum())
    if forbidden:
        return {"sampled_tokens": len(low), "tokens_that_p_forbids": forbidden}
    directed = np.zeros((len(EXPONENTS), len(SHARES)))
    repeats = np.zeros(len(REPEATS))
    learned = 0.0
    counts = np.zeros(len(EDGES) - 1)
    best = -math.inf
    for start in range(0, len(low), CHUNK):
        part = slice(start, start + CHUNK)
        directed += _directed(low[part], high[part])
        repeats += _repeats(again[part], repeated[part])
        inside = _inside(low[part], high[part])
        density = (counts + PRIOR * np.diff(EDGES)) / (counts.sum() + PRIOR) / np.diff(EDGES)
        learned += float(np.log(inside @ density).sum())
        counts += inside.sum(axis=0)
        best = max(best, _nats(directed, repeats, learned))
    if best < -math.log(FALSE_ALARM):
        return None
    return {
        "sampled_tokens": len(low),
        "odds_of_these_by_chance": math.exp(-best),
        # One half if they are draws; below where unlikely tokens come too often.
        "mean_quantile_of_sampled_tokens": float((0.5 * (low + high)).mean()),
        "repeats_of_the_token_before": int(repeated.sum()),
        "repeats_expected": float(again.sum()),
    }


def _directed(low: Floats, high: Floats) -> Floats:
    """Log growth (len(EXPONENTS), len(SHARES)) of the bets on a share of tokens of another density."""
    width = high - low
    growth = []
    for exponent in EXPONENTS:
        mean = (high**exponent - low**exponent) / width
        growth.append([float(np.log1p(share * (mean - 1.0)).sum()) for share in SHARES])
    return np.array(growth)


def _repeats(again: Floats, repeated: Bools) -> Floats:
    """Log growth (len(REPEATS),) of the bets on repeats; where p leaves no chance there is nothing to bet."""
    open_ = (again > 0.0) & (again < 1.0 - 1e-9)
    p, hit = again[open_], repeated[open_]
    growth = []
    for times in REPEATS:
        law = np.minimum(times * p, 0.5 * (1.0 + p))
        growth.append(float(np.log(np.where(hit, law / p, (1.0 - law) / (1.0 - p))).sum()))
    return np.array(growth)


def _inside(low: Floats, high: Floats) -> Floats:
    """(n, bins): the share of each token's interval in each bin."""
    shared = np.minimum(high[:, None], EDGES[None, 1:]) - np.maximum(low[:, None], EDGES[None, :-1])
    shared = np.maximum(shared, 0.0)
    return np.asarray(shared / shared.sum(axis=1, keepdims=True))


def _nats(directed: Floats, repeats: Floats, learned: float) -> float:
    """Log of the average of all bets, each weighted by its stake."""
    parts = (directed.ravel(), repeats, np.array([learned]))
    bets = np.concatenate(
        [part + math.log(stake / part.size) for part, stake in zip(parts, STAKES, strict=True)]
    )
    top = float(bets.max())
    return top + math.log(float(np.exp(bets - top).sum()))


def _identity(happened: Bools, probability: Floats) -> tuple[float, float]:
    """(mean excess, its z): the summands are martingale differences, so no independence is needed."""
    excess = float(happened.sum()) - float(probability.sum(dtype=np.float64))
    variance = float((probability * (1.0 - probability)).sum(dtype=np.float64))
    return excess / max(1, len(probability)), excess / math.sqrt(max(variance, 1e-9))
