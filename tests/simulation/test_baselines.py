"""The published rules, by arithmetic that can be checked by hand."""

import pytest

from specpilot.control.planning import CycleView
from specpilot.control.types import CycleOutcome
from specpilot.simulation.baselines import (
    RULES,
    STATIC_NAMES,
    Additive,
    AsymmetricEma,
    Confidence,
    EmaTiers,
    ExpectedOverCost,
    Rule,
    make_rule,
)
from specpilot.simulation.oracle import Oracle, run_of_ones
from specpilot.simulation.thresholds import ConfidenceThreshold


def view(max_draft: int = 16, *, new: int = 1, emitted: int = 0, allowed: bool = True) -> CycleView:
    return CycleView(
        request_id="a",
        drafter="draft_model",
        prompt_tokens=10,
        context_tokens=10 + emitted,
        new_context_tokens=new,
        draft_behind_tokens=1,
        emitted_tokens=emitted,
        remaining_tokens=24 - emitted,
        cycle_limit_ms=200.0,
        own_passes=2,
        from_pool=False,
        max_draft=max_draft,
        time_left_ms=200.0,
        waiting=0,
        pass_price=0.0,
        speculation_allowed=allowed,
    )


def cycle(rule: Rule, proposed: int, accepted: int, time_ms: float = 10.0, *confidences: float) -> None:
    outcome = CycleOutcome(
        cycle_id=1,
        drafted=proposed,
        proposed=proposed,
        accepted=accepted,
        emitted=accepted + 1,
        confidences=confidences,
        verify_ms=time_ms,
    )
    rule.observe(view(), outcome, now=0.0)


def drafts(rule: Rule) -> int:
    return rule.choose(view(), now=0.0).max_draft


@pytest.mark.parametrize("name", [*STATIC_NAMES, *RULES])
def test_every_name_makes_a_planner_that_respects_its_limits(name: str) -> None:
    rule = make_rule(name)
    assert rule.name == name
    for cap in (0, 1, 5):
        assert rule.choose(view(cap), now=0.0).max_draft <= cap
    assert rule.choose(view(allowed=False), now=0.0).max_draft == 0


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'static-17' is not one of"):
        make_rule("static-17")


def test_additive() -> None:
    rule = Additive()
    assert drafts(rule) == 5
    cycle(rule, 5, 5)
    assert drafts(rule) == 7
    cycle(rule, 7, 6)
    assert drafts(rule) == 6
    for _ in range(10):
        cycle(rule, 1, 0)
    assert drafts(rule) == 1
    cycle(rule, 0, 0)  # a plain cycle says nothing
    assert drafts(rule) == 1


def test_confidence_stops_after_the_first_token_below_the_threshold() -> None:
    choice = Confidence().choose(view(), now=0.0)
    assert choice.max_draft == 16
    stop = choice.stop
    stop.start()
    assert stop.draft_on(1, 0.0)
    assert stop.keep(1, 0.41)
    assert stop.draft_on(2, 0.0)
    assert stop.keep(2, 0.39)  # proposed all the same: its step is paid for
    assert not stop.draft_on(3, 0.0)


def test_threshold_by_hand() -> None:
    threshold = ConfidenceThreshold(0.4)
    for confidence, accepted in ((0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.2, False)):
        threshold.add(confidence, accepted)
        assert threshold.value == 0.4  # five samples are not more than five
    threshold.add(0.1, False)
    # FPR + 3 · FNR: at 0.9 0 + 2, at 0.8 0 + 1, at 0.7 1/3 + 1, at 0.6 1/3 + 0, at 0.2 2/3, at 0.1 1.
    assert threshold.value == 0.6


def test_threshold_needs_both_classes() -> None:
    threshold = ConfidenceThreshold(0.4)
    for _ in range(50):
        threshold.add(0.9, True)
    assert threshold.value == 0.4


def test_confidence_learns_from_verified_tokens_only() -> None:
    rule = Confidence()
    # Accepted 0.9 and 0.8, rejected 0.3, and two after it that say nothing.
    cycle(rule, 5, 2, 10.0, 0.9, 0.8, 0.3, 0.95, 0.99)
    cycle(rule, 3, 2, 10.0, 0.9, 0.8, 0.3)
    assert rule.threshold.value == 0.8


