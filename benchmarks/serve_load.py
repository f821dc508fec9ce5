"""The server under load: ``python benchmarks/serve_load.py [--seconds S] [--serve OPTIONS] [--json FILE]``.

Starts ``specpilot serve`` on one core and sends from another: first a closed loop for the capacity, then an
open loop at 0.1 (for the overhead), 0.4, 0.9, 1.5 and 5 times that capacity, or at fixed ``--rates``, where
two versions are to be compared under the same arrivals. Arrivals are bursty: gamma
inter-arrival times with a coefficient of variation of 2, about what public traces of LLM services show
(Azure's of 2023, BurstGPT). The prompts are those of ``specpilot demo``: cold ones up to about 400 tokens,
longer ones in sessions. The continuation cache is declined, so that every answer costs passes.

Latency counts from the scheduled arrival. ``attained`` is over all arrivals: a refusal, an empty answer and
a failure are misses. ``tokens`` is per answer; ``in time, per arrival`` counts those of answers within the
SLO; ``complete`` is the share of arrivals whose suggestion ran to its own end. Exit status 1 if a promise
is broken: p95 of the admitted above the SLO, passes above the budget at any scrape, books that do not
balance, refusals slower than 20 ms at the median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.http_client import Client, Response, cores, post, server

from specpilot.demo.workload import bundled_prompts, make_arrivals

LEVELS = (0.1, 0.4, 0.9, 1.5, 5.0)
SLO_MS = 250.0
BUDGET = 2
VARIATION = 2.0
"""Coefficient of variation of the inter-arrival times; 1 would be Poisson."""
REFUSAL_MS = 20.0
MAX_TOKENS = 24
SCRAPE_S = 0.5


def prepared(count: int, seed: int) -> list[bytes]:
    """Requests of the bundled workload, in its order."""
    return [
        post(
            {
                "prompt": arrival.prompt.text,
                "max_tokens": MAX_TOKENS,
                "session_id": arrival.session_id,
                "user": f"seed-{seed}",
                "continuation": False,
            }
        )
        for arrival in make_arrivals(bundled_prompts(), count, seed)
    ]


async def capacity(client: Client, seconds: float, outstanding: int = 4) -> float:
    """Requests per second that the server finishes when some are always waiting."""
    requests = iter(prepared(5000, seed=1))
    end = time.perf_counter() + seconds
    done = 0

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < end:
            response = await client.send(next(requests))
            done += response.status == 200
            if response.status != 200:
                await asyncio.sleep(0.02)

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(outstanding)))
    return done / (time.perf_counter() - start)


async def level(client: Client, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """An open loop at ``rate`` requests per second."""
    rng = random.Random(seed)
    shape = 1.0 / VARIATION**2
    at, times = 0.0, []
    while (at := at + rng.gammavariate(shape, 1.0 / (rate * shape))) < seconds:
        times.append(at)
    requests = prepared(max(1, len(times)), seed)
    before = await client.metrics()
    start = time.perf_counter() + 0.1
    violations = [0, 0]
    watching = asyncio.create_task(watch(client, violations))
    sending = [client.send(data, start + at) for data, at in zip(requests, times, strict=False)]
    responses = await asyncio.gather(*sending)
    watching.cancel()
    after = await client.metrics()
    row = account(responses, before, after)
    row.update(rate=rate, seconds=seconds, scrapes=violations[0], budget_violations=violations[1])
    return row


async def watch(client: Client, seen: list[int]) -> None:
    """Scrapes now and then, and counts scrapes that break the budget or the books."""
    while True:
        metrics = await client.metrics()
        seen[0] += 1
        seen[1] += broken(metrics)
        await asyncio.sleep(SCRAPE_S)


def broken(metrics: dict[str, float]) -> bool:
    """Whether a scrape shows more passes than the budget, or requests that are lost."""
    passes, admitted = metrics["specpilot_target_passes_total"], metrics["specpilot_admitted_requests_total"]
    ended = sum(outcome(metrics, name) for name in ("finished", "cancelled", "failed"))
    return (
        passes > BUDGET * metrics["specpilot_charged_requests"]
        or passes > BUDGET * admitted
        or admitted != ended + metrics["specpilot_queue_depth"]
    )


def outcome(metrics: dict[str, float], name: str) -> float:
    """Requests with an outcome."""
    return metrics[f'specpilot_requests_total{{outcome="{name}"}}']


def account(
    responses: Sequence[Response], before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    """One level's row."""
    answers = [(response, response.json) for response in responses if response.status == 200]
    refused = [response.latency_ms for response in responses if response.status == 429]
    latencies = sorted(response.latency_ms for response, _ in answers)
    met = sum(
        bool(answer["choices"][0]["text"]) and response.latency_ms <= SLO_MS for response, answer in answers
    )
    overheads = [
        response.latency_ms - response.lag_ms - answer["specpilot"]["engine_ms"] - waited(answer)
        for response, answer in answers
        if "engine_ms" in answer["specpilot"]
    ]
    lags = sorted(response.lag_ms for response in responses)
    delta = {name: after[name] - before.get(name, 0.0) for name in after}
    admitted = delta["specpilot_admitted_requests_total"]
    ends = {name: delta[f'specpilot_requests_total{{outcome="{name}"}}'] for name in OUTCOMES}
    return {
        "arrivals": len(responses),
        "admitted": admitted,
        **ends,
        "statuses": dict(Counter(str(response.status) for response in responses)),
        "empty": sum(not answer["choices"][0]["text"] for _, answer in answers),
        "p50_ms": quantile(latencies, 0.5),
        "p95_ms": quantile(latencies, 0.95),
        "max_ms": latencies[-1] if latencies else None,
        "attained": met / max(1, len(responses)),
        "attained_admitted": met / max(1, len(answers)),
        "passes_per_admitted": delta["specpilot_target_passes_total"] / max(1.0, admitted),
        "requests_per_physical_pass": delta["specpilot_target_passes_total"]
        / max(1.0, delta["specpilot_physical_passes_total"]),
        "tokens_per_arrival": sum(
            answer["specpilot"]["verified_tokens"]
            for response, answer in answers
            if response.latency_ms <= SLO_MS
        )
        / max(1, len(responses)),
        "completed": sum(answer["specpilot"]["stop_cause"] in COMPLETE for _, answer in answers)
        / max(1, len(responses)),
        "tokens_per_answer": statistics.fmean(
            [answer["specpilot"]["verified_tokens"] for _, answer in answers] or [0.0]
        ),
        "refusal_p50_ms": quantile(sorted(refused), 0.5),
        "refusal_p95_ms": quantile(sorted(refused), 0.95),
        "overhead_p50_ms": quantile(sorted(overheads), 0.5),
        "lag_p50_ms": quantile(lags, 0.5),
        "lag_p95_ms": quantile(lags, 0.95),
        "balanced": admitted == ends["finished"] + ends["cancelled"] + ends["failed"],
    }


