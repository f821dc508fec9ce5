"""How fast the policy is right again: after a change of phase, after an outage, and whether it rests.

    python benchmarks/recovery.py [--seeds 60]

1. The draft's agreement changes at once (0.75 → 0.25, 0.25 → 0.75), one context, closed loop. Tokens per
   millisecond of engine time by cycles since the change, over those of the best static τ for the new phase
   in hindsight and over the belief-state optimum's, which knows of the change. Promise: 90 % of the best
   static by cycles 21–30.
2. The drafter raises for a number of requests. Cycles from its being well again to the first block that
   is drafted, and to regular drafting (16 of 20 cycles). Promise (I6): at most probe_max and
   probe_max + 16.
3. The steady scenario: how often fallback is entered or left, and how often the planned τ turns back by two
   or more, in 1,000 cycles of a context. Promise: fallback changes in less than 1 % of cycles.

Simulated workloads. Exit status 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from specpilot.control import ControllerConfig
from specpilot.control.contexts import bucket_of
from specpilot.control.types import Binding
from specpilot.simulation.baselines import STATIC_NAMES
from specpilot.simulation.policies import replay_policy
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.scenarios import EVALUATION_SEEDS, Scenario, flat, scenario
from specpilot.trace.cycles import CycleRecord

CONFIG = ControllerConfig()
WINDOW = 10
WINDOWS = 6
BEFORE, AFTER = 200, 80
"""Requests before and after a change of phase."""
WELL = 60
"""Requests before an outage; after it twice as many."""
OUTAGES = (5, 20, 80, 320)
"""Requests that an outage lasts, at least: each seed's is ``LONGER`` longer than the one's before, for when
the end is noticed depends on where it falls between two trials."""
LONGER = 3
FIRST_SEED = 2000
Rates = list[tuple[float, float]]
"""By window of cycles since the change: (tokens, engine ms)."""


def cycles_of(name: str, one: Scenario, requests: Sequence[ReplayRequest]) -> list[CycleRecord]:
    """The cycles of a closed loop, in order."""
    run = replay_policy(
        name,
        requests,
        one.costs,
        one.config,
        closed_loop=True,
        keep_cycles=True,
        population=one.population(list(requests)),
    )
    return list(run.controller.cycle_records)


def rates(cycles: Sequence[CycleRecord], changed: set[str]) -> Rates:
    """Sums over windows of the cycles of the requests that came after the change."""
    after = [cycle for cycle in cycles if cycle.request in changed]
    return [
        (
            float(sum(cycle.emitted for cycle in part)),
            sum(c.draft_ms + c.draft_prefill_ms + c.verify_ms + c.host_ms for c in part),
        )
        for start in range(0, WINDOW * WINDOWS, WINDOW)
        for part in [after[start : start + WINDOW]]
    ]


def phase_change(alphas: tuple[float, float], seed: int) -> dict[str, Rates]:
    """specpilot, bayes and every static τ across one change."""
    # One prompt length: one context, so that cycles are cycles of the context.
    phases = (flat(alphas[0]),) * BEFORE + (flat(alphas[1]),) * AFTER
    one = Scenario(f"change-{alphas[0]}-{alphas[1]}", phases, prompts=(100,))
    requests = one.requests(BEFORE + AFTER, seed)
    changed = {request.request_id for request in requests[BEFORE:]}
    return {
        name: rates(cycles_of(name, one, requests), changed) for name in ("specpilot", "bayes", *STATIC_NAMES)
    }


def phase_rows(
    alphas: tuple[float, float], seeds: int, processes: int
) -> tuple[str, list[float], list[float]]:
    """(best static, specpilot ÷ best static by window, specpilot ÷ bayes by window), over all seeds."""
    with ProcessPoolExecutor(processes) as pool:
        runs = list(
            pool.map(partial(phase_change, alphas), range(FIRST_SEED, FIRST_SEED + seeds), chunksize=5)
        )

    def rate(name: str, windows: Sequence[int]) -> float:
        tokens = sum(run[name][w][0] for run in runs for w in windows)
        return tokens / max(1e-9, sum(run[name][w][1] for run in runs for w in windows))

    everything = range(WINDOWS)
    best = max(STATIC_NAMES, key=lambda name: rate(name, everything))
    return (
        best,
        # A static policy does not learn: its rate over all windows is its rate in each, with less noise,
        # but the requests of a window are the same for all, so the noise is shared by taking it there.
        [rate("specpilot", [w]) / rate(best, [w]) for w in everything],
        [rate("specpilot", [w]) / rate("bayes", [w]) for w in everything],
    )


def outage(length: int, seed: int) -> tuple[int, int]:
    """Cycles until the first drafted block, and until drafting is regular, after ``length`` bad requests."""
    one = Scenario(f"outage-{length}", (flat(0.75),), prompts=(100,))
    requests = [
        replace(request, draft_fails=WELL <= index < WELL + length)
        for index, request in enumerate(one.requests(3 * WELL + length, seed))
    ]
    well = {request.request_id for request in requests[WELL + length :]}
    drafted = [cycle.drafted > 0 for cycle in cycles_of("specpilot", one, requests) if cycle.request in well]
    first = drafted.index(True) if True in drafted else len(drafted)
    regular = next(
        (start for start in range(first, len(drafted) - 20) if sum(drafted[start : start + 20]) >= 16),
        len(drafted),
    )
    return first, regular


def unrest(seed: int, count: int) -> tuple[int, int, int]:
    """Steady scenario after warm-up: (cycles, changes of fallback, turns of τ by two or more)."""
    one = scenario("steady")
    cycles = [
        cycle
        for cycle in cycles_of("specpilot", one, one.requests(count, seed))
        if int(cycle.request.rsplit("-", 1)[1]) >= 200
    ]
    contexts = {bucket_of(cycle.prompt_tokens) for cycle in cycles}
    flips = turns = 0
    for context in contexts:
        own = [cycle for cycle in cycles if bucket_of(cycle.prompt_tokens) == context]
        # The first pass of a request and the others are different decisions.
        for first in (True, False):
            alike = [c for c in own if (c.index == 0) == first]
            if first:
                # A plain cycle for the draft's cost, or a probe out of it. Later cycles follow the first.
                fallback = [
                    c.binding is Binding.PROBE or (c.binding is Binding.DRAFT_COST and not c.drafted)
                    for c in alike
                ]
                flips += sum(a != b for a, b in pairwise(fallback))
            tau = [c.numbers["tau"] for c in alike if "tau" in c.numbers]
            turns += sum(
                (b - a) * (c - b) < 0.0 and min(abs(b - a), abs(c - b)) >= 2.0 for a, b, c in _triples(tau)
            )
    return len(cycles), flips, turns


def _triples(values: Sequence[float]) -> list[tuple[float, float, float]]:
    return list(zip(values, values[1:], values[2:], strict=False))


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    lines, kept = [], True
    heads = " | ".join(f"{w * WINDOW + 1}–{(w + 1) * WINDOW}" for w in range(WINDOWS))
    lines += [f"| cycles since the change | over | {heads} |", "| --- " * (WINDOWS + 2) + "|"]
    for alphas in ((0.75, 0.25), (0.25, 0.75)):
        best, over_best, over_bayes = phase_rows(alphas, options.seeds, options.processes)
        kept = kept and over_best[2] >= 0.9
        for name, row in ((best, over_best), ("bayes", over_bayes)):
            lines.append(
                f"| {alphas[0]} → {alphas[1]} | {name} | " + " | ".join(f"{x:.2f}" for x in row) + " |"
            )
    lines += ["", "| outage of | first block after, worst | regular after, worst | stated bounds |"]
    lines += ["| --- " * 4 + "|"]
    bounds = (CONFIG.probe_max, CONFIG.probe_max + 16)
    outages = max(1, options.seeds // 4)
    for length in OUTAGES:
        done = [outage(length + LONGER * seed, FIRST_SEED + seed) for seed in range(outages)]
        first, regular = (max(values) for values in zip(*done, strict=True))
        kept = kept and first <= bounds[0] and regular <= bounds[1]
        lasted = f"{length} to {length + LONGER * (outages - 1)} requests"
        lines.append(f"| {lasted} | {first} cycles | {regular} cycles | {bounds[0]}, {bounds[1]} |")
    totals = [sum(values) for values in zip(*(unrest(s, 1000) for s in EVALUATION_SEEDS), strict=True)]
    flips, turns = (1000.0 * value / totals[0] for value in totals[1:])
    kept = kept and flips < 10.0
    lines += [
        "",
        f"Steady, per 1,000 cycles of a context: fallback changed {flips:.1f} times, τ turned {turns:.1f}.",
    ]
    lines.append(
        f"Phases: {options.seeds} seeds from {FIRST_SEED}; outages: {outages} of them; steady: seeds "
        f"{EVALUATION_SEEDS}. Promises {'kept' if kept else 'BROKEN'}."
    )
    text = "\n".join(lines)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