def test_ema_tiers() -> None:
    rule = EmaTiers()
    assert drafts(rule) == 3
    for _ in range(9):
        cycle(rule, 3, 3)
    assert drafts(rule) == 3  # still warming up
    cycle(rule, 3, 3)  # the tenth: ema 3 > 3 − 0.5
    assert drafts(rule) == 5
    for _ in range(5):
        cycle(rule, 5, 0)
    # ema = 3 · 0.8⁵ = 0.983 ≤ 3 − 0.5 − 0.25: down one tier, not two.
    assert rule.ema == pytest.approx(3 * 0.8**5)
    assert drafts(rule) == 3
    for _ in range(5):
        cycle(rule, 3, 0)
    # 0.322 > 1 − 0.5 − 0.25 = 0.25: hysteresis holds it.
    assert drafts(rule) == 3
    for _ in range(5):
        cycle(rule, 3, 0)
    assert drafts(rule) == 1


def test_expected_over_cost() -> None:
    rule = ExpectedOverCost()
    assert drafts(rule) == 1  # nothing known: one past the frontier
    for _ in range(10):
        cycle(rule, 1, 1, 10.0)
    assert rule.frontier == 1
    rule.alpha, rule.reached = [0.5, 0.5, 0.5], [10, 10, 9]
    rule.cost = {0: 10.0, 1: 12.0, 2: 14.0}
    assert rule.frontier == 2
    # tokens 1, 1.5, 1.75, 1.875 over 10, 12, 14, 16 ms: 0.1, 0.125, 0.125, 0.117; the first best wins.
    assert rule.cost_of(3) == pytest.approx(16.0)
    assert rule.best() == 1


def test_expected_over_cost_clamps_an_outlier_and_ignores_prefill() -> None:
    rule = ExpectedOverCost()
    cycle(rule, 1, 0, 10.0)
    cycle(rule, 1, 0, 100.0)  # +25 % at most, times 0.3
    assert rule.cost[1] == pytest.approx(10.75)
    outcome = CycleOutcome(2, 1, 1, 0, 1, verify_ms=500.0)
    rule.observe(view(new=200), outcome, now=0.0)
    assert rule.cost[1] == pytest.approx(10.75)


def test_expected_over_cost_probes_with_back_off() -> None:
    rule = ExpectedOverCost()
    rule.alpha, rule.reached, rule.cost = [0.0, 0.0], [10, 10], {0: 10.0, 1: 12.0, 2: 14.0}
    lengths = [rule.length(view()) for _ in range(28)]
    # The best is 0; one more is tried at the 4th call, then 8, then 16 calls later.
    assert [index + 1 for index, length in enumerate(lengths) if length == 1] == [4, 12, 28]


def test_asymmetric_ema() -> None:
    rule = AsymmetricEma()
    assert drafts(rule) == 3
    cycle(rule, 3, 3)  # counts as 4: 3 + 0.2 · 1.3 · 1
    assert rule.ema == pytest.approx(3.26)
    assert drafts(rule) == 4
    cycle(rule, 4, 0)  # 3.26 − 0.2 · 0.65 · 3.26
    assert rule.ema == pytest.approx(2.8362)
    rule.ema = 0.29
    assert [drafts(rule) for _ in range(32)] == ([0] * 15 + [1]) * 2


def test_the_oracle_drafts_what_will_be_accepted() -> None:
    oracle = Oracle({"a": (1, 1, 0, 1, 1, 1)})
    assert oracle.choose(view(), now=0.0).max_draft == 2
    assert oracle.choose(view(emitted=2), now=0.0).max_draft == 0
    assert oracle.choose(view(emitted=3), now=0.0).max_draft == 3
    assert oracle.choose(view(2, emitted=3), now=0.0).max_draft == 2
    assert oracle.choose(view(emitted=3), now=0.0).bid_tokens == 4.0


def test_run_of_ones_ends_with_the_trace() -> None:
    assert run_of_ones((1, 1), 0, 8) == 2
    assert run_of_ones((1, 1), 5, 8) == 0
