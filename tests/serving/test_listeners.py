"""Whoever listens to one request in the engine's thread is nobody else's trouble."""

from __future__ import annotations

import threading

import pytest

from specpilot.control import Controller, ControllerConfig
from specpilot.control.types import StopCause
from specpilot.decoding.clock import RealClock
from specpilot.decoding.request import DecodingRequest
from specpilot.serving.engine import Engine, Job
from specpilot.targets.model import ModelTarget
from specpilot.targets.scripted import ScriptedLM
from specpilot.testing import plain_greedy


class Heard:
    """Hears its request out, or raises."""

    def __init__(self, fail_at: str = "") -> None:
        self.fail_at = fail_at
        self.cause: StopCause | None = None
        self.over = threading.Event()

    def progressed(self, text: str, tokens: int) -> None:
        if self.fail_at == "progressed":
            raise RuntimeError("planted")

    def ended(self, job: Job) -> None:
        self.cause = None if job.summary is None else job.summary.cause
        self.over.set()
        if self.fail_at == "ended":
            raise RuntimeError("planted")


@pytest.mark.parametrize("fail_at", ["progressed", "ended"])
def test_a_listener_that_raises_ends_no_request(fail_at: str, caplog: pytest.LogCaptureFixture) -> None:
    target = ScriptedLM(seed=1)
    controller = Controller(ControllerConfig(pass_budget=64.0, slo_p95_ms=60_000.0))
    engine = Engine(controller, ModelTarget(target), None, RealClock(), max_batch=3)
    listeners = [Heard(), Heard(fail_at), Heard()]
    # Those in the same pass as the listener's request end with it, before it and after it.
    requests = [DecodingRequest(f"r{index}", [index, 3], 3 + index) for index in range(3)]
    with engine.lock:
        for request, listener in zip(requests, listeners, strict=True):
            assert engine.submit(request, request.info(), listener).admitted
    engine.start()
    assert all(listener.over.wait(30.0) for listener in listeners)
    assert engine.stop(10.0)
    assert [listener.cause for listener in listeners] == [StopCause.MAX_TOKENS] * 3
    for request in requests:
        assert request.output == plain_greedy(target, request.prompt, request.max_tokens)
    assert controller.counters.finished == {StopCause.MAX_TOKENS: 3}
    assert "planted" in caplog.text
