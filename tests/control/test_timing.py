"""What fits into the time left, and how a request shares it out among its passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from specpilot.control.cost import CostModel, CostProfile
from specpilot.control.curves import KNOTS
from specpilot.control.planning import CycleView
from specpilot.control.timing import ample_time, fitting_draft, fitting_nodes, shared_draft

STEP_MS, PASS_MS = 2.0, 10.0


@pytest.fixture
def cost() -> CostModel:
    """Two ms a step, ten a pass whatever its width, measured often enough that upper quantiles are exact."""
    model = CostModel(CostProfile(STEP_MS, (PASS_MS,) * len(KNOTS), (0.001,) * len(KNOTS)))
    for _ in range(200):
        model.observe_verify(1, 0, PASS_MS)
        model.observe_draft(1, STEP_MS, 0, 0.0)
    assert model.verify_upper.ratio == model.draft_upper.ratio == 1.0
    return model


def view(
    cost: CostModel, left_ms: float, own: int = 2, pool: int = 0, price: float = 0.0, wanted: int = 24
) -> CycleView:
    return CycleView(
        request_id="a",
        drafter="draft",
        prompt_tokens=20,
        context_tokens=20,
        new_context_tokens=1,
        draft_behind_tokens=1,
        emitted_tokens=0,
        remaining_tokens=wanted,
        cycle_limit_ms=left_ms,
        own_passes=own,
        from_pool=own == 0,
        max_draft=8,
        time_left_ms=left_ms,
        waiting=0,
        pass_price=price,
        pool_passes=pool,
        times=cost.pass_times(8, 1, 1, 20),
    )


def flat(hazard: float) -> Sequence[float]:
    return [hazard**j for j in range(9)]


def test_a_draft_fits_if_its_steps_and_the_pass_do(cost: CostModel) -> None:
    # 10 ms of verification, then 2 ms a step.
    answers = [fitting_draft(cost, 8, 1, 1, 20, left) for left in (5.0, 11.9, 12.1, 19.0, 90.0)]
    assert [draft for draft, _ in answers] == [0, 0, 1, 4, 8]
    # The times are those of a pass with so long a draft.
    assert [times and times[4] for _, times in answers] == [None, None, PASS_MS, PASS_MS, PASS_MS]
    assert answers[3][1] == cost.pass_times(4, 1, 1, 20)


def test_side_nodes_leave_time_for_fewer() -> None:
    """Verification: 10 ms and 1 ms a token; a step 2 ms, a side node half a one; 40 ms are left."""
    model = CostModel(CostProfile(STEP_MS, tuple(PASS_MS + k for k in KNOTS), (0.001,) * len(KNOTS)))
    for _ in range(200):
        model.observe_verify(1, 0, PASS_MS + 1)
        model.observe_draft(1, STEP_MS, 0, 0.0)
    wide = replace(view(model, 40.1), max_nodes=32)
    assert fitting_nodes(model, wide, 5)[0] == 19  # 5 + 40 − 11 − 5 · 3
    for _ in range(200):
        model.observe_draft(1, 1.5 * STEP_MS, 0, 0.0, sides=1)
    assert fitting_nodes(model, wide, 5)[0] == 12  # 5 + (40 − 11 − 5 · 3) ÷ 2
    assert fitting_nodes(model, wide, 9)[0] == 10  # 9 + (40 − 11 − 9 · 3) ÷ 2
    assert fitting_nodes(model, wide, 10)[0] == 10  # never fewer than the chain has


def test_who_shares_a_pass_has_time_for_all_of_it_or_drafts_less() -> None:
    """Verification: 10 ms and 1 ms a token, a step 2 ms. Four requests of one token each: 14 ms with nothing
    drafted, and each position more is one in every block, 2 + 4 ms.
    """
    model = CostModel(CostProfile(STEP_MS, tuple(PASS_MS + k for k in KNOTS), (0.001,) * len(KNOTS)))
    for _ in range(200):
        model.observe_verify(1, 0, PASS_MS + 1)
        model.observe_draft(1, STEP_MS, 0, 0.0)
    draft, times = fitting_draft(model, 8, 1, 1, 20, 40.1, None, 3, 4)
    assert draft == 4  # 14 + 4 · 6 ms; alone 8 would fit
    assert times is not None
    assert times[4] == pytest.approx(PASS_MS + 4 + 4 * 4)
    wide = replace(view(model, 40.1), max_nodes=32, sharing=4, beside_tokens=3)
    assert fitting_nodes(model, wide, 2)[0] == 5  # 2 + (40 − 14 − 2 · 6) ÷ 4


def test_time_enough_for_everything_is_not_shared_out(cost: CostModel) -> None:
    # Two own passes; two more from the pool are hoped for before it is asked what is in it.
    each = PASS_MS + 8 * STEP_MS
    assert ample_time(cost, view(cost, 4 * each + 0.1))
    assert not ample_time(cost, view(cost, 4 * each - 0.1))
    assert shared_draft(view(cost, 2 * each + 0.1), flat(0.5)) == (8, 2)


def test_a_second_pass_is_worth_more_than_the_end_of_a_long_block(cost: CostModel) -> None:
    # 30 ms: one block of 8, Σ 0.5^j = 2.0 tokens; or two passes with 5 steps between them: 3 then 2 tokens
    # drafted, 1.875 + 1.75.
    assert shared_draft(view(cost, 30.1), flat(0.5)) == (3, 2)


def test_sure_text_takes_one_long_block(cost: CostModel) -> None:
    # 22 ms: one block of 6 brings 7 tokens; two passes leave one step: 2 + 1.
    assert shared_draft(view(cost, 22.1), flat(1.0)) == (6, 1)


@pytest.mark.parametrize(
    ("pool", "price", "tau"),
    [
        (0, 0.0, 5),  # (40 − 20) ÷ 2 steps for two passes
        (1, 0.0, 2),  # (40 − 30) ÷ 2 steps for three: 2 · 1.75 + 1.5 > 2 · 1.97
        (1, 3.0, 5),  # too dear
    ],
)
def test_a_pass_from_the_pool_counts_at_its_price(cost: CostModel, pool: int, price: float, tau: int) -> None:
    assert shared_draft(view(cost, 40.1, pool=pool, price=price), flat(0.5)) == (tau, 2)


def test_more_passes_than_tokens_wanted_are_not_tried(cost: CostModel) -> None:
    # Two tokens wanted: the first block of (25 − 10) ÷ 2 sure steps brings them, a second adds nothing.
    assert shared_draft(view(cost, 25.0, own=10**6, wanted=2), flat(1.0)) == (7, 1)
