"""Every implementation here goes through the public conformance checks; broken ones do not get through."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from specpilot.control import Controller, ControllerConfig
from specpilot.decoding.static import StaticController
from specpilot.decoding.types import Draft
from specpilot.drafters.base import Drafter, DraftItem
from specpilot.drafters.guarded import GuardedDrafter
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import FloatArray, ForwardItem
from specpilot.targets.model import ModelTarget
from specpilot.targets.scripted import ScriptedCache, ScriptedLM
from specpilot.testing import Check, controller_checks, drafter_checks, model_checks, target_checks

MODEL = ScriptedLM(seed=5)
DRAFT = MODEL.variant(noise=0.5)


@pytest.mark.parametrize("check", model_checks(lambda: MODEL), ids=str)
def test_scripted_model(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", target_checks(lambda: ModelTarget(MODEL)), ids=str)
def test_model_target(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", drafter_checks(lambda: ModelDrafter(DRAFT)), ids=str)
def test_model_drafter(check: Check) -> None:
    check()


def guarded() -> Drafter:
    return GuardedDrafter(ModelDrafter(DRAFT), 5000.0, DRAFT.vocab_size)


@pytest.mark.parametrize("check", drafter_checks(guarded), ids=str)
def test_guarded_drafter(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", controller_checks(lambda: StaticController(3)), ids=str)
def test_static_controller(check: Check) -> None:
    check()


@pytest.mark.parametrize("budget", [1.0, 2.0, 2.7])
def test_controller(budget: float) -> None:
    def make() -> Controller:
        return Controller(ControllerConfig(pass_budget=budget))

    for check in controller_checks(make, pass_budget=budget):
        check()


class StaleCache(ScriptedCache):
    """Forgets the tokens on truncation but not their values: the classic missed rollback."""

    def truncate(self, length: int) -> None:
        del self.tokens[length:]


class StaleModel(ScriptedLM):
    def new_cache(self) -> ScriptedCache:
        return StaleCache()


class BlindModel(ScriptedLM):
    """Takes a tree for a chain."""

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        return super().forward(
            [ForwardItem(item.cache, item.token_ids, None, item.logits_from) for item in items]
        )


def fails(checks: list[Check]) -> set[str]:
    """Names of the checks that find something."""
    found = set()
    for check in checks:
        try:
            check()
        except AssertionError:
            found.add(check.name)
    return found


def test_a_missed_rollback_is_found() -> None:
    assert "model:rollback" in fails(model_checks(StaleModel))
    assert "target:commit" in fails(target_checks(lambda: ModelTarget(StaleModel())))
    assert "drafter:in-step" in fails(drafter_checks(lambda: ModelDrafter(StaleModel())))


def test_a_tree_taken_for_a_chain_is_found() -> None:
    assert fails(model_checks(BlindModel)) == {"model:tree"}
    assert fails(target_checks(lambda: ModelTarget(BlindModel()))) == {"target:tree"}


class NoBonusDrafter(ModelDrafter):
    """Leaves the bonus token out of the draft's context after a full accept."""

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        for item in items:
            cache = self._caches.of(item.request_id, item.context)
            held = len(cache.token_ids)
            if held and held == len(item.context) - 2 and isinstance(cache, ScriptedCache):
                cache.tokens.append(item.context[-2])
                cache.values.append(0)
        return super().propose(items)


class EagerDrafter(ModelDrafter):
    """Draws first and asks afterwards (breaks I4)."""

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        for item in items:
            item.rule.draw(item.rule.look(DRAFT.next_logits(item.context), len(item.context)))
        return super().propose(items)


def test_a_missing_bonus_token_and_an_early_draw_are_found() -> None:
    assert "drafter:in-step" in fails(drafter_checks(lambda: NoBonusDrafter(DRAFT)))
    assert "drafter:stopping" in fails(drafter_checks(lambda: EagerDrafter(DRAFT)))


def test_an_overspending_controller_is_found() -> None:
    assert "controller:promises" in fails(controller_checks(lambda: StaticController(2), pass_budget=2.0))


class KeepsAllCache(ScriptedCache):
    """Leaves the rows of other branches where they are."""

    def keep_path(self, length: int, rows: Sequence[int]) -> None:
        pass


class KeepsAllModel(ScriptedLM):
    def new_cache(self) -> ScriptedCache:
        return KeepsAllCache()


def test_rows_of_other_branches_taken_for_context_are_found() -> None:
    assert "drafter:trees" in fails(drafter_checks(lambda: ModelDrafter(KeepsAllModel())))
