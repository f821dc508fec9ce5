"""I7: a trace replays through the controller to the same decisions, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpilot.control import Controller, ControllerConfig, CycleOutcome, RequestInfo, StopCause
from specpilot.trace import (
    CycleRecord,
    StopRecord,
    TracedController,
    TraceHeader,
    TraceRecord,
    header_for,
    read_trace,
    write_trace,
)
from specpilot.trace.replay import replay_decisions
from specpilot.trace.validate import validate

Served = TypeVar("Served", Controller, TracedController)
Whole = tuple[TraceHeader, list[TraceRecord]]


def test_a_run_replays_from_its_file(whole: Whole, trace_file: Path) -> None:
    records = read_trace(trace_file)
    replayed = replay_decisions(records)
    assert replayed.differences == []
    assert replayed.plans == sum(isinstance(r, CycleRecord) for r in records) > 100
    assert replayed.stops == sum(isinstance(r, StopRecord) for r in records)
    assert replayed.ends == 60


def test_a_tight_run_replays_its_refusals_and_stops(run: Callable[..., Whole]) -> None:
    header, records = run(150, 120.0, ControllerConfig(slo_p95_ms=150.0, pass_budget=1.5))
    replayed = replay_decisions([header, *records])
    assert replayed.different == 0
    assert replayed.stops > 20


def test_a_change_is_found(whole: Whole) -> None:
    header, records = whole
    place = next(i for i, r in enumerate(records) if isinstance(r, CycleRecord) and r.accepted == 3)
    cycle = records[place]
    assert isinstance(cycle, CycleRecord)
    changed = [*records]
    changed[place] = replace(cycle, max_draft=cycle.max_draft + 1)
    replayed = replay_decisions([header, *changed])
    assert replayed.different == 1
    assert f"plan of {cycle.request}, cycle {cycle.index}" in replayed.differences[0]


def test_another_policy_is_not_replayed(whole: Whole) -> None:
    with pytest.raises(ValueError, match="replayable: this trace of 'static-4'"):
        replay_decisions([replace(whole[0], policy="static-4", replayable=False), *whole[1]])


def test_a_missing_line_is_an_error_and_not_a_difference(whole: Whole) -> None:
    with pytest.raises(ValueError, match="the trace does not hold every call"):
        replay_decisions([whole[0], *whole[1][1:]])


class _Driver:
    """Batches, aborts, drops, cancellations and switches of mode, drawn by Hypothesis."""

    def __init__(self, controller: Controller) -> None:
        self.records: list[TraceRecord] = []
        self.header = header_for(controller, "test")
        self.traced = TracedController(controller, self.records.append)
        self.now = 0.0
        self.wanted: dict[str, int] = {}

    def run(self, data: st.DataObject) -> None:
        live: list[str] = []
        for step in range(data.draw(st.integers(5, 25))):
            self.now += data.draw(st.sampled_from([0.0, 0.003, 0.05]))
            if data.draw(st.booleans()):
                info = RequestInfo(f"q{step}", data.draw(st.integers(1, 300)), 16)
                if self.traced.admit(info, now=self.now).admitted:
                    live.append(info.request_id)
                    self.wanted[info.request_id] = info.max_tokens
            if data.draw(st.integers(0, 9)) == 0:
                self.traced.mode = data.draw(st.sampled_from(["on", "shadow", "off"]))
            if live:
                live = self.batch(live, data)

    def batch(self, live: list[str], data: st.DataObject) -> list[str]:
        chosen = data.draw(st.permutations(live))[:3]
        batch = self.traced.plan(chosen, now=self.now)
        over = {stop.request_id: stop.cause for stop in batch.stops}
        what = data.draw(st.sampled_from(["observe", "observe", "observe", "abort", "fail", "drop"]))
        ids = [cycle.cycle_id for cycle in batch.cycles]
        if ids and what == "abort":
            self.traced.abort(ids, now=self.now)
        elif ids and what == "drop":
            over |= {cycle.request_id: StopCause.CANCELLED for cycle in batch.cycles[:1]}
            self.traced.abort(ids[1:], now=self.now)
        elif ids:
            self.traced.begin(ids, now=self.now)
            self.now += 0.02
            if what == "fail":
                self.traced.abort(ids, now=self.now)
                over |= {cycle.request_id: StopCause.ERROR for cycle in batch.cycles}
            else:
                outcomes = []
                for cycle in reversed(batch.cycles):
                    accepted = data.draw(st.integers(0, cycle.max_draft))
                    confidences = tuple([0.1 + 0.7 / 3] * cycle.max_draft)
                    emitted = min(accepted + 1, self.wanted[cycle.request_id])
                    self.wanted[cycle.request_id] -= emitted
                    ended = data.draw(st.sampled_from([None, None, StopCause.EOS]))
                    if ended is None and not self.wanted[cycle.request_id]:
                        ended = StopCause.MAX_TOKENS
                    if ended is not None:
                        over[cycle.request_id] = ended
                    outcomes.append(
                        CycleOutcome(
                            cycle.cycle_id, cycle.max_draft, cycle.max_draft, accepted, emitted,
                            confidences, 3.0, verify_ms=17.3, batch_size=len(ids), ended=ended,
                        )
                    )  # fmt: skip
                self.traced.observe(outcomes, now=self.now)
        for request_id, cause in over.items():
            self.traced.finish(request_id, cause, now=self.now)
        return [request_id for request_id in live if request_id not in over]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_run_replays(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    controller = Controller(ControllerConfig(slo_p95_ms=400.0))
    driver = _Driver(controller)
    driver.run(data)
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    write_trace(path, driver.header, driver.records)
    validate(path)
    replayed = replay_decisions(read_trace(path))
    assert replayed.differences == []


def test_a_restored_controller_replays_from_its_snapshot() -> None:
    first = _warm(Controller())
    second = Controller()
    second.restore(first.snapshot())
    header = header_for(second, "test")
    assert header.snapshot is not None
    records: list[TraceRecord] = []
    _warm(TracedController(second, records.append))
    assert replay_decisions([header, *records]).different == 0
    fresh = replace(header, snapshot=None)
    assert replay_decisions([fresh, *records]).different > 0


def test_a_controller_that_has_served_is_not_replayable() -> None:
    assert header_for(Controller(), "test").replayable
    assert not header_for(_warm(Controller()), "test").replayable


def _warm(controller: Served) -> Served:
    for index in range(30):
        now = index * 0.1
        controller.admit(RequestInfo(f"w{index}", 50, 20), now=now)
        (plan,) = controller.plan([f"w{index}"], now=now).cycles
        controller.begin([plan.cycle_id], now=now)
        outcome = CycleOutcome(
            plan.cycle_id, plan.max_draft, plan.max_draft, plan.max_draft // 2, 1 + plan.max_draft // 2,
            (0.8,) * plan.max_draft, 2.0 * plan.max_draft, verify_ms=20.0,
        )  # fmt: skip
        controller.observe([outcome], now=now + 0.03)
        controller.finish(f"w{index}", StopCause.EOS, now=now + 0.03)
    return controller
