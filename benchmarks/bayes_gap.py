"""How much of the belief-state optimum's lead specpilot takes, on many seeds: shares with intervals.

    python benchmarks/bayes_gap.py --row "good-bad-good, closed" --row "outage, 0.4" --seeds 16

In the suite (three seeds) a share is off by tens of points by chance. Here the same workloads are drawn
with other seeds, on which no constant was tuned. Goodput after warm-up; the best static τ is picked in
hindsight over all seeds; intervals (95 %) resample the seeds, the pick included.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import numpy.typing as npt

from specpilot.simulation.baselines import STATIC_NAMES
from specpilot.simulation.compare import WARM
from specpilot.simulation.scenarios import SCENARIOS
from specpilot.simulation.suite import LOADS, Job, label, run_all

FIRST_SEED = 5000
RESAMPLES = 4000


def main() -> int:
    """Run, print a table."""
    rows = {label(one.name, load): (one.name, load) for one in SCENARIOS for load in LOADS}
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--row", action="append", choices=list(rows), help="can be repeated; default: all")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.seeds < 3:
        parser.error("--seeds must be ≥ 3: intervals resample them")
    names = ("specpilot", "bayes", *STATIC_NAMES)
    chosen = options.row or list(rows)
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    jobs = [Job(*rows[row], seed, options.requests, names) for row in chosen for seed in seeds]
    results = run_all(jobs, options.processes)
    print(
        f"{options.seeds} seeds from {FIRST_SEED}, {options.requests} requests each.\n\n"
        "| scenario, load | best static | specpilot ÷ it | bayes ÷ it | specpilot's share (95 %) |\n"
        "| --- | --- | --- | --- | --- |"
    )
    rng = np.random.default_rng(1)
    for row in chosen:
        found = [next(results) for _ in seeds]
        goodput = np.array([[result[name].extra[WARM] for name in names] for result in found], dtype=float)
        ours, bayes, base = leads(goodput.mean(axis=0))
        drawn = [
            share(*leads(goodput[rng.integers(0, len(found), len(found))].mean(axis=0))[:2])
            for _ in range(RESAMPLES)
        ]
        low, high = np.percentile(drawn, [2.5, 97.5])
        print(
            f"| {row} | {STATIC_NAMES[base]} | {1.0 + ours:.3f} | {1.0 + bayes:.3f} "
            f"| {share(ours, bayes):.0%} ({low:.0%}–{high:.0%}) |",
            flush=True,
        )
    return 0


def leads(goodput: npt.NDArray[np.float64]) -> tuple[float, float, int]:
    """(specpilot's lead over the best static τ, the optimum's, which τ) from mean goodputs."""
    base = int(goodput[2:].argmax())
    return goodput[0] / goodput[2 + base] - 1.0, goodput[1] / goodput[2 + base] - 1.0, base


def share(ours: float, bayes: float) -> float:
    """The part of the optimum's lead; without a lead, 0."""
    return ours / bayes if bayes > 0.0 else 0.0


if __name__ == "__main__":
    sys.exit(main())
