"""Learned state as bytes, and the three modes."""

from __future__ import annotations

import contextlib
import copy
import json
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpilot.control import (
    Controller,
    ControllerConfig,
    CycleOutcome,
    CyclePlan,
    Mode,
    RequestInfo,
    StopCause,
    StopRule,
)
from specpilot.control.budget import PassPrice
from specpilot.control.change import RECENT_BLOCKS
from specpilot.control.snapshot import BLANK, CONTENTS, _attributes, adopt, dump, load


def one_cycle(controller: Controller, name: str, now: float, accepted: int = 1) -> CyclePlan | None:
    """Plan, begin and observe one cycle; ``None`` if the request was ended instead."""
    answer = controller.plan([name], now=now)
    if answer.stops:
        controller.finish(name, answer.stops[0].cause, now=now)
        return None
    plan = answer.cycles[0]
    controller.begin([plan.cycle_id], now=now)
    drafted = plan.max_draft
    accepted = min(accepted, drafted)
    confidences = tuple([0.6] * drafted)
    cycle = CycleOutcome(plan.cycle_id, drafted, drafted, accepted, accepted + 1, confidences, 0.3 * drafted)
    controller.observe([replace(cycle, verify_ms=7.0, verified_tokens=drafted + 1)], now=now + 0.008)
    return plan


def plans(controller: Controller, count: int = 40, start: float = 0.0) -> list[tuple[int, StopRule, str]]:
    """What it decides for ``count`` requests of four prompt lengths."""
    result = []
    for index in range(count):
        name, now = f"{start:g}-{index}", start + index
        assert controller.admit(RequestInfo(name, 40 + 160 * (index % 4), 24), now=now).admitted
        while plan := one_cycle(controller, name, now, accepted=index % 5):
            result.append((plan.max_draft, plan.stop, str(plan.reason)))
    return result


def taught(**changes: object) -> Controller:
    """A controller that has served 150 requests."""
    controller = Controller(ControllerConfig(**changes))  # type: ignore[arg-type]
    plans(controller, 150)
    return controller


def test_a_restored_controller_plans_as_the_first_would() -> None:
    """Both start afresh in every other respect: the pool, which belongs to a process, is emptied."""
    first = taught(burst=0)
    data = first.snapshot()
    second = Controller(ControllerConfig(burst=0))
    second.restore(data)
    third = Controller(ControllerConfig(burst=0))
    third.restore(second.snapshot())
    assert second.snapshot() == data
    expected = plans(second, start=1000.0)
    assert plans(third, start=1000.0) == expected
    # The first has decisions in its cache that the others make anew: compare what it drafts once it has.
    for context in first.planner.knowledge.contexts.values():  # type: ignore[attr-defined]
        context.forget_decisions()
    first.time_price._last_s = None
    assert plans(first, start=1000.0) == expected


def test_what_is_kept_of_the_last_blocks_stays_short_after_a_restart() -> None:
    """A change of phase is learned from the last blocks, not from all since the restart."""
    restored = Controller()
    restored.restore(taught().snapshot())
    plans(restored, start=1000.0)
    model = restored.planner.knowledge.acceptance  # type: ignore[attr-defined]
    for change in [*model._changes.values(), *model._common.values()]:
        assert len(change.recent) == RECENT_BLOCKS


def test_bids_of_another_process_do_not_stop_the_pool() -> None:
    """λ is a quantile of bids by what flowed in between them; the new process's ledger counts from 0."""
    first = PassPrice()
    inflow = 0
    for bid in range(40):
        inflow += 500
        first.bid(float(bid % 10), inflow)
    price = first.price(0.0)
    assert 0.0 < price < 9.0
    second = PassPrice()
    adopt(second, load(dump({"price": first}, {}), {})["price"])
    assert second.price(0.0) == price
    for bid in range(40):
        first.bid(float(bid % 10), inflow + 500 * bid)
        second.bid(float(bid % 10), 500 * bid)
        assert second.price(0.0) == first.price(0.0)


