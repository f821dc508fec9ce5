"""The server's memory over many requests: ``python benchmarks/serve_memory.py [--requests N] [--json FILE]``.

Starts ``specpilot serve`` with small bounds for what it keeps, so that they are reached early, and sends
requests of every kind that could leave something behind: documents that grow in sessions, cold prompts that
never come again, streams, clients that leave before or amid an answer, bodies that are refused. Resident
memory and everything that is bounded are read from /metrics as it goes.

Exit status 1 if memory grows by more than 3 % after the first third, if a bound is exceeded, if the
books do not balance, or if something is still in flight at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.http_client import Client, cores, post, server
from benchmarks.serve_load import outcome

from specpilot.demo.workload import bundled_prompts

KV_MB = 12
CONTINUATION_TOKENS = 40_000
OPTIONS = ("--cache-mb", str(KV_MB), "--continuation-tokens", str(CONTINUATION_TOKENS))
OUTSTANDING = 4
GROWTH = 1.03
"""Most of what memory may be at the end, as a multiple of what it is after the first third."""
MIX = {"session": 0.35, "cold": 0.25, "stream": 0.2, "leaves amid": 0.08, "leaves at once": 0.07, "bad": 0.05}


class Writer:
    """Makes requests, the same ones for the same seed."""

    def __init__(self, seed: int, max_tokens: int) -> None:
        self._rng = random.Random(seed)
        self._max_tokens = max_tokens
        self._texts = [prompt.text.split(" ") for prompt in bundled_prompts()]
        self._documents: dict[str, tuple[list[str], int]] = {}
        self._number = 0

    def next(self) -> tuple[str, bytes]:
        """A kind and its bytes."""
        kind = self._rng.choices(list(MIX), list(MIX.values()))[0]
        if kind == "session" or (kind == "stream" and self._rng.random() < 0.5):
            fields = self._typed()
        else:
            fields = self._cold()
        if kind in ("stream", "leaves amid"):
            fields["stream"] = True
        if kind == "bad":
            fields = self._rng.choice([{"prompt": 7}, {**fields, "n": 3}, {**fields, "max_tokens": 10**6}])
        return kind, post({"max_tokens": self._max_tokens, **fields})

    def _cold(self) -> dict[str, Any]:
        """A prompt that never came before: its words in another order."""
        words = self._rng.choice(self._texts)[:60]
        return {"prompt": " ".join(self._rng.sample(words, len(words))), "user": self._user()}

    def _typed(self) -> dict[str, Any]:
        """The next words of one of a few documents; a finished one gives way to another, in a new session."""
        if len(self._documents) < 6:
            self._number += 1
            self._documents[f"document-{self._number}"] = self._rng.choice(self._texts), 6
        name = self._rng.choice(sorted(self._documents))
        words, place = self._documents.pop(name)
        if place < min(len(words), 150):
            self._documents[name] = words, place + self._rng.randint(1, 4)
        return {"prompt": " ".join(words[:place]), "session_id": name, "user": "writer"}

    def _user(self) -> str:
        return f"user-{self._rng.randrange(1_000_000)}"


async def leave(port: int, data: bytes, *, amid: bool) -> None:
    """Send a request and go, at once or when the answer has begun."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await writer.drain()
    if amid:
        await reader.read(1)
    writer.close()


