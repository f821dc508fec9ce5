"""The arithmetic of the decision: values over a horizon of cycles, the best τ, the stop thresholds.

With n tokens still wanted and k passes left, the value of a cycle that drafts τ tokens is

    U(τ) = Σ_{j=0}^{τ} S_j · ΔV_j  −  θ · cost(τ),        ΔV_j = G_j + W_{j+1} − W_j

where S_j = P(at least j draft tokens are accepted), G_j = P(the suggestion has not ended before token
j + 1), W_m = G_m · V_{k−1}(n − m) is what the later passes are still worth after m tokens (W_0 = 0),
and θ is the price of time. (Abel summation of Σ_a P(a) · [a + 1 tokens + V_{k−1}(n − a − 1)].) The
increments are what each further draft position adds, so the same numbers give the stop rule's
thresholds: keep x_j if S_j · ΔV_j > θ · Δverify; run its draft step while the best run of positions that
starts with it earns more than it costs (with falling hazards that run is the position alone).

The value of a horizon of cycles under an acceptance model is the view of SpecDec++ (Huang et al. 2024)
and of Sequoia's dynamic programme (Chen et al. 2024); the price of time is Dinkelbach's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field
from functools import lru_cache
from itertools import accumulate, islice
from operator import mul

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(slots=True)  # not frozen: as CycleView
class Horizon:
    """What one decision looks ahead over; not to be changed.

    ``goes_on`` is G_0 … G_N with N ≥ ``wanted``; ``later_passes`` are those after this one (k − 1).
    """

    wanted: int
    later_passes: int
    goes_on: Sequence[float]


@dataclass(slots=True)  # not frozen: as CycleView
class Decision:
    """The answer: τ*, its value and that of plain decoding in tokens, and the stop rule's thresholds; not to
    be changed.

    ``first`` is S_1, ``reach`` is S_τ*, ``expected`` the tokens that a block of τ* is expected to emit (the
    bonus or recovered token included). ``depth`` is the ceiling up to which the thresholds decide.
    ``first_at``, ``worth`` and the prices are those of a tree
    (:class:`~specpilot.control.tree.TreeRule`). ``gains`` are the tokens that positions 1 … ceiling earn
    beyond the price of their verification; what drafting them costs is not taken off.
    """

    tau: int
    value: float
    plain: InitVar[float]
    first: float
    reach: float
    expected: float
    depth: int
    keep_at: tuple[float, ...]
    draft_at: tuple[float, ...]
    first_at: float = 0.0
    worth: tuple[float, ...] = ()
    node_price: tuple[float, ...] = ()
    side_price: float = 0.0
    gains: tuple[float, ...] = ()
    forecast: float = 0.0
    """Drafted tokens that a block of τ* was expected to bring, before what came of others corrected it
    (:class:`~specpilot.control.branching.Yields`); where there may be trees."""
    branching: bool = False
    """Whether it is a tree's forecast."""
    coupling_loss: float = 0.0
    """Where a request may go on without shared noise: how much more a chain is worth there than a chain with
    looked-up text is under it."""
    until: int = 0
    """The context's age at which the decision is made anew."""
    stake: InitVar[float] = 1.0
    """What the first drafted token is worth: nearly 1 while passes are scarce; where there is a pass for each
    token, no more than the time that it saves."""
    static: InitVar[float] = 0.0
    """The value of a cold start's static length."""
    gain: float = field(init=False)
    """What drafting is worth beside plain decoding, in tokens worth as much as the first one drafted."""
    lead: float = field(init=False)
    """What τ* is worth beyond the static length of a cold start, in the same."""

    def __post_init__(self, plain: float, stake: float, static: float) -> None:
        self.gain = (self.value - plain) / stake if stake > 0.0 else 0.0
        self.lead = (self.value - static) / stake if stake > 0.0 else 0.0


def future_values(
    survive: Sequence[float], goes_on: Sequence[float], costs: Sequence[float], passes: int
) -> list[float]:
    """V_k(n) for n = 0 … N: what ``passes`` more passes are worth with n tokens wanted.

    Args:
        survive: S_0 … S_T.
        goes_on: G_0 … G_N, P(not ended before token j + 1).
        costs: θ·cost of the pass itself, then of each draft position 1 … T (in tokens).
        passes: k ≥ 0.
    """
    size = len(goes_on)
    if not passes:
        return [0.0] * size
    passes = min(passes, size - 1)  # a pass emits a token at least
    earned = [s * g - c for s, g, c in zip(survive, goes_on, costs, strict=False)]
    values = _last_pass(accumulate(earned), size)
    if passes == 1:
        return values
    reach = len(earned)
    places, beyond = _places(size, reach)
    chances, prices = np.array(survive[:reach]), np.array(costs[:reach])
    now_on, after = np.array(goes_on[:reach]), np.array([*goes_on[1:], 0.0][:reach])
    for _ in range(passes - 1):
        padded = np.array([*values, 0.0])
        left = after * padded[places]  # W_1 … by rows of tokens wanted; W_0 = 0
        gained = now_on + left
        gained[:, 1:] -= left[:, :-1]
        totals = np.cumsum(chances * gained - prices, axis=1)
        totals[beyond] = 0.0
        values = [0.0, *np.maximum(totals.max(axis=1), 0.0).tolist()]
    return values


