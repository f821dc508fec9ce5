"""What one who knows a scenario's population can know of a request, and the best stopping given that.

The generative model (:mod:`specpilot.simulation.scenarios`): the agreement bit of a token is drawn with
the log-odds μ + s + e, where μ is the population's (known), s ~ N(0, spread²) the request's and
e ~ N(0, noise²) the token's own; the draft's confidence shows the log-odds with an error N(0, blur²).
So the belief about s stays normal under confidences (a Kalman filter) and is kept normal under bits by
moment matching (assumed-density filtering; Opper 1998); a normal through a logistic is taken as
σ(mean ÷ √(1 + π·variance ÷ 8)) (MacKay 1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specpilot.control.stop import sigmoid

SURVIVALS = np.concatenate([[0.0], np.geomspace(4e-3, 1.0, 70)])
"""The grid of S, the probability that the block so far is accepted; fine, since U is convex and a coarse
grid would flatter it."""
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
WEIGHTS = WEIGHTS / WEIGHTS.sum()

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spread:
    """How a population's log-odds scatter: standard deviations of request, token and confidence."""

    request: float
    token: float
    confidence: float

    @property
    def trust(self) -> float:
        """Weight of the confidence in a token's own log-odds, 0…1."""
        return self.token**2 / max(self.token**2 + self.confidence**2, 1e-12)

    def damping(self, variance: float) -> float:
        """The factor on the log-odds' mean that stands for averaging over what is not known of it."""
        rest = self.token**2 * (1.0 - self.trust) + (1.0 - self.trust) ** 2 * variance
        return 1.0 / math.sqrt(1.0 + math.pi * rest / 8.0)


@dataclass(slots=True)
class Belief:
    """Mean and variance of the request's shift s, given all that was seen."""

    mean: float
    variance: float

    def copy(self) -> Belief:
        """One that can be changed on its own."""
        return Belief(self.mean, self.variance)

    def see(self, shown: float, base: float, spread: Spread) -> None:
        """A token's confidence, as log-odds ``shown``; ``base`` is μ there."""
        gain = self.variance / (self.variance + spread.token**2 + spread.confidence**2)
        self.mean += gain * (shown - base - self.mean)
        self.variance *= 1.0 - gain

    def acceptance(self, shown: float, base: float, spread: Spread) -> float:
        """P(agree) of a token whose confidence has been seen."""
        mean = spread.trust * shown + (1.0 - spread.trust) * (base + self.mean)
        return sigmoid(mean * spread.damping(self.variance))

    def judge(self, accepted: bool, probability: float, spread: Spread) -> None:
        """The token's bit is known; ``probability`` is what :meth:`acceptance` gave for it."""
        slope = (1.0 - spread.trust) * spread.damping(self.variance)
        curvature = slope**2 * probability * (1.0 - probability)
        self.variance = 1.0 / (1.0 / max(self.variance, 1e-9) + curvature)
        self.mean += self.variance * slope * (float(accepted) - probability)


@dataclass(frozen=True, slots=True)
class Block:
    """What a block is decided on: all in tokens, by position.

    ``base`` is μ at positions 1 … D if the block is accepted so far, ``worth`` ΔV there, ``step`` the price
    of a draft step, ``verify`` that of one further verified token.
    """

    base: tuple[float, ...]
    worth: tuple[float, ...]
    step: float
    verify: float


def option_values(block: Block, belief: Belief, spread: Spread) -> list[list[float]]:
    """U_j(S) on the grid ``SURVIVALS`` for j = 0 … D: what drafting on after position j is worth.

    U_j(S) = max(0, −step + E_q[max(0, S·α(q)·ΔV_{j+1} − verify + U_{j+1}(S·α(q)))]), U_D = 0: the optimal
    stopping of a block whose next confidences are drawn from what the belief predicts.
    """
    depth = len(block.base)
    values: Floats = np.zeros(len(SURVIVALS))
    table = [values]
    scatter = math.sqrt(belief.variance + spread.token**2 + spread.confidence**2)
    gain = belief.variance / max(scatter**2, 1e-12)
    after = belief.variance * (1.0 - gain)
    for j in range(depth - 1, -1, -1):
        shown = block.base[j] + belief.mean + scatter * NODES
        mean = belief.mean + gain * scatter * NODES
        logits = spread.trust * shown + (1.0 - spread.trust) * (block.base[j] + mean)
        alive = SURVIVALS[:, None] / (1.0 + np.exp(-logits * spread.damping(after)))[None, :]
        kept = alive * block.worth[j] - block.verify + np.interp(alive, SURVIVALS, values)
        values = np.maximum(0.0, np.maximum(kept, 0.0) @ WEIGHTS - block.step)
        table.append(values)
    return [row.tolist() for row in reversed(table)]


def interpolate(row: Sequence[float], survival: float) -> float:
    """A row of :func:`option_values` at any S."""
    return float(np.interp(survival, SURVIVALS, row))
