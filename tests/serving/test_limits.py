"""Limits: tokens, bodies, headers, overload; every refusal is a clear 4xx and harms nobody."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from live_server import UNHURRIED, Gated, Running, Serve, scripted, scripted_pair

from specpilot.control import ControllerConfig
from specpilot.control.types import Admission, RequestInfo
from specpilot.decoding.types import Block
from specpilot.serving.app import Server
from specpilot.serving.config import Keys, ServerConfig
from specpilot.serving.http import MAX_HEADER_BYTES, listen
from specpilot.targets.base import VerifyItem

KEYS = Keys({"SPECPILOT_API_KEYS": "ann:secret-a, ben:secret-b"})


def raw(run: Running, data: bytes) -> bytes:
    """Send bytes, read until the server closes."""
    with socket.create_connection(("127.0.0.1", run.port), timeout=30.0) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def head(length: int | None = None, extra: str = "") -> bytes:
    declared = "" if length is None else f"Content-Length: {length}\r\n"
    return (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{declared}{extra}\r\n"
    ).encode()


def test_a_token_is_asked_for_where_there_are_any(serve: Serve) -> None:
    run = serve(scripted_pair(), keys=KEYS)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret-a"}):
        reply = run.post({"prompt": "ab"}, **headers)
        assert reply.status == 401
        assert reply.error["code"] == "invalid_api_key"
        assert reply.headers["www-authenticate"] == "Bearer"
    assert run.post({"prompt": "ab"}, Authorization="Bearer secret-a").status == 200
    assert run.fetch("GET", "/v1/models").status == 401
    assert run.fetch("GET", "/health").status == 200


def test_tenants_do_not_see_each_others_text(serve: Serve) -> None:
    run = serve(scripted_pair(), keys=KEYS)

    def cached(token: str, **fields: Any) -> bool:
        reply = run.post({"prompt": "abc", "whole_words": False, **fields}, Authorization=f"Bearer {token}")
        found: bool = reply.json["specpilot"]["cached"]
        return found

    assert not cached("secret-a")
    assert cached("secret-a")
    assert not cached("secret-b")
    # A tenant's users and sessions are apart as well.
    assert not cached("secret-a", user="u")
    assert not cached("secret-a", session_id="s")


def test_malformed_keys_are_refused_without_repeating_them() -> None:
    with pytest.raises(ValueError, match=r"SPECPILOT_API_KEYS\[1\]") as caught:
        Keys({"SPECPILOT_API_KEYS": "ann:x,hidden"})
    assert "hidden" not in str(caught.value)


def test_a_prompt_limit_beyond_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_prompt_tokens: 256 is not in 1…255"):
        Server(scripted_pair(), ServerConfig(max_prompt_tokens=256))
    Server(scripted_pair(), ServerConfig(max_prompt_tokens=255))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (",", r"SPECPILOT_API_KEYS\[0\]: it is not name:token"),
        ("ann:x,", r"SPECPILOT_API_KEYS\[1\]: it is not name:token"),
        ("ann:x,ben:x", r"SPECPILOT_API_KEYS\[1\]: another entry has the same token"),
    ],
)
def test_keys_that_were_left_out_do_not_open_the_server(keys: str, message: str) -> None:
    """What "$ANN,$BEN" becomes where neither is set."""
    with pytest.raises(ValueError, match=message):
        Keys({"SPECPILOT_API_KEYS": keys})
    assert not Keys({"SPECPILOT_API_KEYS": ""}).required


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\x00\xff\xfe binary \x80",
        b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": {"a": "b"}}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_malformed_bodies(bundled: Running, body: bytes, path: str) -> None:
    reply = bundled.post(body, path)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a"',
        b'{"prompt": "\xff"}',
        b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
    ids=["cut", "no UTF-8", "long number", "deep"],
)
def test_a_body_that_cannot_be_read_is_said_to_be_so(serve: Serve, body: bytes) -> None:
    reply = serve(scripted_pair()).post(body)
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")
    assert "JSON" in reply.error["message"]


def test_large_bodies_are_not_read(serve: Serve) -> None:
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False, max_body_bytes=1000))
    declared = raw(run, head(1001))
    assert declared.startswith(b"HTTP/1.1 413")
    chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    sent = raw(run, head(extra="Transfer-Encoding: chunked\r\n") + chunk + chunk)
    assert sent.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in sent
    assert run.post({"prompt": "ab"}).status == 200


def test_slow_bodies_and_headers_time_out(serve: Serve) -> None:
    config = ServerConfig(port=0, measure=False, body_timeout_s=0.4, header_timeout_s=0.4, keep_alive_s=1.0)
    run = serve(scripted_pair(), config)
    assert raw(run, head(10) + b"{").startswith(b"HTTP/1.1 408")
    assert raw(run, b"POST /v1/comp").startswith(b"HTTP/1.1 408")
    assert raw(run, b"") == b""
    assert run.post({"prompt": "ab"}).status == 200


def test_headers_without_end_are_cut_off(serve: Serve) -> None:
    run = serve(scripted_pair())
    flood = b"GET / HTTP/1.1\r\nX: " + b"x" * (MAX_HEADER_BYTES + 1)
    assert raw(run, flood).startswith(b"HTTP/1.1 431")


def test_a_prompt_beyond_the_servers_limit(serve: Serve) -> None:
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False, max_prompt_tokens=4))
    assert run.post({"prompt": "abcd"}).status == 200
    reply = run.post({"prompt": "abcde"})
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")


def test_too_many_in_flight(serve: Serve) -> None:
    target = Gated(scripted())
    run = serve(scripted_pair(target), ServerConfig(port=0, measure=False, max_outstanding=1))
    target.open.clear()
    service = run.server.service
    with socket.create_connection(("127.0.0.1", run.port)) as first:
        body = json.dumps({"prompt": "ab"}).encode()
        first.sendall(head(len(body)) + body)
        target.wait_for_pass()
        reply = run.post({"prompt": "cd"})
        assert (reply.status, reply.error["code"]) == (429, "too_many_requests")
        assert int(reply.headers["retry-after"]) >= 1
        target.open.set()
        assert first.recv(100).startswith(b"HTTP/1.1 200")
    run.wait_until(lambda: service.engine.outstanding == 0)
    assert run.post({"prompt": "cd"}).status == 200


def test_a_pass_may_hold_as_many_as_the_server_was_told(serve: Serve) -> None:
    """A target with a lower limit of its own would fail everybody in a wider pass."""
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False, max_batch=100))
    target = run.server.engine._executor._target
    requests = [(str(number), [1, 2, number % 10]) for number in range(100)]
    for name, prompt in requests:
        target.open(name, prompt)
    assert len(target.verify([VerifyItem(name, prompt, Block.chain(())) for name, prompt in requests])) == 100


def test_what_cannot_meet_its_deadline_is_refused_at_once(serve: Serve) -> None:
    run = serve(scripted_pair(), promises=ControllerConfig(slo_p95_ms=60_000.0))
    for prompt in "abcdefgh":  # until the costs are known
        assert run.post({"prompt": prompt}).status == 200
    reply = run.post({"prompt": "ab", "slo_ms": 1e-3})
    assert (reply.status, reply.error["code"]) == (429, "deadline")
    assert int(reply.headers["retry-after"]) >= 1
    assert run.post({"prompt": "hgf"}).status == 200


def test_answers_are_sent_at_once() -> None:
    """Without TCP as its protocol a socket keeps Nagle's algorithm, and answers wait 40 ms."""
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_the_engine_is_done_before_the_slo(serve: Serve) -> None:
    """The SLO is the client's: the engine's own deadline leaves room for the answer's way."""
    run = serve(scripted_pair(), promises=ControllerConfig(slo_p95_ms=60_000.0))
    seen: list[float | None] = []
    admit = run.server.controller.admit

    def noted(request: RequestInfo, *, now: float) -> Admission:
        seen.append(request.slo_ms)
        return admit(request, now=now)

    run.server.controller.admit = noted  # type: ignore[method-assign]
    for slo_ms in (None, 1000.0, 20.0):
        run.post({"prompt": "ab", "slo_ms": slo_ms, "continuation": False})
    assert seen == [59_995.0, 995.0, 18.0]


def test_a_port_that_is_taken(serve: Serve) -> None:
    run = serve(scripted_pair(), promises=UNHURRIED)
    with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{run.port}"):
        listen("127.0.0.1", run.port)
    with pytest.raises(ValueError, match="port: 70000"):
        ServerConfig(port=70000)
