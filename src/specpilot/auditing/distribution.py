"""Sampled tokens against the target's own distribution: a bet against the engine, with exact odds of error.

Each token is drawn, if the engine is right, from p after its prefix, whatever was drafted. For any other law
p', fixed before the token is seen, the product of p'(token) / p(token) over all tokens is then a martingale
with mean 1: it ever reaches 1/α with a chance of at most α (Ville 1939; "testing by betting", Shafer 2021).
So is any average of such products. Here that average is over the laws of the usual faults (laws.py), each
mixed into p at a few shares, and over laws learned from the tokens drawn before after the same prefix, for
faults that nobody thought of. All prompts, settings and positions go into one product; nothing is
approximated; and one may look at any time and draw more samples where the answer is open.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from typing import Any

import numpy as np

from specpilot.auditing.laws import FAULTS, Context
from specpilot.decoding.distribution import DoubleArray

FALSE_ALARM = 1e-4
"""Odds at most that a healthy system fails the whole check, however long it is looked at."""
POWER = 0.9
"""With which the smallest visible fault is stated."""
SHARES = (0.03, 0.1, 0.3, 0.9)
"""Shares of the tokens that a fault is taken to strike; a true share in between loses little."""
PRIORS = (10.0, 100.0)
"""A learned law is the counts so far plus so many tokens of p."""
DIRECTED = math.log(0.5 / (len(FAULTS) * len(SHARES)))
"""Log weight of each directed bet: half of the stake goes there, half to the learned ones."""
LEARNED = math.log(0.5 / len(PRIORS))
NORMAL_QUANTILE = 1.2815515655446004
"""Of POWER."""
CERTAIN = 100.0
"""Nats that a token which p forbids is worth where power is computed; in a test it decides at once."""


class Evidence:
    """The bets so far. Feed tokens in the order in which they were drawn."""

    def __init__(self) -> None:
        self.tokens = 0
        self.forbidden = 0
        self._directed = np.zeros((len(FAULTS), len(SHARES)))
        self._learned = np.zeros(len(PRIORS))
        self._counts: dict[Hashable, Counter[int]] = {}
        self._moments = Moments()

    def observe(self, where: Hashable, token: int, context: Context) -> None:
        """One token, drawn at ``where``: the same value for the same prompt, settings and prefix."""
        self.tokens += 1
        chance = float(context.p[token])
        if not chance > 0.0:
            self.forbidden += 1
            return
        ratio = context.laws[:, token] / chance
        self._directed += np.log1p(np.array(SHARES) * (ratio[:, None] - 1.0))
        counts = self._counts.setdefault(where, Counter())
        total = counts.total()
        for index, prior in enumerate(PRIORS):
            self._learned[index] += math.log((counts[token] / chance + prior) / (total + prior))
        counts[token] += 1

    def weigh(self, context: Context, weight: float) -> None:
        """Count a prefix in the statement of power, as so many tokens."""
        self._moments.add(context, weight)

    @property
    def nats(self) -> float:
        """Log of the evidence; at least ``log(1 / FALSE_ALARM)`` proves the engine wrong."""
        if self.forbidden:
            return math.inf
        bets = np.concatenate([(self._directed + DIRECTED).ravel(), self._learned + LEARNED])
        top = float(bets.max())
        return top + math.log(float(np.exp(bets - top).sum()))

    @property
    def wrong(self) -> bool:
        """Whether the engine is proved wrong."""
        return self.nats >= -math.log(FALSE_ALARM)

    def to_json(self) -> dict[str, Any]:
        """The numbers, and which law explains the tokens best if p does not."""
        detail: dict[str, Any] = {
            "tokens": self.tokens,
            "p_value": min(1.0, math.exp(-self.nats)),
            "false_alarm_odds": FALSE_ALARM,
            "visible_share": self._moments.visible(),
            "power": POWER,
        }
        if self.forbidden:
            detail["forbidden_tokens"] = self.forbidden
        elif self.wrong:
            fault, share = np.unravel_index(int(self._directed.argmax()), self._directed.shape)
            known = self._directed.max() + DIRECTED >= self._learned.max() + LEARNED
            detail["looks_like"] = {FAULTS[fault]: SHARES[share]} if known else "no known fault"
        return detail


class Moments:
    """Mean and variance of each bet's growth under p and under its own fault, summed over prefixes."""

    def __init__(self) -> None:
        self._sums = np.zeros((4, len(FAULTS), len(SHARES)))
        self._differs = np.zeros(len(FAULTS))

    def add(self, context: Context, weight: float) -> None:
        """One prefix."""
        means, squares, faulty_means, faulty_squares = growth(context)
        # Variances are bounded by second moments; the means of single tokens are small.
        self._sums += weight * np.stack([means, squares, faulty_means, faulty_squares])
        self._differs += weight * np.abs(context.laws - context.p).sum(axis=1)

    def visible(self) -> dict[str, float | None]:
        """Per fault the least share of tokens, in percent steps, whose fault is seen with POWER.

        1 is every token; ``None`` where not even that would be. By a normal approximation of the sum, and for
        the best single bet; the average of all of them sees a little more.
        """
        needed = -math.log(FALSE_ALARM) - DIRECTED
        found: dict[str, float | None] = {}
        for row, fault in enumerate(FAULTS):
            if not self._differs[row] > 0.0:
                continue
            found[fault] = None
            means, squares, faulty_means, faulty_squares = self._sums[:, row]
            for percent in range(1, 101):
                share = percent / 100.0
                mean = (1.0 - share) * means + share * faulty_means
                spread = np.sqrt((1.0 - share) * squares + share * faulty_squares)
                if (mean - NORMAL_QUANTILE * spread).max() >= needed:
                    found[fault] = share
                    break
        return found


def growth(context: Context) -> tuple[DoubleArray, DoubleArray, DoubleArray, DoubleArray]:
    """E and E of the square of a bet's log growth by one token, under p and under the bet's own fault.

    Each (len(FAULTS), len(SHARES)).
    """
    support = np.flatnonzero(context.p)
    p = context.p[support]
    laws = context.laws[:, support]
    gains = np.log1p(np.array(SHARES)[None, :, None] * (laws / p - 1.0)[:, None, :])
    outside = np.maximum(0.0, 1.0 - laws.sum(axis=1))[:, None]
    outside[outside < 1e-9] = 0.0
    squares = gains**2
    return (
        gains @ p,
        squares @ p,
        np.einsum("dsv,dv->ds", gains, laws) + CERTAIN * outside,
        np.einsum("dsv,dv->ds", squares, laws) + CERTAIN**2 * outside,
    )


def information(context: Context) -> float:
    """Nats by which one token tells the faults from p, if they struck at 0.3: summed over the faults."""
    column = SHARES.index(0.3)
    means, _, faulty, _ = growth(context)
    return float((0.7 * means[:, column] + 0.3 * np.minimum(faulty[:, column], 10.0)).sum())
