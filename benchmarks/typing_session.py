"""Typing sessions against the server: ``python benchmarks/typing_session.py [--json FILE]``.

A typist goes on with documents of the bundled workload. After every word (``--keystrokes``: every letter)
the editor asks for a suggestion, as an editor without a cache of its own would. Half of the suggestions are
liked and typed through word by word; otherwise the document goes on as it was written.

The same sessions are replayed with the continuation cache and KV reuse switched off and on. Answers from the
cache are reported apart: the budget is kept without counting them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.http_client import Client, cores, post, server

from specpilot.demo.workload import bundled_prompts

VARIANTS = {
    "neither": (False, False),
    "KV reuse": (False, True),
    "continuation cache": (True, False),
    "both": (True, True),
}
"""Continuation cache, KV reuse."""
TAKE = 0.5
"""Share of the suggestions that the typist likes and types through."""
MAX_TOKENS = 24


def documents(count: int) -> list[str]:
    """Texts to write: the longest prompts of documents."""
    longest: dict[str, str] = {}
    for prompt in bundled_prompts():
        if prompt.document is not None and len(prompt.text) > len(longest.get(prompt.document, "")):
            longest[prompt.document] = prompt.text
    return list(longest.values())[:count]


async def session(
    client: Client, text: str, name: str, words: int, variant: str, keystrokes: bool
) -> list[dict[str, Any]]:
    """Write ``words`` words of a document; one record per answer."""
    continuation, reuse = VARIANTS[variant]
    rng = random.Random(name)
    written = text.split(" ")
    start = len(written) // 3
    document = " ".join(written[:start])
    own = iter(written[start:])
    plan: list[str] = []  # words of a suggestion that are being typed through
    records = []
    for _ in range(words):
        word = " " + (plan.pop(0) if plan else next(own))
        for typed in range(2, len(word) + 1) if keystrokes else (len(word),):
            body = {
                "prompt": document + word[:typed],
                "max_tokens": MAX_TOKENS,
                "user": f"{variant} {name}",
                "continuation": continuation,
                "session_id": "document" if reuse else None,
            }
            response = await client.send(post(body))
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {response.body!r}")
            answer = response.json
            records.append({"latency_ms": response.latency_ms, **answer["specpilot"]})
        document += word
        suggestion = answer["choices"][0]["text"].replace("\n", " ").split()
        if not plan and suggestion and rng.random() < TAKE:
            plan = suggestion
    return records


def row(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One variant's figures."""
    served = [record for record in records if not record["cached"]]
    latencies = sorted(record["latency_ms"] for record in records)
    decoded = [record["latency_ms"] for record in served]
    cached = [record["latency_ms"] for record in records if record["cached"]]
    return {
        "requests": len(records),
        "cached_share": 1.0 - len(served) / len(records),
        "passes_per_request": sum(record["target_passes"] for record in records) / len(records),
        "passes_per_decoded": sum(record["target_passes"] for record in served) / max(1, len(served)),
        "p50_ms": statistics.median(latencies),
        "p95_ms": latencies[int(0.95 * (len(latencies) - 1))],
        "decoded_p50_ms": statistics.median(decoded) if decoded else None,
        "cached_p50_ms": statistics.median(cached) if cached else None,
        "tokens_per_answer": statistics.fmean(record["verified_tokens"] for record in records),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| reuse | requests | from the cache | passes per request | passes per decoded | p50 ms | p95 ms "
        "| decoded p50 ms | cached p50 ms | tokens |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in rows.items():
        cached = "–" if one["cached_p50_ms"] is None else f"{one['cached_p50_ms']:.1f}"
        lines.append(
            f"| {name} | {one['requests']} | {one['cached_share']:.0%} | {one['passes_per_request']:.2f} "
            f"| {one['passes_per_decoded']:.2f} | {one['p50_ms']:.0f} | {one['p95_ms']:.0f} "
            f"| {one['decoded_p50_ms']:.0f} | {cached} | {one['tokens_per_answer']:.1f} |"
        )
    return "\n".join(lines)


async def measure(port: int, count: int, words: int, keystrokes: bool) -> dict[str, dict[str, Any]]:
    """All variants, document by document in turn, so that a slow second hits all alike."""
    client = Client(port)
    records: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for number, text in enumerate(documents(count)):
        for variant in VARIANTS:
            records[variant] += await session(client, text, f"document {number}", words, variant, keystrokes)
    client.close()
    return {variant: row(found) for variant, found in records.items()}


def main() -> int:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=int, default=6, help="documents that are written")
    parser.add_argument("--words", type=int, default=40, help="words typed in each")
    parser.add_argument("--keystrokes", action="store_true", help="ask after every letter, not every word")
    parser.add_argument("--json", type=Path, default=None, help="file for the results")
    arguments = parser.parse_args()
    at_server, at_client = cores()
    if at_client is not None:
        os.sched_setaffinity(0, {at_client})
    with server(["--slo-p95-ms", "5000"], at_server) as port:
        rows = asyncio.run(measure(port, arguments.documents, arguments.words, arguments.keystrokes))
    print(table(rows))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    passes = sum(one["passes_per_request"] * one["requests"] for one in rows.values())
    decoded = sum((1.0 - one["cached_share"]) * one["requests"] for one in rows.values())
    return int(passes > 2.0 * decoded + 1e-6)


if __name__ == "__main__":
    sys.exit(main())
