"""Every policy on the scenario suite: goodput against the best static τ in hindsight.

    python benchmarks/suite.py [--seeds evaluation|development] [--requests 600] [--markdown FILE]

Closed loop (saturation) and open loop at 0.4 and 0.7 of specpilot's closed-loop capacity; same ledger,
same arrivals for all; learning included. Simulated workloads (see specpilot/simulation/scenarios.py):
ratios compare policies, they are no claim about any real model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from specpilot.simulation.compare import Row, compare, markdown
from specpilot.simulation.policies import POLICY_NAMES, replay_policy
from specpilot.simulation.results import PolicyResult
from specpilot.simulation.scenarios import DEVELOPMENT_SEEDS, EVALUATION_SEEDS, SCENARIOS, VERSION, Scenario

LOADS = (0.0, 0.4, 0.7)
"""0 is the closed loop."""


def run(scenario: Scenario, load: float, seed: int, count: int) -> dict[str, PolicyResult]:
    """All policies on one scenario, load and seed."""
    requests = scenario.requests(count, seed)
    if load:
        closed = replay_policy("specpilot", requests, scenario.costs, scenario.config, closed_loop=True)
        capacity = count / max(record.end_s for record in closed.records)
        requests = scenario.arriving(requests, load * capacity, seed)
    return {
        name: replay_policy(name, requests, scenario.costs, scenario.config, closed_loop=load == 0.0).result
        for name in POLICY_NAMES
    }


def main() -> None:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--seeds", choices=("evaluation", "development"), default="evaluation")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--only", help="one scenario's name")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = EVALUATION_SEEDS if options.seeds == "evaluation" else DEVELOPMENT_SEEDS
    table: dict[str, Row] = {}
    for scenario in SCENARIOS:
        if options.only not in (None, scenario.name):
            continue
        for load in LOADS:
            key = f"{scenario.name}, {f'{load:g}' if load else 'closed'}"
            table[key] = compare([run(scenario, load, seed, options.requests) for seed in seeds])
            print(
                key,
                {k: round(v, 3) if isinstance(v, float) else v for k, v in table[key].items()},
                flush=True,
            )
    text = (
        f"Scenario suite version {VERSION}, {options.seeds} seeds {seeds}, {options.requests} requests each. "
        "Goodput over the best static τ in hindsight.\n\n" + markdown(table)
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
