"""Clients that leave, engines that fail, servers that end: every admitted request ends definitely."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live_server import Gated, Letters, Running, Serve, scripted, scripted_pair

from specpilot.control import ControllerConfig
from specpilot.control.types import RequestSummary, StopCause
from specpilot.serving.config import ServerConfig
from specpilot.testing import plain_greedy


def ask(run: Running, **fields: Any) -> socket.socket:
    """Send a request and do not wait for its answer."""
    body = json.dumps(fields).encode()
    connection = socket.create_connection(("127.0.0.1", run.port), timeout=30.0)
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return connection


def ends(run: Running) -> Counter[str]:
    with run.server.engine.lock:
        return Counter({cause.value: n for cause, n in run.server.controller.counters.finished.items()})


def at_rest(run: Running) -> bool:
    return run.server.engine.outstanding == 0


def test_a_client_that_leaves_frees_its_place(serve: Serve) -> None:
    """With and without a stream, running and waiting."""
    target = Gated(scripted())
    run = serve(scripted_pair(target), ServerConfig(port=0, measure=False, max_batch=1))
    for stream in (False, True):
        target.open.clear()
        running = ask(run, prompt="ab", stream=stream, continuation=False)
        target.wait_for_pass()
        waiting = ask(run, prompt="cd", stream=stream, continuation=False)
        run.wait_until(lambda: run.server.engine.outstanding == 2)
        before = target.passes
        waiting.close()
        running.close()
        # The flags are set while the pass still runs.
        run.wait_until(lambda: all(active.cancelled for active in run.server.engine._loop._active.values()))
        target.open.set()
        run.wait_until(lambda: at_rest(run))
        assert target.passes == before
    assert ends(run)["cancelled"] == 4
    with run.server.engine.lock:
        ledger = run.server.controller.ledger
        assert (ledger.admitted, ledger.passes_started) == (2, 2)  # the waiting ones took their deposit back
    assert run.post({"prompt": "ab"}).status == 200


def test_a_target_that_fails_once_is_an_error_for_those_in_the_pass_alone(serve: Serve) -> None:
    target = Gated(scripted())
    run = serve(scripted_pair(target), ServerConfig(port=0, measure=False))
    target.fail_next = 1
    for stream in (False, True):
        reply = run.post({"prompt": "ab", "continuation": False, "stream": stream})
        if stream:
            assert reply.status == 200
            assert b'"error"' not in reply.body
        else:
            assert (reply.status, reply.error["code"]) == (500, "engine_error")
            assert "planted" not in reply.error["message"]
    target.fail_next = 1
    reply = run.post({"prompt": "ab", "continuation": False, "stream": True})
    assert b'"code":"engine_error"' in reply.body
    assert ends(run)["error"] == 2


def test_a_controller_that_fails_leaves_no_client_without_an_answer(serve: Serve) -> None:
    run = serve(scripted_pair())
    controller = run.server.controller
    for name in ("plan", "observe", "finish"):
        whole = getattr(controller, name)

        def fails(*args: Any, _whole: Any = whole, _name: str = name, **kwargs: Any) -> Any:
            setattr(controller, _name, _whole)
            raise RuntimeError("planted")

        setattr(controller, name, fails)
        assert run.post({"prompt": "ab", "continuation": False}).status == 500, name
        assert run.post({"prompt": "ab", "continuation": False}).status == 200, name


def test_a_controller_that_cannot_end_requests_leaks_none(serve: Serve) -> None:
    """Neither their places nor their caches are held for ever."""
    target = Gated(scripted())
    run = serve(scripted_pair(target), ServerConfig(port=0, measure=False))
    controller, executor = run.server.controller, run.server.engine._executor
    finish, failing = controller.finish, True

    def broken(request_id: str, cause: StopCause, *, now: float) -> RequestSummary:
        if failing:
            raise RuntimeError("planted")
        return finish(request_id, cause, now=now)

    controller.finish = broken  # type: ignore[method-assign]
    target.open.clear()
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(run.post, {"prompt": "ab", "continuation": False}) for _ in range(3)]
        run.wait_until(lambda: run.server.engine.outstanding == 3)
        target.open.set()
        assert [one.result().status for one in waiting] == [500] * 3
    run.wait_until(lambda: at_rest(run))
    failing = False
    assert run.post({"prompt": "ab"}).status == 200
    run.wait_until(lambda: at_rest(run))
    assert not executor._requests
    assert not executor._target._caches._held  # type: ignore[attr-defined]


def test_an_engine_that_hangs_is_given_up(serve: Serve) -> None:
    target = Gated(scripted())
    run = serve(scripted_pair(target), ServerConfig(port=0, measure=False, request_timeout_s=0.1))
    target.open.clear()
    reply = run.post({"prompt": "ab", "slo_ms": 500})
    assert (reply.status, reply.error["code"]) == (504, "timeout")
    assert "no answer within 0.6 s" in reply.error["message"]
    assert b'"code":"timeout"' in run.post({"prompt": "ab", "slo_ms": 500, "stream": True}).body
    target.open.set()
    run.wait_until(lambda: at_rest(run))
    assert run.post({"prompt": "ab"}).status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("slo_ms", [None, 600_000])
def test_nobody_is_given_up_before_their_deadline(serve: Serve, stream: bool, slo_ms: int | None) -> None:
    """Their own, or the server's (two minutes here)."""
    target = Gated(scripted())
    run = serve(scripted_pair(target), ServerConfig(port=0, measure=False, request_timeout_s=0.1))
    target.open.clear()
    with ThreadPoolExecutor(1) as threads:
        patient = threads.submit(run.post, {"prompt": "ab", "slo_ms": slo_ms, "stream": stream})
        target.wait_for_pass()
        assert run.post({"prompt": "cd", "slo_ms": 500}).status == 504  # came later, and has less time
        target.open.set()
        reply = patient.result()
    assert reply.status == 200
    assert b'"error"' not in reply.body


