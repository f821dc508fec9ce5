"""Odd HTTP: every answer is definite and in OpenAI's shape, whatever a client, a proxy or a library sends."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator

import pytest
from live_server import Gated, Reply, Running, Serve, running, scripted, scripted_pair

from specpilot.decoding.clock import RealClock
from specpilot.serving.config import Keys, ServerConfig

BODY = json.dumps({"prompt": "ab", "max_tokens": 4, "continuation": False}).encode()


def exchange(run: Running, *pieces: bytes, stop_sending: bool = False) -> bytes:
    """Send all of the bytes, in these pieces, then read until the server closes."""
    with socket.create_connection(("127.0.0.1", run.port), timeout=30.0) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place, piece in enumerate(pieces):
            if place:
                time.sleep(0.05)  # so that the server sees two
            connection.sendall(piece)
        if stop_sending:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def request(method: str, path: str, body: bytes = b"", *lines: str) -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: x", *lines]
    if body:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def reply(answer: bytes) -> Reply:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Reply(int(status.split()[1]), headers, body)


@pytest.fixture(scope="module")
def letters() -> Iterator[Running]:
    with running(scripted_pair(), ServerConfig(port=0, measure=False, body_timeout_s=2.0)) as run:
        yield run


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",  # TLS on a plain port
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"CONNECT foo:443 HTTP/1.1\r\nHost: foo\r\n\r\n",
    ],
    ids=["tls", "path", "two lengths", "length and chunks", "bad chunk", "connect"],
)
def test_what_is_no_http_gets_a_400_in_the_usual_shape(letters: Running, data: bytes) -> None:
    answer = reply(exchange(letters, data))
    assert answer.status == 400
    assert answer.error["code"] == "invalid_http"
    assert answer.headers["connection"] == "close"


def test_time_outs_and_long_headers_have_the_usual_shape(serve: Serve) -> None:
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False, header_timeout_s=0.2))
    slow = reply(exchange(run, b"POST /v1/comp"))
    assert (slow.status, slow.error["code"]) == (408, "header_timeout")
    flood = reply(exchange(run, b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000))
    assert (flood.status, flood.error["code"]) == (431, "headers_too_large")


def test_head_is_get_without_a_body(letters: Running) -> None:
    for path in ("/", "/health", "/v1/models", "/metrics", "/nothing"):
        head, get = (exchange(letters, request(m, path, b"", "Connection: close")) for m in ("HEAD", "GET"))
        assert reply(head).status == reply(get).status
        assert reply(head).body == b""
        assert reply(head).headers["content-type"] == reply(get).headers["content-type"]


def test_unknown_paths_and_methods_say_what_they_are(letters: Running) -> None:
    unknown = letters.post(BODY, "/v1/embeddings")
    assert (unknown.status, unknown.error["code"]) == (404, "unknown_url")
    assert "POST /v1/embeddings" in unknown.error["message"]
    # No redirects: a client would send its token and body to wherever the Host header points.
    assert letters.post(BODY, "/v1/completions/").status == 404
    for method, path, allowed in (
        ("OPTIONS", "/v1/completions", "POST"),
        ("DELETE", "/v1/models/specpilot", "GET"),
        ("POST", "/admin/mode", "GET, PUT"),
        ("TRACE", "/v1/completions", "POST"),
    ):
        refused = letters.fetch(method, path)
        assert (refused.status, refused.error["code"]) == (405, "method_not_allowed")
        assert refused.headers["allow"] == allowed


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Encoding": "gzip"},
    ],
    ids=str,
)
def test_other_kinds_of_bodies_are_named(letters: Running, headers: dict[str, str]) -> None:
    body = gzip.compress(BODY) if "Content-Encoding" in headers else BODY
    answer = letters.post(body, **headers)
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")
    assert next(iter(headers)) in answer.error["message"]


def test_an_empty_body_is_called_a_body(letters: Running) -> None:
    answer = letters.post(b"")
    assert answer.status == 400
    assert answer.error["message"].startswith("body: ")
    assert answer.error["param"] is None


def test_a_client_that_sends_too_much_reads_the_answer(letters: Running) -> None:
    """All of a large body is sent before anything is read: the 413 must still be there."""
    large = b'{"prompt": "' + b"a" * 6_000_000 + b'"}'
    for data in (
        request("POST", "/v1/completions", large),
        request("POST", "/v1/completions", b"", "Transfer-Encoding: chunked")
        + b"%x\r\n" % len(large)
        + large
        + b"\r\n0\r\n\r\n",
    ):
        answer = reply(exchange(letters, data))
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")


def test_a_large_body_without_a_token_gets_its_401(serve: Serve) -> None:
    run = serve(scripted_pair(), keys=Keys({"SPECPILOT_API_KEYS": "ann:a"}))
    answer = reply(exchange(run, request("POST", "/v1/completions", b" " * 3_000_000)))
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


def test_an_upgrade_that_is_not_taken_keeps_its_body(letters: Running) -> None:
    """Java's HTTP client offers h2c with its first request."""
    lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB")
    # The connection goes on as it was.
    last = request("GET", "/health", b"", "Connection: close")
    answer = exchange(letters, request("POST", "/v1/completions", BODY, *lines) + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b'"stop_cause":"max_tokens"' in answer
    websocket = request("GET", "/health", b"", "Connection: Upgrade, close", "Upgrade: websocket")
    assert reply(exchange(letters, websocket)).status == 200


def test_an_upgrade_that_comes_in_pieces_keeps_its_body(letters: Running) -> None:
    """Wherever the request is cut; a name cut in two is put together again."""
    lines = ("Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB", "Connection: Upgrade, HTTP2-Settings, close")
    whole = request("POST", "/v1/completions", BODY, *lines)
    name = whole.index(b"Upgrade: h2c")
    body = whole.index(b"\r\n\r\n")
    for cut in (5, name - 2, name, name + 3, name + 9, body, body + 2, body + 4, body + 9):
        assert reply(exchange(letters, whole[:cut], whole[cut:])).status == 200, cut


def test_chunks_pipelines_and_expect(letters: Running) -> None:
    chunked = request(
        "POST", "/v1/completions", b"", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:8], BODY[8:]))
    plain = request("POST", "/v1/completions", BODY)
    last = request("GET", "/health", b"", "Connection: close")
    answer = exchange(letters, chunked + pieces + b"0\r\n\r\n" + plain + plain + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.count(b'"stop_cause":"max_tokens"') == 3
    expecting = exchange(
        letters, request("POST", "/v1/completions", BODY, "Expect: 100-continue", "Connection: close")
    )
    assert expecting.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_latency_counts_from_the_end_of_the_body(serve: Serve) -> None:
    """A body that comes late in one piece: the time its client took is not the server's."""
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False))
    body = json.dumps({"prompt": "ab", "max_tokens": 4, "slo_ms": 5000, "continuation": False}).encode()
    whole = request("POST", "/v1/completions", body, "Connection: close")
    clock = run.server.engine._clock
    assert isinstance(clock, RealClock)
    with socket.create_connection(("127.0.0.1", run.port), timeout=30.0) as connection:
        connection.sendall(whole[: -len(body)])
        run.wait_until(lambda: bool(run._http.server_state.tasks))
        clock._zero -= 3600.0  # an hour goes by
        connection.sendall(body)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert reply(answer).status == 200
    assert reply(answer).json["specpilot"]["e2e_ms"] < 3_600_000


