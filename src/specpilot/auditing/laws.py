"""What a faulty engine would emit: the law of a token under each usual fault of sampling, from p and q.

p and q are the target's and the draft's distributions after the same prefix, shaped by the request. With both
at hand the law of the emitted token is exact: under speculative sampling (Leviathan et al. 2023) a proposal
drawn from any q̃ and judged against q is emitted as

    q̃(x) · min(1, p(x)/q(x)) + (1 − A) · r(x),   A = Σ q̃ min(1, p/q),   r = (p − q)⁺ / Σ (p − q)⁺,

which is p where q̃ = q and nothing else has that law for every p. So a test can be aimed at each fault.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from specpilot.decoding.distribution import DoubleArray, probabilities
from specpilot.decoding.types import SamplingParams
from specpilot.models.base import FloatArray

CUT_MARGIN = 1e-3
"""Top-k or top-p cut that near to a token (logits, share of mass) may fall either way in another kernel."""

FAULTS = (
    "unverified_draft_token",
    "draft_argmax_judged_as_drawn",
    "draft_sharper_than_reported",
    "draft_flatter_than_reported",
    "recovered_token_from_p",
    "target_argmax",
    "target_unshaped",
    "target_sharper",
    "target_flatter",
    "noise_used_twice",
)
"""Rows of :func:`faulty_laws`."""
REPEATS = 5.0
"""Times that noise used twice is taken to make the token before it more likely."""


class Context(NamedTuple):
    """One prefix: p (vocab,) that a token there is drawn from, and what each fault would draw from.

    ``laws`` is (len(FAULTS), vocab).
    """

    p: DoubleArray
    laws: DoubleArray


def context(
    target: FloatArray, draft: FloatArray, params: SamplingParams, before: int | None = None
) -> Context | None:
    """The laws after a prefix, from the logits (vocab,) of both models there; ``before`` is its last token.

    ``None`` where rounding could move the cut of top-k or top-p: not judged, whatever is drawn there.
    """
    if not _cut_is_clear(target, params):
        return None
    p = probabilities(target, params)
    unshaped = probabilities(target, SamplingParams(1.0))
    return Context(p, faulty_laws(p, probabilities(draft, params), unshaped, before))


def faulty_laws(
    p: DoubleArray, q: DoubleArray, unshaped: DoubleArray, before: int | None = None
) -> DoubleArray:
    """(len(FAULTS), vocab); ``unshaped`` is the target's at temperature 1, nothing cut."""
    kept = np.minimum(p, q)
    accept = np.divide(kept, q, out=np.zeros_like(q), where=q > 0.0)
    residual = p - kept
    left = float(residual.sum())
    residual = residual / left if left > 0.0 else p

    def proposed(law: DoubleArray) -> DoubleArray:
        taken: DoubleArray = law * accept
        return taken + (1.0 - float(taken.sum())) * residual

    return np.stack(
        [
            q,
            proposed(_argmax(q)),
            proposed(_power(q, 2.0)),
            proposed(_power(q, 0.5)),
            kept + left * p,
            _argmax(p),
            unshaped,
            _power(p, 2.0),
            _power(p, 0.5),
            p if before is None else _repeated(p, before),
        ]
    )


def _repeated(p: DoubleArray, before: int) -> DoubleArray:
    """A token that won under some noise is likely to win under it again."""
    chance = float(p[before])
    again = min(REPEATS * chance, 0.5 * (1.0 + chance))
    law = p * ((1.0 - again) / max(1.0 - chance, 1e-12))
    law[before] = again
    return np.asarray(law / law.sum())


def _argmax(p: DoubleArray) -> DoubleArray:
    law = np.zeros_like(p)
    law[int(p.argmax())] = 1.0
    return law


def _power(p: DoubleArray, exponent: float) -> DoubleArray:
    weights = np.power(p, exponent)
    return np.asarray(weights / weights.sum())


def _cut_is_clear(logits: FloatArray, params: SamplingParams) -> bool:
    if 0 < params.top_k < logits.size:
        below, last = np.partition(logits, (-params.top_k - 1, -params.top_k))[-params.top_k - 1 :][:2]
        if 0.0 < last - below < CUT_MARGIN:
            return False
    if params.top_p < 1.0:
        whole = np.sort(probabilities(logits, SamplingParams(params.temperature, params.top_k)))[::-1]
        return bool(np.abs(np.cumsum(whole) - params.top_p).min() >= CUT_MARGIN)
    return True
