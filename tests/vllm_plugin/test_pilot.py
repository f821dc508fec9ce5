"""The books between an engine that schedules in steps and the controller; no vLLM needed."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpilot.control import Controller, ControllerConfig, RequestInfo, StopCause
from specpilot.vllm.pilot import Pass, Pilot, StepTimes

TIMES = StepTimes(wall_ms=10.0, target_ms=7.0, draft_ms=2.0)


def pilot(**config: float) -> Pilot:
    """A pilot with a long deadline."""
    values: dict[str, float] = {"slo_p95_ms": 60_000.0, "max_draft": 6, **config}
    return Pilot(Controller(ControllerConfig(**values)))  # type: ignore[arg-type]


def info(name: str, **changes: object) -> RequestInfo:
    """A request of 40 prompt tokens that wants 24."""
    fields: dict[str, object] = {"prompt_tokens": 40, "max_tokens": 24, "prefill_drafts": False}
    return RequestInfo(name, **{**fields, **changes})  # type: ignore[arg-type]


def prefill(name: str) -> Pass:
    """A prompt's pass."""
    return Pass(name, width=40, context=0, proposed=0, accepted=0, emitted=1, prefill=True, drafting=True)


def verified(name: str, proposed: int, accepted: int) -> Pass:
    """A verification's pass."""
    width = proposed + 1
    return Pass(name, width, 41, proposed, accepted, accepted + 1, prefill=False, drafting=True)


def test_at_two_passes_the_prompt_takes_one_and_one_verification_is_left() -> None:
    flight = pilot(pass_budget=2.0)
    assert flight.admit(info("a"), now=0.0) == ""
    assert flight.plan(["a"], now=0.0) == []
    assert flight.draft_limit("a") == 0
    flight.begin(["a"], now=0.0)
    length = flight.draft_length(["a"], now=0.0)
    assert length > 0
    flight.observe([prefill("a")], TIMES, length, now=0.01)
    assert flight.plan(["a"], now=0.01) == []
    limit = flight.draft_limit("a")
    assert limit is not None
    assert 0 < limit <= length
    flight.drafted("a", length)
    flight.begin(["a"], now=0.02)
    assert flight.draft_length(["a"], now=0.02) == 0  # no pass is left to verify it
    flight.observe([verified("a", limit, 2)], TIMES, 0, now=0.03)
    (stop,) = flight.plan(["a"], now=0.03)
    assert stop.cause is StopCause.BUDGET
    flight.finish("a", stop.cause, now=0.03)
    assert flight.controller.ledger.passes_started == 2
    assert flight.counters.prefill_passes == 1
    assert (flight.counters.drafted, flight.counters.proposed, flight.counters.accepted) == (length, limit, 2)
    assert flight.counters.ended == {"budget": 1}


def test_a_planned_pass_that_the_engine_did_not_schedule_costs_nothing() -> None:
    flight = pilot()
    flight.admit(info("a"), now=0.0)
    flight.plan(["a"], now=0.0)
    flight.unplan(["a"], now=0.0)
    assert flight.draft_limit("a") == 0
    flight.finish("a", StopCause.CANCELLED, now=0.0)
    assert flight.controller.ledger.passes_started == 0
    assert flight.controller.ledger.admitted == 0


def test_a_request_scheduled_out_of_turn_after_its_deadline_has_its_pass_counted_and_ends() -> None:
    flight = pilot()
    for _ in range(8):
        flight.controller.cost.observe_verify(40, 0, 7.0)
    flight.admit(info("a", slo_ms=100.0, arrival_s=0.0), now=0.0)
    flight.begin(["a"], now=0.2)
    assert flight.controller.ledger.passes_started == 1
    (stop,) = flight.overdue(["a"])
    assert stop.cause is StopCause.DEADLINE
    flight.observe([prefill("a")], TIMES, 0, now=0.21)
    flight.finish("a", stop.cause, now=0.21)


def test_requests_that_are_not_steered_are_left_alone() -> None:
    flight = pilot()
    assert flight.draft_limit("x") is None
    assert flight.plan(["x"], now=0.0) == []
    flight.begin(["x"], now=0.0)
    flight.drafted("x", 3)
    flight.observe([prefill("x")], TIMES, 4, now=0.0)
    flight.finish("x", StopCause.EOS, now=0.0)
    assert flight.counters.passes == 0


