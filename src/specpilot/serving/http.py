"""uvicorn, with what it does not do by itself: bounds for headers."""

from __future__ import annotations

import asyncio
import gc
import re
import signal
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from specpilot.serving.app import Server
from specpilot.serving.config import ServerConfig
from specpilot.serving.errors import ApiError

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter from the others: with Python's 5 ms an answer would wait that
long whenever the engine's thread computes something in Python."""
BACKLOG = 512
MAX_HEADER_BYTES = 64 << 10


_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


def protocol(
    header_timeout_s: float, idle_timeout_s: float, max_connections: int, now: Callable[[], float]
) -> type[asyncio.Protocol]:
    """A protocol for uvicorn that bounds a request's headers in time (408) and size (431).

    It also notes in a request's ``state`` when all of it had come in (``received_s``, on the clock ``now``:
    in a burst the application sees it a good while later, and latency is promised from its arrival; the time
    that a client takes for its body is not the server's) and whether there are more connections than there
    may be (``crowded``). What is answered here has OpenAI's shape too.
    """

    class Bounded(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _header_bytes = 0
        _line = b""  # a header that has not come in whole
        _received_s = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._cycles: list[RequestResponseCycle] = []
            # Browsers and pools open connections in stock: one that says nothing is closed without a word.
            self._deadline = self.loop.call_later(idle_timeout_s, transport.close)

        def data_received(self, data: bytes) -> None:
            self._received_s = now()
            size = len(data)
            if self._idle:
                data, self._line = _without_upgrade(self._line + data)
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:  # a request's headers are complete
                self._stop_waiting()
            elif self._idle and not self.transport.is_closing():
                if not self._header_bytes:
                    self._stop_waiting()
                    self._deadline = self.loop.call_later(header_timeout_s, self._too_slow)
                self._header_bytes += size
                if self._header_bytes > MAX_HEADER_BYTES:
                    self._refuse(
                        431, f"the headers exceed {MAX_HEADER_BYTES} bytes; send fewer", "headers_too_large"
                    )

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
            self._cycles.append(self.cycle)
            self.cycle.scope["state"]["crowded"] = len(self.connections) > max_connections

        def on_message_complete(self) -> None:
            self.cycle.scope["state"]["received_s"] = self._received_s
            super().on_message_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)
            # uvicorn tells only the last one of several pipelined requests.
            for cycle in self._cycles:
                if not cycle.response_complete:
                    cycle.disconnected = True
                    cycle.message_event.set()

        def send_400_response(self, msg: str) -> None:
            self._stop_waiting()
            self._answer(400, f"{msg} It is no HTTP/1.1 that this server understands.", "invalid_http")

        @property
        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _stop_waiting(self) -> None:
            self._header_bytes = 0
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            self._refuse(
                408, f"the headers did not arrive within {header_timeout_s:g} s; try again", "header_timeout"
            )

        def _refuse(self, status: int, message: str, code: str) -> None:
            self._stop_waiting()
            if self._idle and not self.transport.is_closing():
                self._answer(status, message, code)

        def _answer(self, status: int, message: str, code: str) -> None:
            body = ApiError(status, message, code=code).response().body
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nconnection: close\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return Bounded


def _without_upgrade(data: bytes) -> tuple[bytes, bytes]:
    """A piece of a request's headers, its offer of another protocol (Java's client: h2c) left out, and what
    has to wait for the next piece: a last line that may be such an offer.

    The offer is never taken, and the parser would stop behind the headers and lose the body.
    """
    end = data.find(b"\r\n\r\n")
    last = data.rfind(b"\r\n") if end < 0 else -1
    data, rest = (data, b"") if last < 0 else (data[:last], data[last:])
    found = _UPGRADE.search(data, 0, len(data) if end < 0 else end)
    return data if found is None else data[: found.start()] + data[found.end() :], rest


def uvicorn_config(server: Server, config: ServerConfig) -> uvicorn.Config:
    """How uvicorn runs the application."""
    options: dict[str, Any] = {
        "http": protocol(
            config.header_timeout_s, config.keep_alive_s, config.max_connections, server.engine.now
        ),
        "ws": "none",
        "lifespan": "on",
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "timeout_keep_alive": int(config.keep_alive_s),
        "timeout_graceful_shutdown": int(config.drain_timeout_s) or 1,
        "backlog": BACKLOG,
    }
    return uvicorn.Config(server.app, host=config.host, port=config.port, **options)


class HttpServer(uvicorn.Server):
    """Says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then print the address."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"specpilot serves on http://{shown}:{port}", file=sys.stderr, flush=True)


def listen(host: str, port: int) -> socket.socket:
    """A socket to accept connections on.

    Raises:
        ValueError: if it cannot be had.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # The protocol must be said: asyncio switches Nagle's delay (40 ms with a client that delays its
        # acknowledgements) off only for sockets that are known to be TCP, and connections inherit it.
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"host, port: cannot listen on {host}:{port} ({reason}); choose others") from None


def serve(server: Server) -> bool:
    """Serve until SIGTERM or SIGINT, then drain; False if the engine hung and requests were given up.

    Raises:
        ValueError: if the address cannot be had.
    """
    listener = listen(server.config.host, server.config.port)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Modules and models stay: the collector need not look through them while requests wait.
    gc.collect()
    gc.freeze()
    # uvicorn raises the signal again when it is done: here it has been obeyed by then.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        HttpServer(uvicorn_config(server, server.config)).run([listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()
    return server.drained
