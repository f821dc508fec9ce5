"""Prompt lookup: the automaton against brute force, the drafter's conformance, exact outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpilot.control import ControllerConfig
from specpilot.control.stop import StopRule
from specpilot.decoding.acceptance import Greedy, Rejection
from specpilot.decoding.types import SamplingParams
from specpilot.drafters.base import DraftItem
from specpilot.drafters.lookup import LookupDrafter, SuffixAutomaton
from specpilot.pair import load_pair
from specpilot.testing import Check, drafter_checks

TEXT = "Rewrite: the committee met on Monday and the committee met on"


@pytest.mark.parametrize("check", drafter_checks(lambda: LookupDrafter(8)), ids=str)
def test_conformance(check: Check) -> None:
    check()


def longest(tokens: Sequence[int]) -> int:
    """Length of the longest suffix that occurred before (overlaps allowed), by trying all."""
    for length in range(len(tokens) - 1, 0, -1):
        suffix = list(tokens[-length:])
        if any(list(tokens[i : i + length]) == suffix for i in range(len(tokens) - length)):
            return length
    return 0


@given(st.lists(st.integers(0, 2), max_size=40))
def test_the_automaton_is_brute_force(tokens: list[int]) -> None:
    text = SuffixAutomaton()
    for place, token in enumerate(tokens, 1):
        text.extend(token)
        assert text.matched == longest(tokens[:place])
        end = text.ends_at
        if text.matched:
            assert end < place
            assert tokens[end - text.matched : end] == tokens[place - text.matched : place]


def item(context: Sequence[int], depth: int = 4, **changes: object) -> DraftItem:
    rule = changes.get("rule", Greedy())
    return DraftItem("a", context, depth, depth, StopRule(), rule)  # type: ignore[arg-type]


def test_what_followed_is_proposed() -> None:
    drafter = LookupDrafter(16)
    drafter.open("a", (1, 2, 3, 4, 5))
    draft = drafter.propose([item((1, 2, 3, 4, 5, 9, 2, 3))])[0]
    assert draft.block.token_ids == (4, 5, 9, 2)
    assert draft.confidences == pytest.approx((2 / 3,) * 4)
    # 1 2 3 1 2 goes on with 3 1 2, and then with what that would be followed by.
    assert drafter.propose([item((1, 2, 3, 1, 2), 7)])[0].block.token_ids == (3, 1, 2, 3, 1, 2, 3)
    # One token is no match, and nothing is drawn where the rule needs samples of q.
    assert not len(drafter.propose([item((1, 2, 3, 4, 5, 9, 2))])[0].block)
    rule = Rejection(SamplingParams(1.0), np.random.default_rng(1))
    assert not len(drafter.propose([item((1, 2, 3, 1, 2), rule=rule)])[0].block)


def test_a_context_that_is_not_continued_starts_over() -> None:
    drafter = LookupDrafter(16)
    drafter.open("a", (1, 2))
    drafter.propose([item((1, 2, 3, 4, 1, 2))])
    draft = drafter.propose([item((5, 6, 7, 5, 6))])[0]
    assert draft.block.token_ids == (7, 5, 6, 7)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "seed": 5}])
def test_the_text_is_the_target_s_own(settings: dict[str, float]) -> None:
    config = ControllerConfig(pass_budget=24.0, slo_p95_ms=600_000.0)
    looked, plain = load_pair(drafter="lookup", config=config), load_pair(config=config)
    passes = 0
    for prompt in (TEXT, "one two three one two three one two", ""):
        text = looked.complete(prompt, 24, **settings)  # type: ignore[arg-type]
        assert text.token_ids == plain.complete(prompt, 24, max_draft=0, **settings).token_ids  # type: ignore[arg-type]
        passes += len(text.token_ids) - text.target_passes
    if not settings:
        assert passes > 0, "some tokens came without a pass of their own"


def test_unseeded_sampling_drafts_too() -> None:
    config = ControllerConfig(pass_budget=24.0, slo_p95_ms=600_000.0)
    pair = load_pair(drafter="lookup", config=config)
    answers = [pair.complete("one two three one two three one two", 16, temperature=0.7) for _ in range(6)]
    assert any(len(cycle.block) for answer in answers for cycle in answer.cycles)
    assert all(answer.stop_cause != "error" for answer in answers)


def test_an_unknown_drafter() -> None:
    with pytest.raises(ValueError, match="drafter: 'oracle' is not one of model, lookup"):
        load_pair(drafter="oracle")