def test_no_speculation_for_one_request_of_a_batch() -> None:
    flight = pilot(pass_budget=6.0)
    flight.admit(info("plain", max_draft=0), now=0.0)
    flight.admit(info("fast"), now=0.0)
    names = ["plain", "fast"]
    flight.plan(names, now=0.0)
    flight.begin(names, now=0.0)
    assert flight.draft_length(["plain"], now=0.0) == 0
    assert flight.draft_length(names, now=0.0) > 0
    flight.observe([prefill(name) for name in names], TIMES, 4, now=0.01)
    flight.plan(names, now=0.01)
    assert flight.draft_limit("plain") == 0
    assert flight.draft_limit("fast")


def test_a_steps_drafting_is_noted_with_those_it_was_done_for() -> None:
    """Two requests decode, the drafter took 2 ms for both together, all of it steps."""
    flight = pilot(pass_budget=6.0)
    for name in ("a", "b"):
        flight.admit(info(name), now=0.0)
    for step in range(2):
        flight.plan(["a", "b"], now=0.0)
        flight.begin(["a", "b"], now=0.0)
        done = [prefill(name) if step == 0 else verified(name, 2, 1) for name in ("a", "b")]
        flight.observe(done, TIMES, 4, now=0.01)
    assert flight._tracked["a"].draft_ms == pytest.approx(2.0)
    assert flight._tracked["a"].catch_up_tokens == 0


def test_a_pass_without_drafts_still_charges_the_drafters_catching_up() -> None:
    flight = pilot(pass_budget=6.0)
    flight.admit(info("a"), now=0.0)
    flight.plan(["a"], now=0.0)
    flight.begin(["a"], now=0.0)
    flight.observe([prefill("a")], TIMES, 0, now=0.01)
    assert flight._tracked["a"].draft_ms == 0.0
    assert flight._tracked["a"].catch_up_tokens == 40
    assert flight._tracked["a"].catch_up_ms == pytest.approx(2.0)


@settings(max_examples=60, deadline=None)
@given(
    budget=st.sampled_from([1.0, 1.5, 2.0, 2.7, 3.0, 6.0]),
    seed=st.integers(0, 2**16),
    steps=st.integers(1, 40),
)
def test_passes_never_exceed_the_budget_whatever_the_engine_does(
    budget: float, seed: int, steps: int
) -> None:
    """Random arrivals, skipped schedulings, prompt chunks, ends and cancellations; passes counted here."""
    draw = random.Random(seed)
    flight = pilot(pass_budget=budget)
    running: dict[str, int] = {}  # the prompt's passes left
    wanted: dict[str, int] = {}
    used: dict[str, int] = {}
    number = 0
    for now in range(1, steps + 1):
        if draw.random() < 0.7:
            number += 1
            chunks = draw.choice([1, 1, 2])
            name = f"r{number}"
            if flight.admit(info(name, prefill_passes=chunks - 1), now=now / 100) == "":
                running[name], used[name], wanted[name] = chunks, 0, 24
        asked = [name for name in running if draw.random() < 0.9]
        for stop in flight.plan(asked, now=now / 100):
            flight.finish(stop.request_id, stop.cause, now=now / 100)
            del running[stop.request_id]
        scheduled = [name for name in asked if name in running and draw.random() < 0.8]
        flight.unplan([name for name in asked if name not in scheduled], now=now / 100)
        flight.begin(scheduled, now=now / 100)
        for name in scheduled:
            used[name] += 1
        done = []
        for name in scheduled:
            running[name] -= 1
            limit = flight.draft_limit(name) or 0
            accepted = draw.randint(0, limit)
            if running[name] > 0:
                done.append(Pass(name, 20, 0, 0, 0, 0, prefill=True, drafting=False))
            else:
                emitted = min(accepted + 1, wanted[name])
                wanted[name] -= emitted
                done.append(replace(verified(name, limit, accepted), emitted=emitted))
        flight.observe(done, TIMES, 4, now=(now + 1) / 100)
        for name in list(running):
            if not wanted[name]:
                flight.finish(name, StopCause.MAX_TOKENS, now=(now + 1) / 100)
                del running[name]
            elif draw.random() < 0.1:
                cause = draw.choice([StopCause.EOS, StopCause.CANCELLED])
                flight.finish(name, cause, now=(now + 1) / 100)
                del running[name]
        served = sum(count > 0 for count in used.values()) + sum(used[name] == 0 for name in running)
        assert sum(used.values()) <= budget * served + 1e-9
        assert flight.controller.ledger.passes_started == sum(used.values())


