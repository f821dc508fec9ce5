"""Ratios of throughput between systems that took turns on the same batches, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

LEVEL = 0.95
RESAMPLES = 5000


@dataclass(frozen=True, slots=True)
class Account:
    """What one system did in each batch: tokens, and seconds of its own clock."""

    tokens: Sequence[float]
    seconds: Sequence[float]

    @classmethod
    def of_rates(cls, rates: Sequence[float]) -> Account:
        """Batches of a second each: two such accounts compare by their mean rates."""
        return cls(rates, [1.0] * len(rates))

    @property
    def rate(self) -> float:
        """Tokens per second over all batches."""
        return sum(self.tokens) / sum(self.seconds)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio and its interval (not a number where there are too few batches)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


def ratio(one: Account, other: Account, seed: int = 1, level: float = LEVEL) -> Ratio:
    """Tokens per second of ``one`` ÷ those of ``other``; batches are resampled in pairs (BCa).

    Args:
        one: the numerator's account.
        other: the denominator's, on the same batches in the same order.
        seed: of the resampling.
        level: of the interval.

    Raises:
        ValueError: if the two have not the same batches.
    """
    parts: Any = [np.asarray(part, float) for part in (one.tokens, one.seconds, other.tokens, other.seconds)]
    if len({len(part) for part in parts}) != 1:
        raise ValueError(
            f"batches: {[len(part) for part in parts]} differ; give one entry per batch and system"
        )
    value = float(_statistic(*parts))
    if len(parts[0]) < 3 or one == other:
        edge = value if one == other else math.nan
        return Ratio(value, edge, edge)
    found = bootstrap(
        parts,
        _statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=level,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Ratio(value, float(found.low), float(found.high))


def _statistic(
    tokens: np.ndarray[Any, Any],
    seconds: np.ndarray[Any, Any],
    other_tokens: np.ndarray[Any, Any],
    other_seconds: np.ndarray[Any, Any],
    axis: int = -1,
) -> Any:
    rate = tokens.sum(axis=axis) / seconds.sum(axis=axis)
    return rate / (other_tokens.sum(axis=axis) / other_seconds.sum(axis=axis))
