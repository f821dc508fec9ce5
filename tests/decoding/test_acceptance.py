"""Distributions and the rules' own arithmetic, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specpilot.decoding.acceptance import Coupled, Deterministic, Greedy, Rejection, make_rule
from specpilot.decoding.distribution import draw, probabilities, top_token, top_tokens
from specpilot.decoding.types import Block, SamplingParams
from specpilot.models.base import FloatArray


def logits(*weights: float) -> FloatArray:
    return np.log(np.asarray(weights, dtype=np.float32))


HALVES = logits(0.5, 0.25, 0.125, 0.125)


def test_temperature() -> None:
    assert probabilities(HALVES, SamplingParams(1.0)) == pytest.approx([0.5, 0.25, 0.125, 0.125])
    # Half the temperature squares the odds.
    squared = np.array([0.25, 0.0625, 0.015625, 0.015625])
    assert probabilities(HALVES, SamplingParams(0.5)) == pytest.approx(squared / squared.sum())
    assert probabilities(HALVES, SamplingParams(1e-300)) == pytest.approx([1.0, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="temperature"):
        probabilities(HALVES, SamplingParams(0.0))


@pytest.mark.parametrize("scale", [1.0, 80.0])
def test_rows_together_are_rows_one_by_one(scale: float) -> None:
    """To the last bit, and where a softmax without its maximum taken off would overflow."""
    rows = np.random.default_rng(1).standard_normal((5, 999)).astype(np.float32) * np.float32(scale)
    tokens, confidences = top_tokens(rows)
    assert list(zip(tokens, confidences, strict=True)) == [top_token(row) for row in rows]
    one_by_one = [Greedy().look(row, 7 + place) for place, row in enumerate(rows)]
    assert Greedy().look_all(rows, range(7, 12)) == one_by_one


def test_choices_are_the_likeliest_with_their_shares() -> None:
    """By hand: 1/2, then 1/4 of the half that is left, then 1/8 of a quarter."""
    row = HALVES[[2, 0, 3, 1]]  # two are alike: the earlier goes first
    rule = Greedy()
    found = list(rule.choices(rule.look(row, 0), row, 3))
    assert [token for token, _ in found] == [1, 3, 0]
    assert [share for _, share in found] == pytest.approx([0.5, 0.5, 0.5])
    assert len(list(rule.choices(rule.look(row, 0), row, 9))) == 4
    sampled = Deterministic(SamplingParams(1.0, top_k=2))
    assert [token for token, _ in sampled.choices(sampled.look(row, 0), row, 4)] == [1, 3]
    noisy = Coupled(SamplingParams(1.0, top_k=2), 7)
    assert {token for token, _ in noisy.choices(noisy.look(row, 0), row, 4)} == {1, 3}


def test_top_k_and_top_p() -> None:
    def shaped(top_k: int = 0, top_p: float = 1.0) -> list[float]:
        return [float(mass) for mass in probabilities(HALVES, SamplingParams(1.0, top_k, top_p))]

    assert shaped(top_k=1) == pytest.approx([1.0, 0.0, 0.0, 0.0])
    assert shaped(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0.0, 0.0])
    assert shaped(top_k=3) == pytest.approx([0.5, 0.25, 0.125, 0.125])  # the tie with the third stays
    assert shaped(top_k=9) == pytest.approx([0.5, 0.25, 0.125, 0.125])
    assert shaped(top_p=0.5) == pytest.approx([1.0, 0.0, 0.0, 0.0])
    assert shaped(top_p=0.51) == pytest.approx([2 / 3, 1 / 3, 0.0, 0.0])
    assert shaped(top_p=1e-9) == pytest.approx([1.0, 0.0, 0.0, 0.0])
    # Top-p counts what top-k has left: 2/3 ≥ 0.6.
    assert shaped(top_k=2, top_p=0.6) == pytest.approx([1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("levels", [3, 40, 10**6])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 1.0 - 1e-12])
def test_top_p_is_the_first_of_a_stable_order(levels: int, top_p: float) -> None:
    """To the last bit what sorting the places gives, ties at the edge included."""
    rng = np.random.default_rng(levels)
    for _ in range(20):
        row = (rng.integers(levels, size=97) * (6.0 / levels)).astype(np.float32)
        weights = probabilities(row, SamplingParams(1.0))
        order = np.argsort(-weights, kind="stable")
        kept = int(np.searchsorted(np.cumsum(weights[order]), top_p)) + 1
        weights[order[kept:]] = 0.0
        weights /= weights.sum()
        assert probabilities(row, SamplingParams(1.0, top_p=top_p)).tolist() == weights.tolist()


def test_greedy_confidence_is_the_raw_softmax() -> None:
    for shift in (0.0, 3.0, 59.0, 1e4, -59.0, -1e4):
        token, confidence = top_token(HALVES + np.float32(shift))
        assert token == 0
        # Float32 logits around 1e4 are a thousandth apart.
        assert confidence == pytest.approx(0.5, rel=1e-3)


def test_draw_is_the_quantile_function() -> None:
    weights = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    assert [draw(weights, u) for u in (0.0, 0.2499, 0.25, 0.9999, 1.0)] == [1, 1, 3, 3, 3]


CHAIN = Block.chain([1, 2])


def target(*tokens: int) -> FloatArray:
    """Rows whose argmax is as given, by far."""
    rows = np.full((len(tokens), 4), -30.0, dtype=np.float32)
    rows[np.arange(len(tokens)), list(tokens)] = 30.0
    return rows


@pytest.mark.parametrize(
    ("rows", "path", "own"), [((1, 2, 3), (0, 1), 3), ((1, 0, 3), (0,), 0), ((3, 2, 1), (), 3)]
)
def test_all_rules_follow_a_sure_target(rows: tuple[int, ...], path: tuple[int, ...], own: int) -> None:
    """With point masses every rule must do what greedy does."""
    params = SamplingParams(1.0)
    q = np.full((2, 4), 0.25, dtype=np.float32)
    for rule in (Greedy(), Rejection(params), Coupled(params, 3), Deterministic(params)):
        accepted = rule.accept(CHAIN, q, target(*rows), 7)
        assert (accepted.path, accepted.next_token) == (path, own)


def test_trees_follow_the_branch() -> None:
    tree = Block((0, 1, 2, 2, 3), (-1, -1, 0, 1, 3))
    for rule in (Greedy(), Coupled(SamplingParams(1.0), 3), Deterministic(SamplingParams(1.0))):
        # Row i + 1 is what the target says after node i.
        accepted = rule.accept(tree, None, target(1, 0, 2, 0, 3, 0), 7)
        assert (accepted.path, accepted.next_token) == ((1, 3, 4), 0)


def test_rejection_refuses_what_it_cannot_judge() -> None:
    rule = Rejection(SamplingParams(1.0))
    with pytest.raises(ValueError, match="Deterministic"):
        rule.accept(Block((1, 2), (-1, -1)), np.ones((2, 4), dtype=np.float32), target(1, 2, 3), 0)
    with pytest.raises(ValueError, match="q: 0 rows for 2 tokens"):
        rule.accept(CHAIN, None, target(1, 2, 3), 0)


def test_rejection_takes_equal_distributions_whole() -> None:
    """Where p equals q everything is accepted, up to the bonus."""
    rule = Rejection(SamplingParams(1.0), np.random.default_rng(0))
    rows = np.stack([HALVES, HALVES, HALVES])
    q = np.stack([probabilities(HALVES, SamplingParams(1.0))] * 2).astype(np.float32)
    for _ in range(50):
        assert rule.accept(CHAIN, q, rows, 0).path == (0, 1)


def test_make_rule() -> None:
    assert isinstance(make_rule(SamplingParams()), Greedy)
    assert isinstance(make_rule(SamplingParams(seed=1)), Greedy)
    assert isinstance(make_rule(SamplingParams(0.7)), Rejection)
    assert isinstance(make_rule(SamplingParams(0.7), sampled=False), Deterministic)
    assert isinstance(make_rule(SamplingParams(0.7, seed=1)), Coupled)
    assert isinstance(make_rule(SamplingParams(0.7, seed=1), sampled=False), Coupled)
    assert isinstance(make_rule(SamplingParams(0.7)).coupled(), Coupled)
    for params in (SamplingParams(), SamplingParams(0.7, seed=1)):
        rule = make_rule(params)
        assert rule.coupled() is rule


def test_unseeded_trees_have_noise_of_their_own() -> None:
    """Coupled without a seed: another noise for each request, unless a random state is given."""
    flat = np.zeros(4096, dtype=np.float32)
    unseeded = SamplingParams(0.7)

    def drawn(rng: np.random.Generator | None = None) -> tuple[int, ...]:
        rule = make_rule(unseeded, rng=rng).coupled()
        assert isinstance(rule, Coupled)
        return tuple(rule.draw(rule.look(flat, position)) for position in range(8))

    # Two of 40 alike: odds of 780 / 4096^8.
    assert len({drawn() for _ in range(40)}) == 40
    assert drawn(np.random.default_rng(3)) == drawn(np.random.default_rng(3))


def test_any_integer_is_a_seed() -> None:
    row = HALVES[None].repeat(2, axis=0)
    seeds: list[Any] = [5, np.int64(5), np.uint8(5)]
    rules = [Coupled(SamplingParams(1.0, seed=seed)) for seed in seeds]
    assert len({rule.accept(Block.chain([0]), None, row, 3) for rule in rules}) == 1


def test_coupled_confidence_is_of_the_noisy_weights() -> None:
    """By hand: weights 1/2, 1/4, 1/8, 1/8 over the noise, normalised; the choices' shares come from them."""
    rule = Coupled(SamplingParams(1.0), 5)
    rule._noise[9] = np.array([2.0, 0.25, 0.5, 1.0])  # 1/4, 1, 1/4, 1/8: their sum is 13/8
    step = rule.look(HALVES, 9)
    assert rule.draw(step) == step.top == 1
    assert step.confidence == pytest.approx(8 / 13)
    found = list(rule.choices(step, HALVES, 3))
    assert [token for token, _ in found] == [1, 0, 2]
    assert [share for _, share in found] == pytest.approx([8 / 13, 2 / 5, 2 / 3])
    with pytest.raises(ValueError, match="seed"):
        Coupled(SamplingParams(0.7))


def test_a_draft_that_outlasts_its_time_may_ask_for_noise_while_the_target_judges() -> None:
    """It goes on in its thread. Here it gets its turn at the worst place: amid the clearing of old noise."""
    rule = Coupled(SamplingParams(1.0), 5)

    class Position(int):
        def __le__(self, other: int) -> bool:
            rule.look(HALVES, 100 + len(rule._noise))
            return int(self) <= other

    rule._noise = {Position(position): rule._noise_at(position, 4) for position in range(3)}
    assert rule.accept(Block.chain(()), None, HALVES[None], 2).path == ()
    assert min(rule._noise) >= 100


def test_blocks() -> None:
    assert (CHAIN.is_chain, CHAIN.depth, len(CHAIN)) == (True, 2, 2)
    tree = Block((0, 1, 2, 2, 3), (-1, -1, 0, 1, 3))
    assert (tree.is_chain, tree.depth) == (False, 3)
    with pytest.raises(ValueError, match="parents"):
        Block((1,), (0,))
    with pytest.raises(ValueError, match="parents"):
        Block((1,), ())


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0)]
)
def test_sampling_parameters_are_checked(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]