@lru_cache(64)
def _places(size: int, reach: int) -> tuple[IntArray, BoolArray]:
    """Where V(n − 1 − j) stands among V(0) … V(size − 1), for n = 1 … size − 1 tokens wanted by rows and
    j < ``reach`` of them drafted and accepted; and where no so many are wanted.
    """
    places = np.subtract.outer(np.arange(1, size), np.arange(1, reach + 1))
    beyond = places < 0
    places[beyond] = size
    return places, beyond


def _last_pass(totals: Iterable[float], size: int) -> list[float]:
    """V_1(n) for n = 0 … size − 1: nothing comes after, so what is wanted beyond its reach changes nothing.

    ``totals`` are what drafting 0, 1, … tokens earns.
    """
    values = [0.0]
    best = 0.0
    for total in islice(totals, size - 1):
        if total > best:
            best = total
        values.append(best)
    return values + [best] * (size - len(values))


def increments(
    survive: Sequence[float], horizon: Horizon, later_costs: Sequence[float], ceiling: int
) -> Sequence[float]:
    """ΔV_0 … ΔV_ceiling: what each further emitted token of this pass is worth."""
    goes_on, passes, wanted = horizon.goes_on, horizon.later_passes, horizon.wanted
    if passes <= 0 or wanted > (passes + 1) * (ceiling + 1):
        # No later pass, or so much wanted that later passes are worth the same whatever this one
        # yields: a token is a token.
        return goes_on[: ceiling + 1]
    if passes >= wanted:
        # A pass for each token: all come anyway, and one that comes now saves what it costs at the best rate.
        tokens, prices = accumulate(survive), accumulate(later_costs)
        saved = min([price / expected for price, expected in zip(prices, tokens, strict=False)])
        return [min(1.0, saved) * now for now in goes_on[: ceiling + 1]]
    later = future_values(survive, goes_on[:wanted], later_costs, passes)
    # W_m for m = 0 … wanted: what is left to the later passes once m tokens are out.
    left = [0.0, *map(mul, goes_on[1:], later[wanted - 1 :: -1])]
    return [now + w1 - w0 for now, w0, w1 in zip(goes_on[: ceiling + 1], left, left[1:], strict=False)]


def best_length(
    survive: Sequence[float], worth: Sequence[float], costs: Sequence[float]
) -> tuple[int, float, float]:
    """(τ*, U(τ*), U(0)): the best draft length and the values with and without it."""
    totals = list(accumulate([s * w - c for s, w, c in zip(survive, worth, costs, strict=True)]))
    best = max(totals)
    return totals.index(best), best, totals[0]


def thresholds(
    hazards: Sequence[float],
    worth: Sequence[float],
    costs: Sequence[float],
    verify: Sequence[float],
    theta: float,
    depth: int,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(keep_at, draft_at) on S for positions 1 … depth; infinite where a position is worth nothing.

    ``draft_at`` is an index of the Gittins kind: per unit of S, the run of positions j … m with the least
    cost ÷ gain, found by merging runs from the back. For a chain position 1 is settled by the choice of τ.
    """
    positions = slice(depth, 0, -1)
    draft: list[float] = []  # last position first
    runs: list[tuple[float, float, float]] = []  # what follows j: (gain, cost, Π h) of each run, nearest last
    for reach, value, cost in zip(hazards[:depth][::-1], worth[positions], costs[positions], strict=True):
        gain = reach * value if value > 0.0 else 0.0
        while runs:
            next_gain, next_cost, next_reach = runs[-1]
            longer = gain + reach * next_gain
            if (cost + next_cost) * gain >= cost * longer:
                break
            gain, cost, reach = longer, cost + next_cost, reach * next_reach
            runs.pop()
        runs.append((gain, cost, reach))
        draft.append(cost / gain if gain > 0.0 else math.inf)
    keep = [
        theta * (after - before) / value if value > 0.0 else math.inf
        for value, before, after in zip(worth[1 : depth + 1], verify, verify[1:], strict=False)
    ]
    return tuple(keep), tuple(draft[::-1])