def test_snapshot_is_taken_up_under_other_promises_only() -> None:
    data = taught().snapshot()
    Controller(ControllerConfig(pass_budget=3.0, slo_p95_ms=500.0, mode=Mode.SHADOW)).restore(data)
    with pytest.raises(ValueError, match=r"discount=0\.985, now it is 0\.9"):
        Controller(ControllerConfig(discount=0.9)).restore(data)


def test_snapshot_shares_what_was_shared() -> None:
    """Contexts of one drafter learn into one calibration, before and after."""
    controller = Controller()
    controller.restore(taught().snapshot())
    contexts = list(controller.planner.knowledge.contexts.values())  # type: ignore[attr-defined]
    assert len(contexts) > 1
    assert len({id(context.calibration) for context in contexts}) == 1


def test_an_open_breaker_stays_open_and_only_the_snapshots_are_kept() -> None:
    """Three faults open one: of "bad" before the snapshot, of "late" before it is restored elsewhere."""

    def broken(controller: Controller, drafter: str) -> Controller:
        for number in range(3):
            name = f"{drafter}{number}"
            controller.admit(RequestInfo(name, 40, 24, slo_ms=1e9, drafter=drafter), now=0.0)
            (plan,) = controller.plan([name], now=0.0).cycles
            controller.begin([plan.cycle_id], now=0.0)
            controller.observe([CycleOutcome(plan.cycle_id, 0, 0, 0, 1, draft_fault="hang")], now=0.0)
            controller.finish(name, StopCause.EOS, now=0.0)
        return controller

    def allowed(controller: Controller, drafter: str) -> bool:
        controller.admit(RequestInfo(drafter, 40, 24, slo_ms=1e9, drafter=drafter), now=0.0)
        return controller.plan([drafter], now=0.0).cycles[0].max_draft > 0

    data = broken(Controller(), "bad").snapshot()
    assert not allowed(broken(Controller(), "late"), "late")
    second = broken(Controller(), "late")
    second.restore(data)
    assert not allowed(second, "bad")
    assert allowed(second, "late")


def test_restore_refuses_with_requests_in_flight() -> None:
    controller = Controller()
    controller.admit(RequestInfo("a", 10, 10), now=0.0)
    with pytest.raises(ValueError, match="1 requests are in flight"):
        controller.restore(taught().snapshot())