def test_health_tells_of_a_target_that_hangs(serve: Serve) -> None:
    """503 while the pass hangs, those who wait get a definite end, and 200 when it has come back."""
    target = Gated(scripted())
    config = ServerConfig(port=0, measure=False, request_timeout_s=0.1, hang_timeout_s=0.1)
    run = serve(scripted_pair(target), config)
    assert run.fetch("GET", "/health").status == 200
    target.open.clear()
    with ThreadPoolExecutor(2) as threads:
        bodies = [{"prompt": prompt, "slo_ms": 500} for prompt in ("ab", "cd")]
        waiting = [threads.submit(run.post, body) for body in bodies]
        target.wait_for_pass()
        run.wait_until(lambda: run.fetch("GET", "/health").status == 503)
        error = run.fetch("GET", "/health").error
        assert error["code"] == "engine_hung"
        assert "a cycle has been running" in error["message"]
        assert [one.result().status for one in waiting] == [504, 504]
    target.open.set()
    run.wait_until(lambda: at_rest(run))
    run.wait_until(lambda: run.fetch("GET", "/health").status == 200)


def test_a_target_that_hangs_gets_no_new_requests(serve: Serve) -> None:
    """Refused at once, in the usual shape, and not admitted; taken again when it is back."""
    target = Gated(scripted())
    config = ServerConfig(port=0, measure=False, hang_timeout_s=0.1)
    run = serve(scripted_pair(target), config)
    known = run.post({"prompt": "ij", "whole_words": False}).json["choices"][0]["text"]
    target.wait_for_pass()
    target.open.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(run.post, {"prompt": "ab"})
        target.wait_for_pass()
        run.wait_until(lambda: run.fetch("GET", "/health").status == 503)
        arrivals = run.server.controller.counters.arrivals
        for stream in (False, True):
            reply = run.post({"prompt": "cd", "stream": stream})
            assert (reply.status, reply.error["code"]) == (503, "engine_hung")
            assert int(reply.headers["retry-after"]) >= 1
        assert run.server.controller.counters.arrivals == arrivals
        assert run.server.engine.outstanding == 1
        # What needs no target pass is served all the same.
        again = run.post({"prompt": "ij", "whole_words": False})
        assert again.json["choices"][0]["text"] == known
        metrics = run.fetch("GET", "/metrics").body
        assert b'specpilot_turned_away_requests_total{reason="engine_hung"} 2.0' in metrics
        target.open.set()
        assert waiting.result().status == 200
    run.wait_until(lambda: run.fetch("GET", "/health").status == 200)
    assert run.post({"prompt": "cd"}).status == 200
    assert ends(run)["error"] == 0