OUTCOMES = ("finished", "cancelled", "failed", "refused")
COMPLETE = ("eos", "stop", "max_tokens")


def waited(answer: dict[str, Any]) -> float:
    """Milliseconds in which the engine was busy with others: that is queueing, not overhead."""
    found: float = answer["specpilot"]["e2e_ms"] - answer["specpilot"]["engine_ms"]
    return found if found > 1.0 else 0.0


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that ``share`` of them do not exceed."""
    if not ordered:
        return None
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)]


def problems(row: dict[str, Any]) -> list[str]:
    """Broken promises of a level."""
    found = []
    if row["p95_ms"] is not None and row["p95_ms"] > SLO_MS:
        found.append(f"p95 {row['p95_ms']:.0f} ms")
    if row["budget_violations"]:
        found.append(f"{row['budget_violations']} scrapes broke the budget or the books")
    if not row["balanced"]:
        found.append("admitted ≠ finished + cancelled + failed")
    if row["refusal_p50_ms"] is not None and row["refusal_p50_ms"] > REFUSAL_MS:
        found.append(f"refusals took {row['refusal_p50_ms']:.0f} ms")
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = (
        "load",
        "arrivals",
        "admitted",
        "p50 ms",
        "p95 ms",
        "attained, all",
        "attained, admitted",
        "passes",
        "per pass",
        "tokens",
        "in time, per arrival",
        "complete",
        "refusal ms",
        "overhead ms",
        "send lag p95 ms",
    )
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in rows:
        cells = (
            row["name"],
            f"{row['arrivals']}",
            f"{row['admitted']:.0f}",
            shown(row["p50_ms"]),
            shown(row["p95_ms"]),
            f"{row['attained']:.1%}",
            f"{row['attained_admitted']:.1%}",
            f"{row['passes_per_admitted']:.2f}",
            f"{row['requests_per_physical_pass']:.2f}",
            f"{row['tokens_per_answer']:.1f}",
            f"{row['tokens_per_arrival']:.1f}",
            f"{row['completed']:.1%}",
            shown(row["refusal_p50_ms"], 1),
            shown(row["overhead_p50_ms"], 1),
            shown(row["lag_p95_ms"], 1),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(value: float | None, digits: int = 0) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def rates_of(text: str) -> list[float]:
    """Requests per second from a list such as 5,10."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0.0 < rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of rates > 0; write requests/s, e.g. 5,10")
    return rates


