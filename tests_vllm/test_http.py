"""vLLM's own HTTP server with the plugin: concurrent clients, some of which leave; metrics and trace."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests_vllm import steered

from specpilot.trace import EndRecord, read_trace

BUDGET = 12
CLIENTS = 48
START_S = 300.0


@dataclass(frozen=True)
class Server:
    """A running server and the trace that it writes."""

    url: str
    trace: Path
    process: subprocess.Popen[bytes]

    def metrics(self) -> dict[str, float]:
        """The plugin's metrics by name, and stops by cause."""
        found = {}
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith("specpilot_"):
                name, _, rest = line.partition("{")
                labels, _, value = rest.rpartition("} ")
                assert 'model_name="pair"' in labels
                assert 'engine="0"' in labels
                cause = labels.partition('cause="')[2].partition('"')[0]
                found[f"{name}/{cause}" if cause else name] = float(value)
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``vllm serve`` with the bundled pair in processes of its own; stopped at the end."""
    folder = tmp_path_factory.mktemp("http")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trace = folder / "trace.jsonl"
    promises = {"pass_budget": BUDGET, "slo_p95_ms": 120_000, "trace": str(trace)}
    options: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "model": steered.bundled("target"),
        "served-model-name": "pair",
        "dtype": "float32",
        "max-model-len": 512,
        "max-num-seqs": 8,
        "max-num-batched-tokens": 320,
        "block-size": 32,
        "shutdown-timeout": 30,
        "speculative-config": json.dumps(steered.speculative("draft_model", steered.bundled("draft"))),
        "additional-config": json.dumps({"specpilot": promises}),
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", *words]
    environ = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        running = Server(f"http://127.0.0.1:{port}", trace, process)
        _wait_for(running, folder / "log")
        yield running
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(server: Server, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(1.0)
    pytest.fail("the server did not start:\n" + log.read_text(encoding="utf-8", errors="replace")[-4000:])


async def _ask(client: httpx.AsyncClient, number: int, prompt: str) -> dict[str, Any] | None:
    """One client: every third has speculation off, some leave; what the others get."""
    body: dict[str, Any] = {
        "model": "pair",
        "prompt": prompt,
        "max_tokens": steered.MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    if number % 3 == 0:
        body["vllm_xargs"] = {"specpilot_max_draft": 0}
    if number % 8 == 5:  # reads a token and closes the connection
        body |= {"stream": True, "max_tokens": 400}
        body["vllm_xargs"] = {"specpilot_max_draft": 0}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for _ in answer.aiter_lines():
                break
        return None
    if number % 8 == 7:  # gives up before there is an answer
        try:
            await asyncio.wait_for(client.post("/v1/completions", json=body), timeout=0.03)
        except TimeoutError:
            return None
        return None
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


async def _all(url: str, prompts: list[str]) -> list[dict[str, Any] | None]:
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=120.0, limits=limits) as client:
        return list(await asyncio.gather(*(_ask(client, n, prompt) for n, prompt in enumerate(prompts))))


async def _give_up(url: str, prompts: list[str]) -> None:
    """So many clients more that give up before there is an answer: most of them while they wait."""
    async with httpx.AsyncClient(base_url=url, timeout=120.0) as client:
        await asyncio.gather(*(_ask(client, 7, prompt) for prompt in prompts))


def _after_the_last_cancellation(
    server: Server, prompts: list[str]
) -> tuple[dict[str, float], dict[str, float], int, int]:
    """Metrics, stops by cause, and how many requests more were answered, and given up, to get there.

    Cancellations are reported with the next step, and one more request brings it. A disconnect can take
    the server longer than that to notice, so there may have to be several. It may also notice none in time:
    those that left had their answers, or had not come in yet. Then others leave until one is counted.
    """
    more = left = 0
    while True:
        more += 1
        last = httpx.post(
            f"{server.url}/v1/completions", json={"model": "pair", "prompt": "Dear", "max_tokens": 4}
        )
        assert last.json()["choices"][0]["finish_reason"] in ("length", "stop")
        seen = server.metrics()
        stops = {name: count for name, count in seen.items() if name.startswith("specpilot_stops_total/")}
        counted = "specpilot_stops_total/cancelled" in stops
        if more == 50 or (counted and seen["specpilot_admitted_requests_total"] == sum(stops.values())):
            return seen, stops, more, left
        if not counted:
            asyncio.run(_give_up(server.url, prompts))
            left += len(prompts)


def test_ledger_metrics_and_trace_agree_under_clients_that_come_and_go(
    server: Server, greedy: dict[str, list[list[int]]], tmp_path: Path
) -> None:
    whole = greedy[steered.bundled("target")]
    prompts = steered.prompts()[:CLIENTS]
    choices = asyncio.run(_all(server.url, prompts))
    answered = [(choice, own) for choice, own in zip(choices, whole, strict=False) if choice]
    assert len(answered) == CLIENTS - 2 * (CLIENTS // 8)
    for choice, own in answered:
        assert choice["token_ids"] == own[: len(choice["token_ids"])]
        if len(choice["token_ids"]) < len(own):
            assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "specpilot:budget")

    bad = httpx.post(
        f"{server.url}/v1/completions",
        json={"model": "pair", "prompt": "Dear", "max_tokens": 4, "vllm_xargs": {"specpilot_slow": 1}},
    )
    assert "no such argument" in json.dumps(bad.json())
    seen, stops, more, left = _after_the_last_cancellation(server, prompts[:16])
    assert seen["specpilot_admitted_requests_total"] == sum(stops.values())
    assert len(answered) + more <= sum(stops.values()) <= CLIENTS + more + left
    assert stops.get("specpilot_stops_total/cancelled", 0) >= 1, stops
    assert seen["specpilot_target_passes_total"] <= BUDGET * seen["specpilot_charged_requests"]
    assert seen["specpilot_pass_budget"] == BUDGET
    assert seen["specpilot_draft_tokens_total"] > seen["specpilot_accepted_tokens_total"] > 0
    assert "vllm:spec_decode_num_accepted_tokens_total" in httpx.get(f"{server.url}/metrics").text

    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60.0)
    records = list(read_trace(server.trace))
    ends = [record for record in records if isinstance(record, EndRecord)]
    assert sum(record.target_passes for record in ends) == seen["specpilot_target_passes_total"]
    cli = [sys.executable, "-m", "specpilot.cli.main"]
    for words, statuses in (
        (["trace", "validate", str(server.trace), "--replay"], (0,)),
        (["diagnose", str(server.trace), "--json", str(tmp_path / "found.json")], (0, 1)),
    ):
        done = subprocess.run([*cli, *words], capture_output=True, text=True, check=False)
        assert done.returncode in statuses, done.stdout + done.stderr
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