async def measure(port: int, requests: int, max_tokens: int) -> list[dict[str, float]]:
    """Send everything; a row at each tenth."""
    client = Client(port)
    writer = Writer(1, max_tokens)
    statuses: Counter[str] = Counter()
    rows: list[dict[str, float]] = []
    sent = 0

    async def worker(upto: int) -> None:
        nonlocal sent
        while sent < upto:
            sent += 1
            kind, data = writer.next()
            if kind.startswith("leaves"):
                await leave(port, data, amid=kind == "leaves amid")
                statuses[kind] += 1
            else:
                statuses[str((await client.send(data)).status)] += 1

    for tenth in range(1, 11):
        await asyncio.gather(*(worker(requests * tenth // 10) for _ in range(OUTSTANDING)))
        rows.append(row(sent, await settled(client)))
        print(line(rows[-1]), file=sys.stderr, flush=True)
    client.close()
    print(dict(sorted(statuses.items())), file=sys.stderr)
    return rows


async def settled(client: Client) -> dict[str, float]:
    """A scrape when nothing is in flight (or, after ten seconds, whatever is)."""
    for _ in range(100):
        metrics = await client.metrics()
        if not metrics["specpilot_queue_depth"]:
            return metrics
        await asyncio.sleep(0.1)
    return metrics


def row(sent: int, metrics: dict[str, float]) -> dict[str, float]:
    """What a scrape says of memory and the books."""
    ended = sum(outcome(metrics, name) for name in ("finished", "cancelled", "failed"))
    evicted = sum(value for name, value in metrics.items() if name.startswith("specpilot_kv_evictions_total"))
    return {
        "requests": sent,
        "resident_mib": metrics["process_resident_memory_bytes"] / 2**20,
        "target_kv_mib": metrics['specpilot_kv_bytes{model="target"}'] / 2**20,
        "draft_kv_mib": metrics['specpilot_kv_bytes{model="draft"}'] / 2**20,
        "kv_caches": metrics['specpilot_kv_caches{model="target"}'],
        "kv_evictions": evicted,
        "continuation_tokens": metrics["specpilot_continuation_cache_tokens"],
        "continuation_entries": metrics["specpilot_continuation_cache_entries"],
        "open_files": metrics["process_open_fds"],
        "admitted": metrics["specpilot_admitted_requests_total"],
        "cancelled": outcome(metrics, "cancelled"),
        "in_flight": metrics["specpilot_queue_depth"],
        "lost": metrics["specpilot_admitted_requests_total"] - ended - metrics["specpilot_queue_depth"],
    }


def problems(rows: list[dict[str, float]]) -> list[str]:
    """What is not as it should be."""
    found = []
    warm, last = rows[len(rows) // 3 - 1], rows[-1]
    if last["resident_mib"] > GROWTH * warm["resident_mib"]:
        found.append(f"memory grew from {warm['resident_mib']:.0f} to {last['resident_mib']:.0f} MiB")
    for at in rows:
        if max(at["target_kv_mib"], at["draft_kv_mib"]) > KV_MB:
            found.append(f"KV caches exceed {KV_MB} MiB after {at['requests']:.0f} requests")
        if at["continuation_tokens"] > CONTINUATION_TOKENS:
            found.append(f"the continuation cache exceeds its bound after {at['requests']:.0f} requests")
        if at["in_flight"] or at["lost"]:
            found.append(f"{at['in_flight']:.0f} in flight, {at['lost']:.0f} lost")
    return found


COLUMNS = {
    "requests": "requests",
    "resident MiB": "resident_mib",
    "KV, target MiB": "target_kv_mib",
    "KV, draft MiB": "draft_kv_mib",
    "KV caches": "kv_caches",
    "evicted": "kv_evictions",
    "continuation tokens": "continuation_tokens",
    "outputs": "continuation_entries",
    "open files": "open_files",
    "admitted": "admitted",
    "cancelled": "cancelled",
}


def line(at: dict[str, float]) -> str:
    """A row as Markdown."""
    cells = (f"{at[key]:.1f}" if key.endswith("mib") else f"{at[key]:.0f}" for key in COLUMNS.values())
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--max-tokens", type=int, default=3, help="of each request")
    parser.add_argument("--json", type=Path, default=None, help="file for the results")
    arguments = parser.parse_args()
    at_server, at_client = cores()
    if at_client is not None:
        os.sched_setaffinity(0, {at_client})
    with server(OPTIONS, at_server) as port:
        rows = asyncio.run(measure(port, arguments.requests, arguments.max_tokens))
    print("| " + " | ".join(COLUMNS) + " |\n| " + " | ".join("---" for _ in COLUMNS) + " |")
    print("\n".join(map(line, rows)))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    found = problems(rows)
    for problem in found:
        print(problem, file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
