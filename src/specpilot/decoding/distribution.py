"""From logits to the distribution that a token is drawn from: the same function for p and for q.

Losslessness under sampling needs nothing of q but that the drafter drew from exactly the q that the
acceptance rule is told; it is acceptance that suffers where p and q are shaped differently. So
temperature, top-k and top-p have one implementation, applied alike to the target's and the draft's
logits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from specpilot.decoding.types import SamplingParams
from specpilot.models.base import FloatArray

DoubleArray = npt.NDArray[np.float64]

_SAFE = 60.0
"""exp(±60) times any vocabulary stays far inside float32's range (exp(88) does not)."""
_ONES: FloatArray = np.ones(8192, dtype=np.float32)
"""OpenBLAS computes a dot product of up to 10,000 numbers in one thread."""


def top_token(logits: FloatArray) -> tuple[int, float]:
    """The most likely token and its raw softmax probability (temperature 1, nothing cut).

    The hot path of greedy drafting: one argmax and one log-sum-exp over ``logits`` of shape (vocab,).
    """
    top = int(logits.argmax())
    peak = logits.item(top)
    if -_SAFE < peak < _SAFE:  # nothing can overflow: one pass over the vocabulary fewer
        weights = np.exp(logits)
        return top, weights.item(top) / _sum(weights)
    return top, 1.0 / _sum(np.exp(logits - peak))


def top_tokens(logits: FloatArray) -> tuple[list[int], list[float]]:
    """:func:`top_token` of each row of ``logits`` (n, vocab), to the last bit."""
    if len(logits) == 1:
        token, confidence = top_token(logits[0])
        return [token], [confidence]
    tops = logits.argmax(axis=1).tolist()
    if not all(-_SAFE < logits.item(row, top) < _SAFE for row, top in enumerate(tops)):
        return tops, [top_token(row)[1] for row in logits]
    weights = np.exp(logits)
    return tops, [weights.item(row, top) / _sum(weights[row]) for row, top in enumerate(tops)]


def _sum(weights: FloatArray) -> float:
    """The sum of ``weights`` (vocab,).

    A dot product has far less code to it than numpy's sum: 18 instead of 26 µs for the whole of
    :func:`top_token` between two forward passes, which leave nothing in the caches. Where BLAS would spread
    it over threads the sum is the better one.
    """
    if weights.size > _ONES.size:
        return float(np.add.reduce(weights))
    return float(weights.dot(_ONES[: weights.size]))


def probabilities(logits: FloatArray, params: SamplingParams) -> DoubleArray:
    """The distribution that ``params`` makes of ``logits`` (both of shape (vocab,)).

    In this order, as is usual: temperature; top-k (the k likeliest, ties with the k-th kept); top-p (of
    what is left, the smallest set of the likeliest whose mass reaches ``top_p``, at least one token).

    Raises:
        ValueError: for temperature 0, which is no distribution to draw from but an argmax.
    """
    if params.temperature == 0.0:
        raise ValueError("temperature: 0 is not > 0; greedy decoding draws nothing, use the Greedy rule")
    # The maximum is taken off before the division, so that a tiny temperature cannot overflow.
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    if 0 < params.top_k < shifted.size:
        least = np.partition(shifted, -params.top_k)[-params.top_k]
        shifted[shifted < least] = -np.inf
    with np.errstate(over="ignore"):
        shifted /= params.temperature
    weights = np.exp(shifted)
    weights /= weights.sum()
    if params.top_p < 1.0:
        _keep_nucleus(weights, params.top_p)
        weights /= weights.sum()
    return weights


def _keep_nucleus(weights: DoubleArray, top_p: float) -> None:
    """Set all but the likeliest tokens of mass ``top_p`` to 0; of those alike at the edge the first stay."""
    # Tokens this unlikely hold less than 1 − top_p together: they need not be sorted.
    likely = np.flatnonzero(weights > 0.5 * (1.0 - top_p) / weights.size)
    values = weights[likely]
    ordered = np.sort(values)[::-1]  # sorting values takes a fifteenth of the time of sorting places
    kept = min(int(np.searchsorted(np.cumsum(ordered), top_p)) + 1, values.size)
    least = ordered[kept - 1]
    spare = int(np.count_nonzero(values >= least)) - kept
    weights *= weights >= least
    if spare:
        weights[np.flatnonzero(weights == least)[-spare:]] = 0.0


def draw(weights: DoubleArray, uniform: float) -> int:
    """The token at quantile ``uniform`` (in [0, 1)) of non-negative ``weights`` (any positive sum)."""
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    if index == weights.size:  # uniform · sum was rounded up to the sum
        index = int(np.flatnonzero(weights)[-1])
    return index
