"""A running server in a thread, on scripted models or on the bundled pair."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn

from specpilot.control import ControllerConfig
from specpilot.models.base import CausalLM, FloatArray, ForwardItem, KVCache
from specpilot.pair import Pair
from specpilot.serving.app import Server
from specpilot.serving.chat import ChatFormat
from specpilot.serving.config import Keys, ServerConfig
from specpilot.serving.http import uvicorn_config
from specpilot.targets.scripted import ScriptedLM

UNHURRIED = ControllerConfig(pass_budget=3.0, slo_p95_ms=120_000.0)
"""Deadlines play no part where nothing is said of them: tests measure no wall-clock time."""
LETTERS = "abcdefghij. "
EOS = 10


class Letters:
    """One token a letter; "." ends a text."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [LETTERS.index(letter) if letter in LETTERS else 0 for letter in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join("" if token == EOS else LETTERS[token] for token in token_ids)


def scripted() -> ScriptedLM:
    """A target in which a word has about a dozen letters."""
    return ScriptedLM(seed=2, eos_token_ids=frozenset({EOS}), context_limit=256)


def scripted_pair(target: CausalLM | None = None, draft: CausalLM | None = None) -> Pair:
    """Scripted models with one token a letter."""
    return Pair(target or scripted(), draft or scripted().variant(noise=0.3), Letters())


class Gated:
    """A model whose passes wait until they are let through, and fail where told to."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)
        """Released at each pass."""
        self.fail_next = 0
        self.passes = 0

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def context_limit(self) -> int:
        return self._model.context_limit

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._model.eos_token_ids

    def new_cache(self) -> KVCache:
        return self._model.new_cache()

    def forward(self, batch: Sequence[ForwardItem]) -> list[FloatArray]:
        self.passes += 1
        self.entered.release()
        self.open.wait(30.0)
        if self.fail_next:
            self.fail_next -= 1
            raise RuntimeError("planted")
        return self._model.forward(batch)

    def wait_for_pass(self) -> None:
        """Until a pass has started."""
        assert self.entered.acquire(timeout=30.0)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def error(self) -> dict[str, Any]:
        """What stands under ``error``, complete as OpenAI writes it."""
        found: dict[str, Any] = self.json["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found


class Running:
    """A server that listens on a free port."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = 0
        self._http = uvicorn.Server(uvicorn_config(server, server.config))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._http.serve()), daemon=True)

    def start(self) -> None:
        self._thread.start()
        for _ in range(2000):
            if self._http.started:
                self.port = self._http.servers[0].sockets[0].getsockname()[1]
                return
            time.sleep(0.005)
        raise RuntimeError("the server did not start")

    def post(
        self, body: Mapping[str, object] | bytes, path: str = "/v1/completions", **headers: str
    ) -> Reply:
        """Send a body as it is and read the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.fetch("POST", path, data, {"Content-Type": "application/json", **headers})

    def fetch(
        self, method: str, path: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One HTTP request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30.0)
        try:
            connection.request(method, path, data, dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until the server has come that far."""
        for _ in range(3000):
            if condition():
                return
            time.sleep(0.01)
        raise AssertionError("it did not come to that within 30 s")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._http.should_exit = True
        self._thread.join(20.0)
        assert not self._thread.is_alive()


Serve = Callable[..., Running]


@contextlib.contextmanager
def running(
    pair: Pair,
    config: ServerConfig | None = None,
    promises: ControllerConfig = UNHURRIED,
    keys: Keys | None = None,
    chat: ChatFormat | None = None,
) -> Iterator[Running]:
    """Serve ``pair`` until the block ends."""
    config = config or ServerConfig(port=0, measure=False)
    run = Running(Server(pair, config, promises=promises, keys=keys, chat=chat))
    run.start()
    try:
        yield run
    finally:
        run.stop()
