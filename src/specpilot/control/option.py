"""What a block is worth that stops where its confidences say so: optimal stopping, solved backwards.

The best fixed τ takes every token to be as likely as the mean. A block that looks at each token's confidence
before it goes on is worth more, the more so the further confidences scatter; where drafting just about pays
this decides between drafting and plain decoding. With S = Π α̂ so far, before draft step k,

    F_k(S) = −θ · step + E[max(0, S · α̂_k · ΔV_k − θ · Δverify_k + F_{k+1}(S · α̂_k)⁺)]

over α̂_k, whose logit scatters normally around the hazard h_k (three points of equal weight). The block is
worth F_1(1), and step k is run while F_k(S) > 0. SpecDec++ (Huang et al. 2024) solves the same problem by a
head trained for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, inf, log, pi, sqrt

_STEP = 0.35
_POINTS = 12
_GRID = [exp(-_STEP * point) for point in range(_POINTS)]
"""S on a logarithmic grid, 1 first; below its end nothing is worth drafting on."""
_SCATTER = (1.2247, 0.0, -1.2247)
"""Three equally likely points with the variance of a standard normal, the best first."""
_FINE = 128.0
"""Hazards are told apart by so much of one, spreads by an eighth of it."""

_Taps = tuple[int, int, int, float, float, float, float, float, float]


def adaptive_block(
    hazards: Sequence[float],
    spread: float,
    worth: Sequence[float],
    step_price: float,
    verify_prices: Sequence[float],
) -> tuple[float, tuple[float, ...]]:
    """(F_1(1), draft_at): a block's worth beyond plain decoding's, and the least S for each draft step.

    Args:
        hazards: h_1 … h_K, K ≥ 1.
        spread: the standard deviation of logit α̂.
        worth: ΔV_0 … ΔV_K or more: tokens earned by an accepted token at each depth.
        step_price: tokens that a draft step costs.
        verify_prices: tokens that verifying positions 1 … K costs each.
    """
    scatter = round(spread * _FINE / 8.0)
    later = [0.0] * _POINTS
    thresholds: list[float] = []
    value = 0.0
    for position in range(len(hazards), 0, -1):
        gain, price = worth[position], verify_prices[position - 1]
        kept = [
            total if (total := s * gain - price + after) > 0.0 else 0.0
            for s, after in zip(_GRID, later, strict=True)
        ]
        a, b, c, a0, a1, b0, b1, c0, c1 = _taps(round(hazards[position - 1] * _FINE), scatter)
        kept += [0.0] * (c + 1)
        values = [
            a0 * x0 + a1 * x1 + b0 * y0 + b1 * y1 + c0 * z0 + c1 * z1 - step_price
            for x0, x1, y0, y1, z0, z1 in zip(
                kept[a:], kept[a + 1 :], kept[b:], kept[b + 1 :], kept[c:], kept[c + 1 :], strict=False
            )
        ]
        thresholds.append(_crossing(values))
        value = values[0]
        later = [total if total > 0.0 else 0.0 for total in values]
    return value, tuple(thresholds[::-1])


@lru_cache(8192)
def _taps(hazard: int, spread: int) -> _Taps:
    """The three points of α̂ as shifts on the grid: S · α̂ lies between two of its points, by as much for
    every S. Three indices, and the weights of that point and of the next.
    """
    mean = min(0.9999, max(0.0001, hazard / _FINE))
    sigma = spread * 8.0 / _FINE
    # The mean of a logistic normal, by its probit approximation, then exactly.
    centre = log(mean / (1.0 - mean)) * sqrt(1.0 + pi * sigma * sigma / 8.0)
    points = [1.0 / (1.0 + exp(-centre - sigma * z)) for z in _SCATTER]
    scale = len(points) * mean / sum(points)
    places: list[int] = []
    weights: list[float] = []
    for point in points:
        chance = min(1.0, point * scale)
        place = min(int(-log(chance) / _STEP), _POINTS)
        # Linear between the two: exact for what grows with S.
        upper = exp(-_STEP * place)
        part = min(1.0, (upper - chance) / (upper * (1.0 - exp(-_STEP))))
        places.append(place)
        weights += [(1.0 - part) / len(points), part / len(points)]
    a, b, c = places
    a0, a1, b0, b1, c0, c1 = weights
    return a, b, c, a0, a1, b0, b1, c0, c1


def _crossing(values: Sequence[float]) -> float:
    """The S from which on ``values`` (by the grid, falling with S) are positive."""
    if values[0] <= 0.0:
        return inf
    for point, value in enumerate(values):
        if value <= 0.0:
            before = values[point - 1]
            share = before / (before - value)
            return _GRID[point - 1] + share * (_GRID[point] - _GRID[point - 1])
    return 0.0
