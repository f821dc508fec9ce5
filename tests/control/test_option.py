"""A block that may stop is worth at least what any fixed length is, and the arithmetic by hand."""

from __future__ import annotations

import math
from itertools import accumulate
from operator import mul

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpilot.control.option import adaptive_block

hazards = st.lists(st.floats(0.05, 0.97), min_size=1, max_size=10)
prices = st.floats(0.005, 0.6)


def test_one_position_without_spread_by_hand() -> None:
    value, draft_at = adaptive_block([0.5], 0.0, [1.0, 0.8], 0.1, [0.02])
    assert value == pytest.approx(0.5 * 0.8 - 0.02 - 0.1)
    # The step is worth its price from S · 0.4 = 0.12 on; the grid interpolates.
    assert list(draft_at) == [pytest.approx(0.3, rel=0.03)]


def test_one_position_with_spread_by_hand() -> None:
    """Log-odds of 0 and ± 1.2247 (times the spread): only the best of the three is worth verifying."""
    value, _ = adaptive_block([0.5], 1.0, [1.0, 1.0], 0.05, [0.5])
    best = 1.0 / (1.0 + math.exp(-1.2247))
    # The kink lies between two points of the grid.
    assert value == pytest.approx((best - 0.5) / 3.0 - 0.05, abs=0.002)


def test_what_never_pays_is_never_drafted() -> None:
    value, draft_at = adaptive_block([0.3, 0.3], 0.5, [1.0, 1.0, 1.0], 2.0, [0.0, 0.0])
    assert value < 0.0
    assert draft_at == (math.inf, math.inf)


@given(hazards, st.floats(0.0, 1.5), prices, st.floats(0.0, 0.1))
def test_no_fixed_length_is_worth_more(
    chances: list[float], spread: float, step: float, verify: float
) -> None:
    size = len(chances)
    value, draft_at = adaptive_block(chances, spread, [1.0] * (size + 1), step, [verify] * size)
    survive = list(accumulate(chances, mul))
    fixed = accumulate(s - step - verify for s in survive)
    # What interpolation between the grid's points may lose.
    assert value >= max(fixed) - 0.02 * size
    assert len(draft_at) == size
    assert all(threshold >= 0.0 for threshold in draft_at)


@given(hazards, st.floats(0.1, 1.5), prices)
def test_confidences_that_tell_tokens_apart_are_worth_something(
    chances: list[float], spread: float, step: float
) -> None:
    size = len(chances)
    blind, _ = adaptive_block(chances, 0.0, [1.0] * (size + 1), step, [0.01] * size)
    seeing, _ = adaptive_block(chances, spread, [1.0] * (size + 1), step, [0.01] * size)
    assert seeing >= blind - 0.02 * size


@given(hazards, st.floats(0.0, 1.5), prices, prices)
def test_dearer_steps_are_worth_less(chances: list[float], spread: float, one: float, other: float) -> None:
    size = len(chances)
    cheap, dear = sorted((one, other))
    worth, verify = [1.0] * (size + 1), [0.01] * size
    assert (
        adaptive_block(chances, spread, worth, dear, verify)[0]
        <= adaptive_block(chances, spread, worth, cheap, verify)[0] + 1e-9
    )