def test_who_comes_while_a_cycle_outlasts_the_slo_is_refused(serve: Serve) -> None:
    """Long before it counts as hung: whoever comes now would miss the deadline."""
    target = Gated(scripted())
    run = serve(scripted_pair(target), promises=ControllerConfig(pass_budget=3.0, slo_p95_ms=50.0))
    target.open.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(run.post, {"prompt": "ab", "slo_ms": 60_000.0})
        target.wait_for_pass()
        run.wait_until(lambda: run.server.engine.cycle_s > 0.05)
        reply = run.post({"prompt": "cd"})
        assert (reply.status, reply.error["code"]) == (429, "deadline")
        assert "retry-after" in reply.headers
        target.open.set()
        assert waiting.result().status == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_has_died_takes_nothing(serve: Serve) -> None:
    run = serve(scripted_pair())

    def ends_the_thread() -> bool:
        raise SystemExit

    run.server.engine._loop.step = ends_the_thread  # type: ignore[method-assign]
    assert run.post({"prompt": "ab"}).status == 500
    run.wait_until(lambda: not run.server.engine.alive)
    reply = run.post({"prompt": "ab"})
    assert (reply.status, reply.error["code"]) == (503, "unavailable")
    assert run.fetch("GET", "/health").status == 503


def test_who_still_waits_when_the_server_must_end_is_told(serve: Serve) -> None:
    """SIGTERM while the target hangs: a definite status, not a bare 500 or a closed connection."""
    target = Gated(scripted())
    run = serve(scripted_pair(target), ServerConfig(port=0, measure=False, drain_timeout_s=0.5))
    target.open.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(run.post, {"prompt": "ab"})
        target.wait_for_pass()
        run.stop()
        reply = waiting.result()
    assert (reply.status, reply.error["code"]) == (503, "shutting_down")
    assert not run.server.drained
    target.open.set()


def test_a_draft_that_hangs_costs_no_answer(serve: Serve) -> None:
    draft = Gated(scripted())
    run = serve(scripted_pair(draft=draft), ServerConfig(port=0, measure=False, draft_timeout_ms=20.0))
    wanted = Letters().decode(plain_greedy(scripted(), Letters().encode("ab"), 24))
    draft.open.clear()
    reply = run.post({"prompt": "ab", "continuation": False, "whole_words": False})
    assert wanted.startswith(reply.json["choices"][0]["text"])
    assert reply.json["specpilot"]["accepted_draft_tokens"] == 0
    draft.open.set()


def test_many_threads_and_leavers_keep_the_books(serve: Serve) -> None:
    """200 requests, a third of whose clients leave: all are accounted for, every text is a prefix."""
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False, max_outstanding=400))
    texts: list[tuple[str, str]] = []

    def one(number: int) -> None:
        prompt = "abcdefghij"[number % 10] + "abcdefghij"[number // 10 % 10]
        if number % 3 == 0:
            ask(run, prompt=prompt, continuation=False, stream=number % 2 == 0).close()
            return
        reply = run.post({"prompt": prompt, "continuation": False, "max_tokens": 12})
        assert reply.status == 200
        texts.append((prompt, reply.json["choices"][0]["text"]))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(200)))
    run.wait_until(lambda: at_rest(run))
    counters = run.server.controller.counters
    # A client that left before its request was read is no arrival.
    assert len(texts) <= counters.arrivals <= 200
    assert sum(counters.finished.values()) == counters.arrivals - counters.refused
    ledger = run.server.controller.ledger
    assert ledger.passes_started <= 3 * ledger.admitted
    for prompt, text in texts:
        whole = Letters().decode(plain_greedy(scripted(), Letters().encode(prompt), 12))
        assert whole.startswith(text), prompt


def test_sigterm_drains() -> None:
    """The command itself: what is in flight is answered, then the process ends with status 0."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "specpilot.cli.main", "serve", "--port", "0", "--slo-p95-ms", "60000"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            assert found, line
            body = json.dumps({"prompt": "You can apply", "stream": True}).encode()
            with socket.create_connection(("127.0.0.1", int(found[1])), timeout=30.0) as connection:
                connection.sendall(
                    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                    + f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                answer = connection.recv(1)  # it is under way
                process.send_signal(signal.SIGTERM)
                while part := connection.recv(65536):
                    answer += part
            assert b"data: [DONE]" in answer
            assert b'"error"' not in answer
            assert process.wait(30.0) == 0
        finally:
            process.kill()
