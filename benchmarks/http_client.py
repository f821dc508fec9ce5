"""A raw asyncio client for the benchmarks of the server: keep-alive connections, no HTTP library.

A library's own work would be a good part of what is measured; this one writes prepared bytes and reads one
response at a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Response:
    """A response with what it took: ``lag_ms`` from the scheduled to the actual sending, ``latency_ms`` from
    the scheduled sending to the last byte.
    """

    status: int
    body: bytes
    lag_ms: float
    latency_ms: float

    @property
    def json(self) -> dict[str, Any]:
        """The body."""
        found: dict[str, Any] = json.loads(self.body)
        return found


class Client:
    """Keep-alive connections to one server, as many as there are requests under way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def open(self, count: int) -> None:
        """Connections in stock, so that none is made while the clock runs."""
        pairs = [await asyncio.open_connection("127.0.0.1", self._port) for _ in range(count)]
        self._idle += pairs

    async def send(self, data: bytes, at: float | None = None) -> Response:
        """Send prepared bytes at ``at`` (``time.perf_counter``; None: now) and read the response."""
        if at is not None:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
        reader, writer = self._kept() or await asyncio.open_connection("127.0.0.1", self._port)
        sent = time.perf_counter()
        scheduled = sent if at is None else at
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        lower = head.lower()
        found = re.search(rb"content-length: (\d+)", lower)
        body = await reader.readexactly(int(found[1])) if found else await _chunks(reader)
        done = time.perf_counter()
        if b"connection: close" in lower:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return Response(status, body, (sent - scheduled) * 1000.0, (done - scheduled) * 1000.0)

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """An idle connection that the server has not closed."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
        return None

    async def metrics(self) -> dict[str, float]:
        """One scrape: samples by name, labels as written."""
        response = await self.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        found = {}
        for line in response.body.decode().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    def close(self) -> None:
        """Close the idle connections."""
        for _, writer in self._idle:
            writer.close()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


def post(body: Mapping[str, object], path: str = "/v1/completions") -> bytes:
    """A request's bytes."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


@contextmanager
def server(options: Sequence[str] = (), core: int | None = None) -> Iterator[int]:
    """A ``specpilot serve`` on a free port, kept on one core where that can be had; yields the port."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "specpilot.cli.main", "serve", "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r":(\d+)\s*$", line)
        if found is None:
            raise RuntimeError(f"the server did not start: {line}{process.stderr.read()}")
        yield int(found[1])
        process.terminate()
        if process.wait(30.0) != 0:
            raise RuntimeError(f"the server ended with status {process.returncode}")
    finally:
        process.kill()
        process.wait()


def cores() -> tuple[int | None, int | None]:
    """(server's, client's) core; (None, None) where there is only one or they cannot be chosen."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (None, None)
