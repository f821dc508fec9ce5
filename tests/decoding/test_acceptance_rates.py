"""The arithmetic of benchmarks/acceptance_rates.py, by hand on three tokens and against plain enumeration.

Where something is drawn the bound is five standard errors: odds of a false failure below 1e-6 for a seed
never tried; the seeds here are fixed.
"""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.acceptance_rates import (
    Shape,
    Weights,
    best_shape,
    coupled,
    coupled_given,
    decode,
    joint,
    reaches,
)
from benchmarks.sampling_rules import followed

from specpilot.decoding.distribution import DoubleArray
from specpilot.decoding.types import Block

P = np.array([0.5, 0.3, 0.2])
Q = np.array([0.2, 0.5, 0.3])


def totals(rule: str, count: int, p: DoubleArray = P, q: DoubleArray = Q, paths: int = 300) -> list[float]:
    found, _ = joint(rule, p, q, count, paths, np.random.default_rng(1))
    return [float(value) for value in found.sum(axis=1)]


def test_rejection() -> None:
    assert totals("rejection", 1) == pytest.approx([0.2 + 0.3 + 0.2])


def test_deterministic_is_the_mass_on_the_likeliest_of_q() -> None:
    assert totals("deterministic", 3) == pytest.approx([0.3, 0.2, 0.5])


def test_independent_samples() -> None:
    """All that p has left after a rejection is its first token, which q draws with 0.2."""
    assert totals("iid", 3) == pytest.approx([0.7, 0.3 * 0.2, 0.3 * 0.8 * 0.2])


def test_samples_without_replacement() -> None:
    """Rejected first: token 1 (0.2), then q is (0.4, –, 0.6); or token 2 (0.1), then (2/7, 5/7, –). Three
    candidates of three tokens are all there is.
    """
    first, second, third = totals("distinct", 3)
    assert (first, second) == pytest.approx((0.7, 0.2 * 0.4 + 0.1 * 2 / 7))
    # Paths are strata of the first candidate, and there are 300 of them: 200 and 100.
    assert third == pytest.approx(0.2 * 0.6 + 0.1 * 5 / 7)
    assert first + second + third == pytest.approx(1.0)


def by_enumeration(p: DoubleArray, q: DoubleArray, count: int) -> DoubleArray:
    """Sampling without replacement as it is written: each sequence of candidates and its probability."""
    found = np.zeros((count, p.size))

    def judge(place: int, chance: float, left: DoubleArray, share: DoubleArray) -> None:
        if place == count or share.sum() <= 0.0:
            return
        share = share / share.sum()
        beyond = np.maximum(left - share, 0.0)
        for token in np.flatnonzero(share):
            accepted = min(1.0, left[token] / share[token])
            found[place, token] += chance * share[token] * accepted
            if accepted < 1.0:
                rest = share.copy()
                rest[token] = 0.0
                judge(place + 1, chance * share[token] * (1.0 - accepted), beyond / beyond.sum(), rest)

    judge(0, 1.0, p, q)
    return found


@pytest.mark.parametrize("zeros", [0, 2, 4])
def test_samples_without_replacement_against_enumeration(zeros: int) -> None:
    """Also where q has fewer tokens than there are candidates, and where p has some that q has not."""
    rng = np.random.default_rng(zeros)
    paths = 4000
    for _ in range(5):
        p, q = rng.dirichlet(np.full(6, 0.6), size=2)
        q[:zeros] = 0.0
        q /= q.sum()
        found, variance = joint("distinct", p, q, 4, paths, rng)
        expected = by_enumeration(p, q, 4)
        assert found[:2] == pytest.approx(expected[:2], abs=1e-12)
        assert (found.sum(axis=0) <= p + 5.0 / np.sqrt(paths)).all()
        error = 5.0 * np.sqrt(variance) + 1e-9
        assert abs(found.sum() - expected.sum()) <= error


@pytest.mark.parametrize("rule", ["rejection", "iid", "distinct"])
def test_equal_distributions_are_always_accepted(rule: str) -> None:
    assert totals(rule, 2, P, P) == pytest.approx([1.0, 0.0])