def of(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The attributes of the first object of a class."""
    return next(one["attributes"] for one in document["objects"] if one["class"] == name)


def tables(document: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The hazard tables with their numbers."""
    return [(at, one) for at, one in enumerate(document["objects"]) if one["class"] == "HazardTable"]


def taught_last(document: dict[str, Any]) -> list[Any]:
    """(position, value, weight) of the first token of one of the last blocks."""
    block = changes(document)[0]["recent"]["deque"][-1]["tuple"][1]["list"]
    observation: list[Any] = block[0]["tuple"]
    return observation


def windows(document: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The attributes of the windows of recent values, by their size."""
    found = [one["attributes"] for one in document["objects"] if one["class"] == "Window"]
    return {one["size"]: one for one in found}


def changes(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The attributes of all sums of surprise."""
    return [one["attributes"] for one in document["objects"] if one["class"] == "Change"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d["objects"][0].update({"class": "Popen"}), "no known class"),
        (lambda d: d["objects"][0]["attributes"].popitem(), "other attributes"),
        (lambda d: d["objects"][0]["attributes"].update({"host_ms": "fast"}), "host_ms='fast'"),
        (lambda d: d["objects"][0]["attributes"].update({"host_ms": float("inf")}), "not finite"),
        (lambda d: d["objects"][0]["attributes"].update({"host_ms": {"object": 10**6}}), "host_ms holds"),
        (lambda d: d["parts"].pop("cost"), "cost is NoneType, not CostModel"),
        (lambda d: d["parts"].update(cost=d["parts"]["deadlines"]), "cost is DeadlineTracker, not CostModel"),
        (lambda d: d.pop("objects"), "not readable"),
        (lambda d: d.update(constants=[]), r"constants='\[\]' is not an object"),
        (lambda d: d.update(parts=[]), "malformed"),
        (
            lambda d: of(d, "CostCurve")["values"]["list"].__setitem__(0, "x"),
            r"CostCurve\.values=.* list of 12",
        ),
        (lambda d: of(d, "CostCurve")["values"]["list"].__delitem__(slice(3, None)), r"CostCurve\.values="),
        (lambda d: of(d, "CostCurve")["values"]["list"].__setitem__(0, -1.0), "rising values"),
        (lambda d: of(d, "CostCurve")["covariance"]["list"][3]["list"].__setitem__(3, -1.0), "a covariance"),
        (lambda d: of(d, "CostCurve")["covariance"]["list"][3]["list"].__setitem__(3, 1e300), "a covariance"),
        (lambda d: of(d, "CostCurve")["covariance"]["list"][3]["list"].__setitem__(4, -1.9), "a covariance"),
        (lambda d: of(d, "CostCurve")["_slopes"]["list"].__setitem__(0, 1e9), "their slopes"),
        (lambda d: of(d, "CostCurve")["covariance"]["list"][3]["list"].pop(), r"CostCurve\.covariance="),
        (lambda d: of(d, "CostCurve")["_seen"]["list"].__setitem__(0, 0.5), r"CostCurve\._seen="),
        (lambda d: of(d, "PlacedCalibration")["_positions"]["list"].pop(), r"PlacedCalibration\._positions="),
        (
            lambda d: of(d, "PlacedCalibration")["_buckets"]["dict"].append([9, 1.0]),
            r"_buckets=.* dict\[int, ",
        ),
        (
            lambda d: of(d, "PlacedCalibration")["_buckets"]["dict"].append([9]),
            r"PlacedCalibration\._buckets holds",
        ),
        (lambda d: of(d, "Change")["recent"]["deque"].append({"list": [1]}), r"Change\.recent="),
        (lambda d: of(d, "HazardTable")["reached"]["list"].pop(), "as long as each other"),
        (lambda d: of(d, "HazardTable")["accepted"]["list"].__setitem__(0, None), r"HazardTable\.accepted="),
        (lambda d: [o["attributes"].update(parent={"object": i}) for i, o in tables(d)], "without a parent"),
        (lambda d: of(d, "AcceptanceModel")["_changes"]["dict"].pop(), "_tables and _changes"),
        (lambda d: of(d, "AcceptanceModel")["_common"]["dict"].pop(), "_pooled and _common"),
        (
            lambda d: [one["recent"]["deque"][0]["tuple"].__setitem__(0, 9) for one in changes(d)],
            "_tables and",
        ),
        (lambda d: of(d, "PassPrice")["_inflows"]["deque"].pop(), "an inflow at each"),
        (lambda d: of(d, "Window")["ordered"]["list"].append(1.0), "in ordered its values"),
        (lambda d: windows(d)[64].update(values={"deque": [1.0] * 65}, ordered={"list": [1.0] * 65}), "size"),
        (lambda d: windows(d)[64].update(size=65), "_slacks of 64 at most"),
        (lambda d: windows(d)[128].update(size=10**9), "_bids of 128 at most"),
        (lambda d: taught_last(d).__setitem__(0, 0), "positions from 1 on"),
        (lambda d: taught_last(d).__setitem__(2, -1e9), "weights in 0…8"),
        (lambda d: of(d, "HazardTable")["reached"]["list"].__setitem__(0, -1.0), "≥ 0"),
        (lambda d: of(d, "Backoff").update(_left=10**400), "beyond"),
        (lambda d: d["parts"]["breakers"]["dict"].append(["b", 3]), r"breakers=.* dict\[str, "),
        (lambda d: d["parts"]["contexts"]["dict"][0].__setitem__(0, "a"), r"contexts="),
    ],
)
def test_a_damaged_snapshot_is_refused_as_a_whole(damage: object, message: str) -> None:
    document = json.loads(taught().snapshot())
    damage(document)  # type: ignore[operator]
    fresh = Controller()
    before = fresh.snapshot()
    with pytest.raises(ValueError, match=message):
        fresh.restore(json.dumps(document).encode())
    assert fresh.snapshot() == before


