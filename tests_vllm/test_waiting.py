"""Who gets a pass or ends before vLLM can take it up from the waiting queue; no engine is started."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from tests_vllm import steered
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from specpilot.control import Controller, ControllerConfig, RequestInfo, StopCause
from specpilot.vllm.pilot import Pass, Pilot, StepTimes
from specpilot.vllm.scheduler import PilotScheduler


def waiting(name: str, status: RequestStatus = RequestStatus.WAITING) -> SimpleNamespace:
    return SimpleNamespace(request_id=name, status=status, num_tokens=40)


def test_what_was_preempted_without_a_pass_is_asked_for_wherever_it_waits() -> None:
    """Others stand before it that fill a step; a cached prefix could let vLLM go on to it all the same."""
    pilot = Pilot(Controller(ControllerConfig(pass_budget=2.0, slo_p95_ms=1e9, max_draft=steered.MAX_DRAFT)))
    for name in ("rich", "poor", "new"):
        assert pilot.admit(RequestInfo(name, 40, 24, prefill_drafts=False), now=0.0) == ""
    for name in ("rich", "poor", "poor"):
        pilot.plan([name], now=0.0)
        pilot.begin([name], now=0.0)
        done = Pass(name, 40, 0, 0, 0, 1, prefill=True, drafting=True)
        pilot.observe([done], StepTimes(10.0, 7.0, 2.0), 0, now=0.01)
    gone = RequestStatus.PREEMPTED
    fake: Any = SimpleNamespace(
        max_num_active_reqs=8,
        running=[],
        max_num_scheduled_tokens=40,
        waiting=deque(
            [waiting("new"), waiting("rich", gone), waiting("poor", gone), waiting("unknown", gone)]
        ),
        kv_holding_waiting=deque(),
        pilot=pilot,
    )
    names = PilotScheduler._next_waiting(fake)
    assert names == ["new", "poor"]
    (stop,) = pilot.plan(names, now=0.02)
    assert (stop.request_id, stop.cause) == ("poor", StopCause.BUDGET)
    # The queues that are looked through are vLLM's.
    assert {"waiting", "kv_holding_waiting"} <= set(Scheduler.__init__.__code__.co_names)
