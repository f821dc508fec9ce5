"""Closed forms of the plan against arithmetic that can be done by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpilot.sizing import (
    Limits,
    PassCosts,
    best_length,
    break_even_acceptance,
    break_even_draft_ms,
    needed_acceptance,
    speed_up,
    tokens_per_pass,
)

FLAT = PassCosts(1.0, lambda width: 10.0)
"""A draft step of 1 ms, a pass of 10 ms whatever its width."""
PROBABILITIES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6)


def test_expected_tokens_by_hand() -> None:
    assert tokens_per_pass((0.8, 0.5), 2) == pytest.approx(1.0 + 0.8 + 0.4)
    # Leviathan et al.: (1 − α^{τ+1}) ÷ (1 − α).
    assert tokens_per_pass((0.7,), 4) == pytest.approx((1 - 0.7**5) / 0.3)
    assert tokens_per_pass((0.7,), 0) == 1.0


def test_speed_up_by_hand() -> None:
    # 1.8 tokens in 11 ms against 1 in 10.
    assert speed_up((0.8,), 1, FLAT) == pytest.approx(1.8 * 10.0 / 11.0)
    assert best_length((0.0,), FLAT) == (1.0, 0)


def test_break_even_by_hand() -> None:
    # τ = 1 pays while 1 + α > 11 ÷ 10; longer blocks need more.
    assert break_even_acceptance(FLAT) == pytest.approx(0.1, abs=1e-6)
    # The same with a draft as dear as the target and serial verification: nothing pays.
    assert break_even_acceptance(PassCosts(10.0, lambda width: 10.0 * width)) is None
    # τ = 1: (1.8 · 10 − 10) ÷ 1 = 8 ms; τ = 2: (2.44 · 10 − 10) ÷ 2 = 7.2 ms.
    assert break_even_draft_ms((0.8,), FLAT) == pytest.approx(8.0)


def test_limits_by_hand() -> None:
    limits = Limits.of((0.5,), FLAT)
    assert limits.free_draft[0] == pytest.approx(2.0, abs=1e-4)  # 1 ÷ (1 − 0.5), in one pass
    assert limits.perfect_draft[0] == pytest.approx(17 * 10.0 / 26.0)
    assert limits.free_draft[1] == limits.perfect_draft[1] == 16


def test_needed_acceptance() -> None:
    needed = needed_acceptance(10.0, 2.0)
    assert needed is not None
    assert 2.0 * tokens_per_pass((needed,), 16) == pytest.approx(10.0)
    assert needed_acceptance(35.0, 2.0) is None  # two passes of 17 tokens give 34


@given(PROBABILITIES, st.integers(0, 15))
def test_tokens_per_pass_never_fall_with_the_length(hazards: list[float], tau: int) -> None:
    assert tokens_per_pass(hazards, tau + 1) >= tokens_per_pass(hazards, tau)


@given(PROBABILITIES, st.floats(0.1, 5.0), st.floats(1.0, 20.0))
def test_no_draft_beats_the_free_one(hazards: list[float], draft_ms: float, pass_ms: float) -> None:
    costs = PassCosts(draft_ms, lambda width: pass_ms + 0.1 * width)
    limits = Limits.of(hazards, costs)
    assert best_length(hazards, costs)[0] <= limits.free_draft[0] + 1e-9
    assert best_length(hazards, costs)[0] <= limits.perfect_draft[0] + 1e-9


@pytest.mark.parametrize("hazards", [(), (1.2,), (0.5, -0.1)])
def test_what_is_no_acceptance(hazards: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="acceptance"):
        tokens_per_pass(hazards, 2)
