"""A drafter's first blocks: a static length until what is decided is surely better."""

from __future__ import annotations

import math
import random

import pytest
from tests.control.driving import Engine, serve

from specpilot.control import Controller, ControllerConfig, CycleOutcome, CyclePlan, Mode
from specpilot.control.cost import CostModel, CostProfile
from specpilot.control.knowledge import Knowledge
from specpilot.control.planner import COLD_BLOCKS, UNSURE_BLOCKS
from specpilot.control.solving import STATIC_DRAFT, Inputs, decide

VERIFY_MS = 6.0


def drafting(hazard: float, draft_ms: float, seed: int) -> Engine:
    """A draft whose every token is accepted with this chance; the target's pass takes 6 ms."""
    rng = random.Random(seed)

    def engine(plan: CyclePlan, _: int) -> tuple[CycleOutcome, float]:
        drafted = plan.max_draft
        accepted = 0
        while accepted < drafted and rng.random() < hazard:
            accepted += 1
        outcome = CycleOutcome(
            plan.cycle_id,
            drafted,
            drafted,
            accepted,
            accepted + 1,
            verified_tokens=drafted + 1,
            draft_ms=draft_ms * drafted,
            verify_ms=VERIFY_MS,
        )
        return outcome, draft_ms * drafted + VERIFY_MS

    return engine


def plans(hazard: float, draft_ms: float, seed: int = 5, **config: object) -> list[CyclePlan]:
    profile = CostProfile(draft_ms, (VERIFY_MS,) * 12)
    controller = Controller(ControllerConfig(**config), profile=profile)  # type: ignore[arg-type]
    return serve(controller, 200, drafting(hazard, draft_ms, seed))


@pytest.mark.parametrize(("hazard", "tau"), [(0.5, 1), (0.82, 4), (0.92, 8)])
def test_lead_over_the_static_length_by_hand(hazard: float, tau: int) -> None:
    """Each step costs θ · 2 ms = 0.4 tokens; position j earns h^j · 0.98^j, for two in a hundred end at each
    token. 0.5 drafts one token, 0.82 four (0.42, then 0.34), 0.92 all eight (0.44).
    """
    known = Knowledge(ControllerConfig())
    cost = CostModel(CostProfile(2.0, (VERIFY_MS,) * 12))
    context = known.context("draft", "greedy", 40)
    context.has_confidence = False
    inputs = Inputs([hazard] * 8, context, known.end_hazard, cost, 0, known.lookup)
    price = round(10.0 * math.log(0.2))
    step = 2.0 * math.exp(price / 10.0)
    goes_on = known.end_hazard.survival(20)
    # Ceiling, wanted, later passes, price, width, behind, shift, matched, beside, sharing.
    decision = decide(inputs, (8, 20, 0, price, 1, 1, 0, 0, 0, 1))
    assert decision.tau == tau
    start = cost.draft_start_ms * step / 2.0

    def worth(length: int) -> float:
        return sum(hazard**j * goes_on[j] - step for j in range(1, length + 1)) - start

    assert decision.lead == pytest.approx((worth(tau) - worth(STATIC_DRAFT)) / goes_on[1], abs=1e-9)


def test_a_length_that_is_hardly_better_has_to_wait() -> None:
    """A step costs a fifth of a token: 4 is the best (0.24, then 0.17), 3 and 5 are hardly worse."""
    first = [plan for seed in range(20) for plan in plans(0.7, 0.6, seed)[:UNSURE_BLOCKS]]
    held = [plan for plan in first if plan.reason.note == "cold start"]
    assert {plan.max_draft for plan in held} == {STATIC_DRAFT}
    assert len(held) > 0.8 * len(first)


def test_nothing_is_held_to_the_static_length_for_long() -> None:
    late = plans(0.7, 0.6)[UNSURE_BLOCKS:]
    assert not any(plan.reason.note == "cold start" for plan in late)


@pytest.mark.parametrize(("hazard", "draft_ms", "longer"), [(0.95, 0.2, True), (0.4, 3.0, False)])
def test_a_length_that_is_much_better_is_taken_at_once(hazard: float, draft_ms: float, longer: bool) -> None:
    """A draft that is nearly always right and costs nothing, and a dear one that is mostly wrong."""
    made = plans(hazard, draft_ms)
    assert [plan.max_draft for plan in made[:COLD_BLOCKS]] == [STATIC_DRAFT] * COLD_BLOCKS
    following = [plan.max_draft for plan in made[COLD_BLOCKS : COLD_BLOCKS + 8]]
    assert all(length > STATIC_DRAFT if longer else length < STATIC_DRAFT for length in following)


def test_shadow_mode_gets_past_the_cold_start_with_another_static_length() -> None:
    late = plans(0.7, 0.6, mode=Mode.SHADOW, static_draft=2)[UNSURE_BLOCKS:]
    assert not any(plan.reason.note == "cold start" for plan in late)