def steps(levels: Sequence[float], rates: Sequence[float], capacity_per_s: float) -> list[tuple[str, float]]:
    """What is sent, one after the other: a name, and requests per second."""
    multiples = [(f"{load:g}×", load * capacity_per_s) for load in levels]
    return [*multiples, *((f"{rate:g}/s", rate) for rate in rates)]


async def measure(
    port: int, seconds: float, levels: Sequence[float], rates: Sequence[float]
) -> dict[str, Any]:
    """Capacity, then its multiples ``levels``, then the ``rates``."""
    client = Client(port)
    await client.open(32)
    await capacity(client, min(2.0, seconds))  # the policy learns, caches fill
    found = await capacity(client, seconds / 2.0)
    print(f"capacity: {found:.1f} requests/s", file=sys.stderr)
    rows = []
    for number, (name, rate) in enumerate(steps(levels, rates, found)):
        sent = await level(client, rate, seconds, seed=100 + number)
        row = {"name": name, "load": rate / found, **sent}
        rows.append(row)
        print(table([row]).splitlines()[-1], *problems(row), file=sys.stderr)
    client.close()
    return {"capacity_per_s": found, "slo_ms": SLO_MS, "variation": VARIATION, "levels": rows}


def main() -> int:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=24.0, help="length of each level")
    parser.add_argument("--serve", default="", help="further options of the server, in one argument")
    parser.add_argument(
        "--levels", type=float, nargs="+", help="loads ÷ capacity; not sent if only rates are given"
    )
    parser.add_argument("--rates", type=rates_of, default=[], help="loads in requests/s: R1,R2,…")
    parser.add_argument("--json", type=Path, default=None, help="file for the results")
    arguments = parser.parse_args()
    at_server, at_client = cores()
    if at_client is not None:
        os.sched_setaffinity(0, {at_client})
    levels = arguments.levels or (() if arguments.rates else LEVELS)
    with server(shlex.split(arguments.serve), at_server) as port:
        result = asyncio.run(measure(port, arguments.seconds, levels, arguments.rates))
    print(f"Capacity {result['capacity_per_s']:.1f} requests/s.\n")
    print(table(result["levels"]))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(problems(row) for row in result["levels"]))


if __name__ == "__main__":
    sys.exit(main())
