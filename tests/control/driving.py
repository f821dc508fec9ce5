"""Serves made-up requests with a controller, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from specpilot.control import Controller, CycleOutcome, CyclePlan, RequestInfo, StopCause
from specpilot.control.types import AcceptanceName

Engine = Callable[[CyclePlan, int], tuple[CycleOutcome, float]]
"""From a plan and how many cycles ran before to what the cycle did, and how long it took in ms.

It need not know how much its request still wants.
"""

WANTED = 24


def serve(
    controller: Controller, cycles: int, engine: Engine, acceptance: AcceptanceName = "greedy"
) -> list[CyclePlan]:
    """Requests of 40 prompt tokens that want 24, without a pause; the plans, ``cycles`` at least."""
    now, served = 0.0, 0
    plans: list[CyclePlan] = []
    while len(plans) < cycles:
        served += 1
        name = f"r{served}"
        controller.admit(RequestInfo(name, 40, WANTED, slo_ms=1e9, acceptance=acceptance), now=now)
        left = WANTED
        while True:
            answer = controller.plan([name], now=now)
            if answer.stops:
                controller.finish(name, answer.stops[0].cause, now=now)
                break
            plan = answer.cycles[0]
            controller.begin([plan.cycle_id], now=now)
            outcome, took_ms = engine(plan, len(plans))
            plans.append(plan)
            now += took_ms / 1000.0
            outcome = cut(outcome, left)
            left -= outcome.emitted
            controller.observe([outcome], now=now)
            if not left:
                controller.finish(name, StopCause.MAX_TOKENS, now=now)
                break
    return plans


def cut(outcome: CycleOutcome, left: int) -> CycleOutcome:
    """The cycle of a request that wants ``left`` tokens more: the output ends there."""
    if outcome.emitted < left:
        return outcome
    return replace(outcome, emitted=left, ended=outcome.ended or StopCause.MAX_TOKENS)
