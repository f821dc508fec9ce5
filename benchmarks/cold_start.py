"""A cold start: the first requests of a controller that has learnt nothing, beside static-4's.

    python benchmarks/cold_start.py [--requests 20] [--seeds 60]

Every scenario of the suite in a closed loop, a new controller for each seed. Promise: no request over the
budget; no scenario where goodput is certainly below static-4's (the whole interval of the ratio below 1); the
mean above it. Simulated workloads. Exit status 1 if the promise is broken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, geometric_mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paired import Account, ratio

from specpilot.simulation.policies import replay_policy
from specpilot.simulation.results import PolicyResult
from specpilot.simulation.scenarios import SCENARIOS, VERSION, scenario
from specpilot.simulation.suite import spread

FIRST_SEED = 9000
"""No constant was tuned on this seed or those after it."""
BESIDE = "static-4"
LEAST = 1.0
HEADER = (
    f"| scenario | goodput ÷ {BESIDE} (95 %) | tokens/arrival | of {BESIDE} | in SLO | of {BESIDE} "
    "| completed | over the budget |\n" + "| --- " * 8 + "|"
)
Pair = tuple[PolicyResult, PolicyResult]


def both(count: int, place: tuple[str, int]) -> Pair:
    """Results on the same requests of (scenario, seed), specpilot's first."""
    one = scenario(place[0])
    requests = one.requests(count, place[1])
    first, second = (
        replay_policy(name, requests, one.costs, one.config, closed_loop=True).result
        for name in ("specpilot", BESIDE)
    )
    return first, second


def line(name: str, pairs: Sequence[Pair]) -> tuple[str, float, bool]:
    """A scenario's row, its ratio, and whether the promise was kept there."""
    own, other = zip(*pairs, strict=True)
    ours, theirs = (Account.of_rates([r.goodput_tokens_per_s for r in side]) for side in (own, other))
    change = ratio(ours, theirs)
    over = sum(result.budget_violations for result in own)
    cells = [
        str(change),
        *[f"{fmean(r.tokens_per_arrival for r in side):.2f}" for side in (own, other)],
        *[f"{fmean(r.slo_attainment for r in side):.1%}" for side in (own, other)],
        f"{fmean(r.completion_share for r in own):.0%}",
        str(over),
    ]
    return f"| {name} | " + " | ".join(cells) + " |", change.value, not over and not change.high < LEAST


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    places = [(one.name, seed) for one in SCENARIOS for seed in seeds]
    done = list(spread(partial(both, options.requests), places, options.processes))
    rows = [
        line(one.name, done[place * len(seeds) : (place + 1) * len(seeds)])
        for place, one in enumerate(SCENARIOS)
    ]
    mean = geometric_mean([row[1] for row in rows])
    kept = mean >= 1.0 and all(row[2] for row in rows)
    text = "\n".join(
        [
            f"Scenario suite version {VERSION}, closed loop, the first {options.requests} requests of a new "
            f"controller, {options.seeds} seeds from {FIRST_SEED} on.",
            "",
            HEADER,
            *[row[0] for row in rows],
            "",
            f"Geometric mean {mean:.3f}; the promise was {'kept' if kept else 'BROKEN'}.",
        ]
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
