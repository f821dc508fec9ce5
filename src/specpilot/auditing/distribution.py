"""Sampled tokens against the target's own distribution: a G-test whose odds of error are stated.

Tests condition on the prefix and never on the length: a cell is one prompt, one position and the commonest
prefix up to it, and its counts are compared with p after that prefix (temperature, top-k and top-p applied).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from specpilot.decoding.distribution import DoubleArray

LEAST_EXPECTED = 5.0
"""Tokens that are expected less often share one bin."""
FALSE_ALARM = 1e-4
"""Odds that a healthy system fails the whole check (Bonferroni over its cells)."""
POWER = 0.9
"""With which the smallest visible fault is stated."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One test: how often each token came after a prefix, and how often it should have."""

    prompt: int
    position: int
    count: int
    p_value: float
    visible_share: float
    """The least share of tokens that would have to be the target's likeliest one instead of a draw, for
    this cell alone to see it with :data:`POWER`; 1 if it would see none."""


def judge_cells(
    samples: Sequence[Sequence[Sequence[int]]], distribution: Callable[[int, tuple[int, ...]], DoubleArray]
) -> list[Cell]:
    """Test each prompt's samples position by position.

    Args:
        samples: per prompt the sampled outputs, as token ids.
        distribution: (prompt, prefix) → p (vocab,).
    """
    cells = []
    tests = sum(max((len(output) for output in outputs), default=0) for outputs in samples)
    for prompt, outputs in enumerate(samples):
        prefix: tuple[int, ...] = ()
        for position in range(max((len(output) for output in outputs), default=0)):
            drawn = [
                output[position]
                for output in outputs
                if len(output) > position and tuple(output[:position]) == prefix
            ]
            if len(drawn) < 40:
                break
            counts = Counter(drawn)
            cells.append(_cell(prompt, position, counts, distribution(prompt, prefix), tests))
            prefix = (*prefix, counts.most_common(1)[0][0])
    return cells


def _cell(prompt: int, position: int, counts: Counter[int], p: DoubleArray, tests: int) -> Cell:
    from scipy import stats

    total = counts.total()
    large = np.flatnonzero(p * total >= LEAST_EXPECTED)
    observed = np.array([*(counts[int(token)] for token in large), 0.0])
    observed[-1] = total - observed.sum()
    expected = np.array([*(p[large] * total), 0.0])
    expected[-1] = max(0.0, total - expected.sum())
    if expected[-1] < LEAST_EXPECTED and len(large):
        # Too little is left for a bin of its own; a token that p forbids fails at once.
        if expected[-1] < 1e-6 * total and observed[-1] > 0:
            return Cell(prompt, position, total, 0.0, 0.0)
        least = int(expected[:-1].argmin())
        expected[least] += expected[-1]
        observed[least] += observed[-1]
        expected, observed = expected[:-1], observed[:-1]
    if len(expected) < 2:
        return Cell(prompt, position, total, 1.0, 1.0)
    value = float(stats.power_divergence(observed, expected, lambda_="log-likelihood").pvalue)
    return Cell(prompt, position, total, value, _visible(expected / total, total, FALSE_ALARM / tests))


def _visible(shares: DoubleArray, count: int, alpha: float) -> float:
    """The least mixture with the likeliest bin that a χ² test of this size sees (noncentral χ²)."""
    from scipy import stats

    freedom = len(shares) - 1
    limit = stats.chi2.isf(alpha, freedom)
    top = np.zeros_like(shares)
    top[int(shares.argmax())] = 1.0
    unit = float((((top - shares) ** 2) / shares).sum())
    for percent in range(1, 101):
        share = percent / 100.0
        if stats.ncx2.sf(limit, freedom, count * share**2 * unit) >= POWER:
            return share
    return 1.0


def judge(cells: Sequence[Cell]) -> tuple[bool, dict[str, Any]]:
    """Whether all cells pass together, and what they say."""
    if not cells:
        return True, {"cells": 0}
    worst = min(cells, key=lambda cell: cell.p_value)
    adjusted = min(1.0, worst.p_value * len(cells))
    return adjusted >= FALSE_ALARM, {
        "cells": len(cells),
        "samples": sum(cell.count for cell in cells),
        "least_p_value": worst.p_value,
        "adjusted_p_value": adjusted,
        "false_alarm_odds": FALSE_ALARM,
        "at": {"prompt": worst.prompt, "position": worst.position},
        "visible_share": median(cell.visible_share for cell in cells),
        "power": POWER,
    }