def test_a_plan_that_got_no_draft_has_one_made_for_its_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that came due too late for the forecast: without this, no probe would ever have a draft."""
    flight = pilot(pass_budget=6.0)
    assert flight.admit(info("a"), now=0.0) == ""
    flight.plan(["a"], now=0.0)
    flight.begin(["a"], now=0.0)
    flight.observe([prefill("a")], TIMES, 0, now=0.01)
    flight.plan(["a"], now=0.01)
    wanted = flight.draft_limit("a")
    assert wanted
    monkeypatch.setattr(Controller, "expected_draft", lambda *_, **__: 0)
    flight.begin(["a"], now=0.02)
    assert flight.draft_length(["a"], now=0.02) == wanted
    flight.observe([verified("a", 0, 0)], TIMES, wanted, now=0.03)
    flight.plan(["a"], now=0.03)
    flight.drafted("a", wanted)
    flight.begin(["a"], now=0.04)
    assert flight.draft_length(["a"], now=0.04) == 0


def test_what_the_drafter_costs_anyway_is_not_the_drafts_cost() -> None:
    """A step without drafts takes the drafter 1.2 ms, one that drafts four tokens 2.4 ms, for two requests.

    A draft step is taken to cost 0.2 ms. The forward that is made anyway gives the first token, so
    1.2 − 0.2 ms are catching up, half of it each request's, and 1.4 ms are the drafts'.
    """
    flight = pilot(pass_budget=6.0)
    flight.controller.cost._draft.step_ms = 0.2
    for name in ("a", "b"):
        flight.admit(info(name), now=0.0)

    def step(done: list[Pass], draft_ms: float, length: int) -> None:
        flight.plan(["a", "b"], now=0.0)
        flight.begin(["a", "b"], now=0.0)
        flight.observe(done, StepTimes(10.0, 7.0, draft_ms), length, now=0.01)

    step([prefill("a"), prefill("b")], 5.0, 0)
    assert flight._idle_draft_ms == 0.0  # a prompt's pass says nothing of it
    step([verified("a", 0, 0), verified("b", 0, 0)], 1.2, 0)
    assert flight._idle_draft_ms == pytest.approx(1.2)
    assert flight._tracked["a"].catch_up_ms == pytest.approx(0.6)
    flight.controller.cost._draft.step_ms = 0.2
    step([verified("a", 0, 0), verified("b", 0, 0)], 2.4, 4)
    assert flight._tracked["a"].draft_ms == pytest.approx(1.4)
    assert flight._tracked["a"].catch_up_ms == pytest.approx(0.5)
    assert flight._tracked["a"].catch_up_tokens == 1


def without_a_pass(flight: Pilot) -> None:
    """Request "a" has spent its passes, was to have one of the pool's, and the engine took it back."""
    flight.admit(info("a", prefill_passes=1), now=0.0)
    for emitted in (0, 1):
        flight.plan(["a"], now=0.0)
        flight.begin(["a"], now=0.0)
        flight.observe([replace(prefill("a"), emitted=emitted)], TIMES, 0, now=0.01)


def test_who_came_back_out_of_turn_without_a_pass_is_known_before() -> None:
    """Preempted, with its own passes spent: it has to be asked for a pass before the engine takes it up."""
    flight = pilot(pass_budget=2.0)
    assert not flight.spent("a")
    flight.admit(info("b"), now=0.0)
    without_a_pass(flight)
    assert flight.spent("a")
    assert not flight.spent("b")
    (stop,) = flight.plan(["a"], now=0.02)
    assert stop.cause is StopCause.BUDGET
    flight.finish("a", stop.cause, now=0.02)
    assert not flight.spent("a")


def test_a_pass_that_nobody_has_left_is_counted_and_said_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The engine runs it whatever the books say: the others of its step are served, and the request ends."""
    flight = pilot(pass_budget=2.0)
    flight.admit(info("b"), now=0.0)
    without_a_pass(flight)
    flight.plan(["b"], now=0.02)
    flight.begin(["a", "b"], now=0.02)
    assert flight.controller.ledger.passes("b") == (1, 0)
    assert flight.controller.ledger.passes_started == 3
    assert flight.counters.unpaid == 1
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "a: the engine runs a target pass that it has no budget for" in record.getMessage()
    (stop,) = flight.overdue(["a", "b"])
    assert (stop.request_id, stop.cause) == ("a", StopCause.BUDGET)
    flight.observe([verified("a", 0, 0), prefill("b")], TIMES, 0, now=0.03)
    assert flight.counters.passes == 4
    flight.finish("a", stop.cause, now=0.03)
    assert flight.counters.ended == {"budget": 1}
    assert flight.plan(["b"], now=0.03) == []
