"""Every policy on the scenario suite: goodput against the best static τ in hindsight.

    python benchmarks/suite.py [--seeds evaluation|development] [--requests 600] [--only NAME] [--json FILE]

Closed loop (saturation) and open loop at 0.4 and 0.7 of specpilot's closed-loop capacity; same ledger,
same arrivals for all; learning included. Simulated workloads (see specpilot/simulation/scenarios.py):
ratios compare policies, they are no claim about any real model. Exit status 1 if the pass budget was
broken at any instant.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from specpilot.simulation.compare import GAP, Row, bounds_markdown, compare, giving_way_markdown, markdown
from specpilot.simulation.scenarios import DEVELOPMENT_SEEDS, EVALUATION_SEEDS, SCENARIOS, VERSION, scenario
from specpilot.simulation.suite import LOADS, WARM_UP, Job, label, run_all


def main() -> int:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--seeds", choices=("evaluation", "development"), default="evaluation")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--only", action="append", help="a scenario's name; repeatable")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = EVALUATION_SEEDS if options.seeds == "evaluation" else DEVELOPMENT_SEEDS
    names = [scenario(name).name for name in options.only or [one.name for one in SCENARIOS]]
    cells = [(name, load) for name in names for load in LOADS]
    jobs = [Job(name, load, seed, options.requests) for name, load in cells for seed in seeds]
    results = run_all(jobs, options.processes)
    table: dict[str, Row] = {}
    for name, load in cells:
        row = table[label(name, load)] = compare([next(results) for _ in seeds])
        print(f"{label(name, load)}: specpilot {row['specpilot']:.3f}", file=sys.stderr, flush=True)
    text = (
        f"Scenario suite version {VERSION}, {options.seeds} seeds {seeds}, {options.requests} requests each. "
        f"Goodput over the best static τ in hindsight.\n\n{markdown(table)}\n\n"
        "What can be had: bayes knows the population but not the request, oracle the future. Shares of "
        f"their gap over the best static; bayes after {WARM_UP} requests, where its gap is above {GAP:.0%}."
        "\n\n"
        f"{bounds_markdown(table)}\n\n"
        "With `give_way`, where a request is sure of one pass and not of ⌊B⌋:\n\n"
        f"{giving_way_markdown(table)}"
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return int(any(row["violations"] for row in table.values()))


if __name__ == "__main__":
    sys.exit(main())