TAUGHT = json.loads(taught().snapshot())


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in [(value, key), *places(item)]]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(["x", None, True, [], {}, {"list": []}, 10**400, [[]]]))
def test_a_snapshot_with_anything_replaced_is_refused_or_can_be_planned_with(at: int, other: Any) -> None:
    """No other error than ValueError, which is what a server expects; and what is taken up serves."""
    document = copy.deepcopy(TAUGHT)
    found = places(document)
    container, key = found[at % len(found)]
    container[key] = other
    controller = Controller()
    with contextlib.suppress(ValueError):
        controller.restore(json.dumps(document).encode())
    plans(controller, 5, start=1000.0)


@pytest.mark.parametrize("name", sorted(BLANK))
def test_what_a_snapshot_holds_in_an_empty_container_is_declared(name: str) -> None:
    """Its elements could not be checked otherwise."""
    for attribute, value in _attributes(BLANK[name]()).items():
        if value is None or (isinstance(value, list | tuple | dict | deque) and not value):
            assert attribute in CONTENTS[name], f"{name}.{attribute}"


def test_truncated_snapshot() -> None:
    with pytest.raises(ValueError, match="not readable"):
        Controller().restore(taught().snapshot()[:-20])


def test_every_class_a_snapshot_may_hold_is_in_one() -> None:
    """Nothing is listed that no controller learns into."""
    written = {record["class"] for record in json.loads(taught().snapshot())["objects"]}
    assert written == set(BLANK) - {"Breaker"} or written == set(BLANK)


# --- modes ------------------------------------------------------------------------------------------


def test_shadow_records_the_policy_and_runs_the_static_length() -> None:
    controller = Controller(ControllerConfig(mode=Mode.SHADOW, static_draft=3))
    shadows = set()
    for index in range(60):
        name = str(index)
        controller.admit(RequestInfo(name, 40, 24), now=float(index))
        while plan := one_cycle(controller, name, float(index), accepted=3):
            assert plan.max_draft == 3
            assert plan.stop.keep_at == ()
            assert plan.shadow_draft is not None
            shadows.add(plan.shadow_draft)
    assert max(shadows) > 3, "it learned from the static blocks that drafting longer would pay"


def test_off_neither_plans_nor_learns() -> None:
    controller = Controller(ControllerConfig(mode=Mode.OFF, static_draft=2))
    planner_state = controller.planner.learned()["contexts"]  # type: ignore[attr-defined]
    controller.admit(RequestInfo("a", 40, 24), now=0.0)
    plan = one_cycle(controller, "a", 0.0)
    assert plan is not None
    assert (plan.max_draft, plan.shadow_draft, plan.reason.note) == (2, None, "static")
    assert planner_state == {}


def test_modes_switch_while_a_request_runs() -> None:
    controller = Controller(ControllerConfig(pass_budget=4.0, static_draft=2))
    controller.admit(RequestInfo("a", 40, 60), now=0.0)
    seen = []
    for mode in ("on", "off", "shadow", "on"):
        controller.mode = mode
        plan = one_cycle(controller, "a", 0.0)
        assert plan is not None
        seen.append((plan.max_draft == 2, plan.shadow_draft is None))
    assert seen == [(False, True), (True, True), (True, False), (False, True)]
    with pytest.raises(ValueError, match="mode: 'fast' is not off, shadow or on"):
        controller.mode = "fast"


def test_a_mode_switched_between_plan_and_observe_is_harmless() -> None:
    controller = Controller(ControllerConfig(mode=Mode.OFF))
    controller.admit(RequestInfo("a", 40, 24), now=0.0)
    plan = controller.plan(["a"], now=0.0).cycles[0]
    controller.begin([plan.cycle_id], now=0.0)
    controller.mode = Mode.ON
    controller.abort([plan.cycle_id], now=0.0)
    assert one_cycle(controller, "a", 0.0) is not None
