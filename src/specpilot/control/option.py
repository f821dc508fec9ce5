"""What a block is worth that stops where its confidences say so: optimal stopping, solved backwards.

The best fixed τ takes every token to be as likely as the mean. A block that looks at each token's confidence
before it goes on is worth more, the more so the further confidences scatter; where drafting just about pays
this decides between drafting and plain decoding. With S = Π α̂ so far, before draft step k,

    F_k(S) = −θ · step + E[max(0, S · α̂_k · ΔV_k − θ · Δverify_k + F_{k+1}(S · α̂_k)⁺)]

over α̂_k, whose logit scatters normally around the hazard h_k (four points of equal weight). The block is
worth F_1(1), and step k is run while F_k(S) > 0. SpecDec++ (Huang et al. 2024) solves the same problem by a
head trained for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log, pi, sqrt

_STEP = 0.3
_POINTS = 16
_GRID = [exp(-_STEP * point) for point in range(_POINTS)]
"""S on a logarithmic grid, 1 first; below its end nothing is worth drafting on."""
_SCATTER = (-1.3626, -0.3792, 0.3792, 1.3626)
"""Four equally likely points with the variance of a standard normal."""
_NONE = [0.0] * (_POINTS + 1)


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
    widen = sqrt(1.0 + pi * spread * spread / 8.0)
    later = _NONE
    thresholds: list[float] = []
    value = 0.0
    for position in range(len(hazards), 0, -1):
        gain, price = worth[position], verify_prices[position - 1]
        totals = [-step_price] * _POINTS
        for chance in _chances(hazards[position - 1], spread, widen):
            # S · α̂ lies between two points of the grid, by as much for every S.
            whole, part = divmod(-log(chance) / _STEP, 1.0)
            behind = int(whole)
            next_ = later[behind:] + _NONE[: behind + 1]
            rest = 1.0 - part
            own = chance * gain
            totals = [
                total + 0.25 * kept if (kept := s * own - price + rest * at + part * after) > 0.0 else total
                for total, s, at, after in zip(totals, _GRID, next_, next_[1:], strict=False)
            ]
        thresholds.append(_crossing(totals))
        value = totals[0]
        later = [total if total > 0.0 else 0.0 for total in totals]
        later.append(0.0)
    return value, tuple(thresholds[::-1])


def _chances(hazard: float, spread: float, widen: float) -> list[float]:
    """The points of α̂, with the hazard as their mean."""
    hazard = min(0.9999, max(0.0001, hazard))
    centre = log(hazard / (1.0 - hazard)) * widen
    points = [1.0 / (1.0 + exp(-centre - spread * z)) for z in _SCATTER]
    scale = 4.0 * hazard / sum(points)
    return [min(1.0, point * scale) for point in points]


def _crossing(values: Sequence[float]) -> float:
    """The S from which on ``values`` (by the grid, falling with S) are positive."""
    if values[0] <= 0.0:
        return inf
    for point, value in enumerate(values):
        if value <= 0.0:
            before = values[point - 1]
            return exp(-_STEP * (point - 1 + before / (before - value)))
    return 0.0