def test_what_q_never_proposes_is_no_candidate() -> None:
    p, q = np.array([0.0, 0.6, 0.4]), np.array([0.0, 1.0, 0.0])
    assert totals("deterministic", 3, p, q) == pytest.approx([0.6, 0.0, 0.0])
    assert totals("distinct", 3, p, q) == pytest.approx([0.6, 0.0, 0.0])
    assert coupled(p, q, 3, 2000, np.random.default_rng(1))[1:] == pytest.approx([0.0, 0.0])


def test_an_unknown_rule() -> None:
    with pytest.raises(ValueError, match="coupled"):
        totals("coupled", 2)


def test_coupled() -> None:
    """P(both take x) = 1 ÷ Σ_y max(p_y/p_x, q_y/q_x): 1/5, 3/10 and 6/31. All three candidates hold it."""
    draws = 40_000
    exact = 1 / 5 + 3 / 10 + 6 / 31
    found = coupled(P, Q, 3, draws, np.random.default_rng(2))
    assert abs(found[0] - exact) <= 5.0 * np.sqrt(exact * (1.0 - exact) / draws)
    assert found.sum() == pytest.approx(1.0)


def test_coupled_given_the_target_s_token() -> None:
    """The same terms over p: 2/5, 1 (q prefers token 1 more than p does: no doubt is left) and 30/31."""
    draws = 40_000
    rng = np.random.default_rng(3)
    for token, exact in enumerate((2 / 5, 1.0, 30 / 31)):
        found = coupled_given(P, Q, token, 3, draws, rng)
        assert abs(found[0] - exact) <= 5.0 * np.sqrt(exact * (1.0 - exact) / draws) + 1e-12
    # Later candidates as well: averaged over p it is what coupled() counts.
    given = sum(P[token] * coupled_given(P, Q, token, 3, draws, rng) for token in range(3))
    assert np.abs(given - coupled(P, Q, 3, draws, rng)).max() <= 5.0 * np.sqrt(0.5 / draws)


TREE = Shape((-1, 0, -1), (0, 0, 1))


def test_reaches_are_products_along_the_paths() -> None:
    rows = np.array([[0.5, 0.25], [0.4, 0.1]])
    # From 0: 0.5 + 0.25 at depth 1, 0.5 · 0.4 below; from 1: nothing comes after it.
    assert reaches(rows, TREE) == pytest.approx(np.array([[1.0, 0.75, 0.2, 0.0], [1.0, 0.5, 0.0, 0.0]]))


def test_decode_gives_all_tokens_of_a_text_that_ended() -> None:
    """Chain of 2, each token accepted with 1/2: a pass at 0, with 1/2 one at 1, with 1/4 + 1/4 one at 2."""
    text = Weights(np.full((3, 1), 0.5), ended=True)
    assert decode(text, Shape.chain(2), 2) == pytest.approx((3.0, 2.0))


def test_decode_leaves_room_in_a_text_that_was_cut_off() -> None:
    text = Weights(np.full((12, 1), 0.5), ended=False)
    tokens, passes = decode(text, Shape.chain(2), 2)
    assert tokens / passes == pytest.approx(1.0 + 0.5 + 0.25)


def test_best_shape() -> None:
    """0.6, then 0.36 below it, then 0.3 beside it (0.216 two below), then that."""
    texts = [Weights(np.full((400, 2), [0.6, 0.3]), ended=True)] * 2
    assert best_shape(texts, 3, 8) == TREE
    assert best_shape(texts, 4, 8) == Shape((-1, 0, -1, 1), (0, 0, 1, 0))
    assert best_shape(texts, 4, 1) == Shape((-1, -1), (0, 1))


def test_followed() -> None:
    tree = Block((5, 6, 7), (-1, -1, 1))
    assert [followed(tree, tokens) for tokens in ([6, 7, 9], [5, 7], [7], [6])] == [2, 1, 0, 1]
