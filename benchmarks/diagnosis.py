"""Fault injection: every cause put into the engine for real, and what `diagnose` makes of the traces.

    python benchmarks/diagnosis.py --write docs/diagnosis.md

Each run draws a healthy engine (models, costs, load, policy, temperature), puts one fault of drawn strength
into it, serves requests, writes the trace and diagnoses the file. Rules were tuned on the development seeds;
the published matrix is of the evaluation seeds, whose engines and strengths tuning never saw.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.faulty_engine import Setup, run

from specpilot.diagnosis import CAUSES, diagnose, read_columns
from specpilot.trace import write_trace

SEEDS = {"development": 10_000, "evaluation": 900_000}
HEALTHY = "healthy"
BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"


def healthy(seed: int) -> Setup:
    """An engine without a fault."""
    rng = random.Random(seed)
    verify = rng.uniform(8.0, 35.0)
    tokens = rng.choice((12, 16, 24))
    policy = rng.choice(("specpilot", "specpilot", "specpilot", "static-3", "static-4", "static-5"))
    return Setup(
        seed=seed,
        requests=rng.choice((160, 220, 300)),
        temperature=rng.choice((0.0, 0.0, 0.6, 0.8, 1.0)),
        policy=policy,
        # A fixed length is healthy only where it is about the right one.
        draft_noise=rng.uniform(0.35, 1.2) if policy == "specpilot" else rng.uniform(0.8, 1.3),
        sharpness=rng.uniform(4.0, 9.0),
        spread=rng.uniform(0.0, 0.35),
        decay=rng.choice((0.0, 0.0, 0.0, rng.uniform(0.0, 0.08))),
        verify_ms=verify,
        verify_token_ms=verify * rng.uniform(0.003, 0.04),
        draft_ms=verify * rng.uniform(0.03, 0.12),
        host_ms=verify * rng.uniform(0.01, 0.06),
        noise=rng.uniform(0.02, 0.12),
        load=rng.uniform(0.15, 0.5),
        max_tokens=tokens,
        # Enough passes for what is asked, but a pass is worth something.
        pass_budget=0.5 * tokens if policy == "specpilot" else float(tokens),
        slo_ms=verify * 100.0,
        prompts=rng.choice(((16, 120), (16, 400), (64, 500))),
    )


def faulty(cause: str, seed: int) -> Setup:
    """The same kind of engine with one fault; the strength is drawn too."""
    base = replace(healthy(seed), fault=cause)
    rng = random.Random(seed + 77)
    draw = rng.uniform
    greedy = replace(base, temperature=0.0)
    speculating = base.policy if base.policy != "specpilot" else rng.choice(("specpilot", "static-4"))
    if cause == HEALTHY:
        return base
    if cause == "weak_draft":
        return replace(base, draft_noise=draw(6.0, 20.0), decay=0.0)
    if cause == "long_context_decay":
        return replace(base, decay=draw(0.7, 2.0), prompts=(24, 1600), draft_noise=draw(0.35, 0.8))
    if cause == "over_drafting":
        long = rng.choice(("static-12", "static-14", "static-16"))
        dear = base.verify_ms * draw(0.1, 0.2)
        noise = draw(1.2, 2.0)
        return replace(base, policy=long, draft_noise=noise, draft_ms=dear, max_tokens=24, pass_budget=24.0)
    if cause == "under_drafting":
        return replace(base, policy="static-1", draft_noise=draw(0.15, 0.6), max_tokens=24, pass_budget=24.0)
    if cause == "slow_draft":
        return replace(base, draft_ms=base.verify_ms * draw(0.4, 1.2))
    if cause == "verify_not_parallel":
        return replace(base, verify_token_ms=base.verify_ms * draw(0.3, 1.0))
    if cause == "host_overhead":
        return replace(base, host_ms=base.verify_ms * draw(0.5, 1.5))
    if cause == "queueing":
        return replace(base, load=draw(1.6, 3.0))
    if cause == "budget_bound":
        return replace(base, policy="specpilot", pass_budget=draw(1.0, 2.5), max_tokens=rng.choice((24, 32)))
    if cause == "fallback_stuck":
        return replace(base, policy="stuck", pass_budget=float(base.max_tokens))
    if cause == "kv_misalignment":
        return replace(base, strength=draw(0.5, 1.0), policy=speculating)
    if cause == "tokenizer_mismatch":
        return replace(greedy, strength=draw(0.15, 1.0), policy=speculating)
    if cause == "sampling_mismatch":
        strength = rng.choice((0.0, draw(0.2, 0.6), draw(1.5, 3.0)))
        return replace(base, temperature=draw(0.6, 1.2), strength=strength)
    if cause == "non_prefix_accept":
        return replace(greedy, strength=draw(0.05, 1.0))
    if cause == "unverified_emission":
        return replace(greedy, strength=draw(0.02, 1.0))
    if cause == "missing_bonus_token":
        return replace(base, strength=draw(0.5, 1.0))
    raise ValueError(f"cause: {cause!r} cannot be injected; use one of {', '.join(CAUSES)}")


def judge(task: tuple[str, int]) -> tuple[str, int, list[str]]:
    """One run: its causes, the primary one first."""
    cause, seed = task
    header, records = run(faulty(cause, seed))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        write_trace(path, header, records)
        found = diagnose(read_columns(path))
    return cause, seed, [finding.cause for finding in found.findings]


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """A 95 % interval for a share (Wilson 1927)."""
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def table(results: Sequence[tuple[str, int, list[str]]], seeds: str) -> str:
    """The confusion matrix as lines of Markdown, one row per injected cause."""
    rows = [
        "| injected | runs | primary right | 95 % interval | taken for |",
        "| --- | --- | --- | --- | --- |",
    ]
    right_of_all = faults = 0
    for cause in CAUSES:
        primary = Counter(found[0] for name, _, found in results if name == cause)
        count = primary.total()
        if not count:
            continue
        right = primary.pop(cause, 0)
        if cause != HEALTHY:
            right_of_all, faults = right_of_all + right, faults + count
        low, high = wilson(right, count)
        others = ", ".join(f"`{name}` {n}" for name, n in primary.most_common()) or "–"
        rows.append(f"| `{cause}` | {count} | {right} | {low:.0%} to {high:.0%} | {others} |")
    if faults:
        low, high = wilson(right_of_all, faults)
        right_share = f"{right_of_all} ({right_of_all / faults:.1%})"
        rows.append(f"| all faults | {faults} | {right_share} | {low:.1%} to {high:.1%} | |")
    return "\n".join([f"Seeds: {seeds}.", "", *rows])


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", choices=sorted(SEEDS), default="evaluation")
    parser.add_argument("--runs", type=int, default=20, help="runs per cause")
    parser.add_argument("--healthy", type=int, default=60, help="runs without a fault")
    parser.add_argument("--only", action="append", choices=CAUSES, help="this cause only; repeatable")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every run's findings")
    parser.add_argument("--join", type=Path, action="append", help="take these runs from an earlier --json")
    parser.add_argument("--write", type=Path, help="put the table between the marks of this page")
    options = parser.parse_args()
    first = SEEDS[options.seeds]
    tasks = [
        (cause, first + 1000 * place + number)
        for place, cause in enumerate(CAUSES)
        for number in range(options.healthy if cause == HEALTHY else options.runs)
        if not options.only or cause in options.only
    ]
    results: list[tuple[str, int, list[str]]] = []
    for path in options.join or ():
        results += [(cause, seed, found) for cause, seed, found in json.loads(path.read_text())]
    done = {(cause, seed) for cause, seed, _ in results}
    with ProcessPoolExecutor(options.jobs) as pool:
        for result in pool.map(judge, [task for task in tasks if task not in done], chunksize=2):
            results.append(result)
            if options.json:  # as it goes: an evaluation that was stopped is taken up with --join
                options.json.write_text(json.dumps(results))
    text = table(results, options.seeds)
    print(text)
    for cause, seed, found in results:
        if found[0] != cause:
            print(f"wrong: {cause} (seed {seed}) -> {', '.join(found)}", file=sys.stderr)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    faults = [found[0] == cause for cause, _, found in results if cause != HEALTHY]
    alarms = [found[0] != cause for cause, _, found in results if cause == HEALTHY]
    good = (not faults or sum(faults) >= 0.95 * len(faults)) and sum(alarms) <= 0.025 * max(1, len(alarms))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
