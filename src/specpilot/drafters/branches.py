"""Side branches: leaves beside a drafted chain, from distributions that the chain has already computed.

The second and third choice at a computed position cost no draft step, only their share of the verification
pass. Which are worth it follows the likelihood of their paths, best first (as in Sequoia, Chen et al. 2024).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from specpilot.decoding.types import Block
from specpilot.models.base import FloatArray

CHOICES = 4
"""Most candidates kept per position, the chain's own among them."""


def choices(logits: FloatArray) -> list[tuple[int, float]]:
    """The likeliest tokens of one position and their probabilities, shape (vocab,) → CHOICES pairs."""
    count = min(CHOICES, logits.size)
    best = np.argpartition(logits, -count)[-count:]
    best = best[np.argsort(-logits[best], kind="stable")]
    mass = np.exp(logits - logits[best[0]]).sum()
    return [(int(token), float(np.exp(logits[token] - logits[best[0]]) / mass)) for token in best]


def with_leaves(tokens: Sequence[int], ranked: Sequence[Sequence[tuple[int, float]]], leaves: int) -> Block:
    """The chain ``tokens`` and up to ``leaves`` leaves beside it, by the draft's probability of their path.

    Args:
        tokens: the chain, first in the block.
        ranked: per position of the chain, its candidates and their probabilities.
        leaves: most nodes beyond the chain.
    """
    candidates: list[tuple[float, int, int]] = []
    reach = 1.0
    for position, (own, offered) in enumerate(zip(tokens, ranked, strict=True)):
        chance = 0.0  # a sampled chain can hold a token outside the likeliest few
        for token, probability in offered:
            if token == own:
                chance = probability
            else:
                candidates.append((-reach * probability, position, token))
        reach *= chance
    side = heapq.nsmallest(leaves, candidates)
    return Block(
        (*tokens, *(token for _, _, token in side)),
        (*range(-1, len(tokens) - 1), *(position - 1 for _, position, _ in side)),
    )
