"""The binomial distribution: how many of so many independent trials succeed (scipy is no core dependency)."""

from __future__ import annotations

import math


def binomial(k: int, count: int, share: float) -> float:
    """P(K = k) for K ~ Binomial(count, share), 0 ≤ k ≤ count, 0 < share < 1."""
    log = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
    return math.exp(log + k * math.log(share) + (count - k) * math.log1p(-share))
