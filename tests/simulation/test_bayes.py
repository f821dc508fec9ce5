"""The belief-state optimum: its beliefs are calibrated, its stopping is optimal where that can be checked."""

from __future__ import annotations

import math
import random

import pytest

from specpilot.control.stop import sigmoid
from specpilot.simulation.belief import Belief, Block, Spread, interpolate, option_values
from specpilot.simulation.policies import replay_policy
from specpilot.simulation.scenarios import scenario
from specpilot.simulation.suite import Job, run

CERTAIN = Spread(0.0, 0.0, 0.0)
"""No scatter at all: every token agrees with probability σ(μ)."""


def block(*base: float, step: float, verify: float = 0.0) -> Block:
    return Block(base, (1.0,) * len(base), step, verify)


def test_confidences_move_a_normal_belief_by_the_kalman_gain() -> None:
    """Prior N(0, 1), observation noise 1 + 0: the mean moves half way, the variance halves."""
    belief = Belief(0.0, 1.0)
    belief.see(2.0, 0.0, Spread(1.0, 1.0, 0.0))
    assert (belief.mean, belief.variance) == (1.0, 0.5)


def test_predicted_acceptance_is_the_frequency() -> None:
    """4,000 draws from the generative model, by predicted acceptance in four bins of about 1,000.

    Standard error 0.016; the bound of 0.06 covers the logistic's approximation too.
    """
    rng = random.Random(5)
    spread = Spread(0.6, 1.0, 0.7)
    bins: list[list[tuple[float, int]]] = [[], [], [], []]
    for _ in range(4000):
        shift = rng.gauss(0.0, spread.request)
        belief = Belief(0.0, spread.request**2)
        for base in (0.8, 0.8, 0.8):
            truth = base + shift + rng.gauss(0.0, spread.token)
            shown = truth + rng.gauss(0.0, spread.confidence)
            belief.see(shown, base, spread)
            predicted = belief.acceptance(shown, base, spread)
            bit = int(rng.random() < sigmoid(truth))
            belief.judge(bool(bit), predicted, spread)
        bins[min(3, int(predicted * 4.0))].append((predicted, bit))
    for cell in bins:
        if len(cell) > 300:
            mean, frequency = (sum(column) / len(cell) for column in zip(*cell, strict=True))
            assert frequency == pytest.approx(mean, abs=0.06)
    assert sum(len(cell) > 300 for cell in bins) >= 2


def test_option_values_by_hand() -> None:
    """α = ½ throughout, so S = ½, ¼ …; at 0.3 tokens a step the first pays 0.2, the second does not."""
    table = option_values(block(0.0, 0.0, step=0.3), Belief(0.0, 0.0), CERTAIN)
    assert table[0][-1] == pytest.approx(0.5 - 0.3, abs=1e-3)
    assert interpolate(table[1], 0.5) == 0.0
    assert table[2][-1] == 0.0


def test_a_step_that_loses_is_taken_for_those_behind_it() -> None:
    """α = 0.3, 1, 1 (nearly): the first step alone loses 0.05 at 0.35; all three lose more.

    At 0.29 a step the first gains 0.01, the second 0.01 more, the third as much. With the second and
    third at 0.1, 1: steps at 0.29 stop after the first.
    """
    good = [math.log(a / (1.0 - a)) for a in (0.3, 1.0 - 1e-6, 1.0 - 1e-6)]
    assert option_values(block(*good, step=0.35), Belief(0.0, 0.0), CERTAIN)[0][-1] == 0.0
    value = option_values(block(*good, step=0.29), Belief(0.0, 0.0), CERTAIN)[0][-1]
    assert value == pytest.approx(0.03, abs=2e-3)
    bad = [math.log(a / (1.0 - a)) for a in (0.3, 0.1, 1.0 - 1e-6)]
    assert option_values(block(*bad, step=0.29), Belief(0.0, 0.0), CERTAIN)[0][-1] == pytest.approx(
        0.01, abs=2e-3
    )
    # Worth more than a token where later passes depend on it: crossing 0.3 · 0.1 for a prize of 40.
    prize = Block(tuple(bad), (1.0, 1.0, 40.0), 0.29, 0.0)
    value = option_values(prize, Belief(0.0, 0.0), CERTAIN)[0][-1]
    assert value == pytest.approx(0.3 + 0.03 + 40 * 0.03 - 3 * 0.29, abs=0.02)


def test_seeing_the_confidence_before_going_on_is_worth_something() -> None:
    """One population; confidences that tell nothing against such that tell almost all."""
    values = [
        option_values(block(*[0.5] * 6, step=0.3), Belief(0.0, 0.0), Spread(0.0, 3.0, blur))[0][-1]
        for blur in (50.0, 0.1)
    ]
    assert values[1] > 1.2 * values[0]


def test_bayes_beats_the_best_static_where_contexts_differ() -> None:
    """Slow draft, saturated: about 10 % ahead over 1,500 requests, 1 % standard error."""
    names = ("bayes", "oracle", *[f"static-{tau}" for tau in range(7)])
    results = run(Job("slow-draft", 0.0, 5, 1500, names))
    statics = [result.goodput_tokens_per_s for name, result in results.items() if name.startswith("static")]
    assert results["bayes"].goodput_tokens_per_s > 1.04 * max(statics)
    assert results["bayes"].goodput_tokens_per_s < results["oracle"].goodput_tokens_per_s
    assert results["bayes"].budget_violations == 0


def test_bayes_needs_the_population() -> None:
    one = scenario("steady")
    with pytest.raises(ValueError, match="bayes"):
        replay_policy("bayes", one.requests(5, 1), one.costs)