def test_two_tokens_are_no_token(serve: Serve) -> None:
    run = serve(scripted_pair(), keys=Keys({"SPECPILOT_API_KEYS": "ann:a,ben:b"}))
    one, two = "Authorization: Bearer a", "Authorization: Bearer b"
    for lines, status in (((one,), 200), ((one, two), 401), ((one, one), 401)):
        answer = exchange(run, request("POST", "/v1/completions", BODY, *lines, "Connection: close"))
        assert reply(answer).status == status


def test_a_page_from_elsewhere_is_not_this_machine(letters: Running) -> None:
    """DNS rebinding: a browser here, led to this address by another site's name, may not administer."""
    assert letters.fetch("GET", "/admin/mode").status == 200
    assert letters.fetch("GET", "/admin/mode", headers={"Host": "localhost:8000"}).status == 200
    assert letters.fetch("GET", "/admin/mode", headers={"Host": "[::1]:8000"}).status == 200
    assert letters.fetch("GET", "/admin/mode", headers={"Host": "evil.example"}).status == 403


def test_more_connections_than_there_may_be(serve: Serve) -> None:
    """Refused in the usual shape and counted; the operator's pages still answer."""
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False, max_connections=2))
    idle = [socket.create_connection(("127.0.0.1", run.port)) for _ in range(2)]
    try:
        run.wait_until(lambda: run.post(BODY).status == 503)
        answer = run.post(BODY)
        assert answer.error["code"] == "too_many_connections"
        assert int(answer.headers["retry-after"]) >= 1
        assert run.fetch("GET", "/health").status == 200
        metrics = run.fetch("GET", "/metrics").body
        assert b'specpilot_http_responses_total{code="503"}' in metrics
    finally:
        for connection in idle:
            connection.close()
    run.wait_until(lambda: run.post(BODY).status == 200)


def test_a_client_that_pipelines_and_leaves_is_noticed(serve: Serve) -> None:
    """Both the request that runs and the one behind it: nothing is decoded for nobody."""
    target = Gated(scripted())
    run = serve(scripted_pair(target), ServerConfig(port=0, measure=False))
    target.open.clear()
    connection = socket.create_connection(("127.0.0.1", run.port))
    body = json.dumps({"prompt": "ab", "max_tokens": 200, "continuation": False}).encode()
    connection.sendall(request("POST", "/v1/completions", body) * 2)
    target.wait_for_pass()
    connection.close()
    run.wait_until(lambda: all(active.cancelled for active in run.server.engine._loop._active.values()))
    target.open.set()
    run.wait_until(lambda: run.server.engine.outstanding == 0)
    counters = run.server.controller.counters
    assert {cause.value: count for cause, count in counters.finished.items() if count} == {"cancelled": 1}
