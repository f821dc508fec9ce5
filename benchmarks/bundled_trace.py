"""Every policy on the bundled pair's agreement trace, at the measured costs of one engine or several.

    specpilot record out/trace.jsonl --costs out/costs.json
    specpilot record out/other.jsonl --costs out/transformers.json --engine transformers --limit 12
    python benchmarks/bundled_trace.py out/trace.jsonl out/costs.json out/transformers.json

Whether the draft agrees is a matter of the models, what a pass costs is the engine's: so one trace serves for
all. Closed loop (saturation) and open loop at 0.4 and 0.7 of capacity, evaluation seeds, learning included.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from specpilot.control import ControllerConfig
from specpilot.simulation.baselines import RULES
from specpilot.simulation.compare import Row, compare, markdown
from specpilot.simulation.costs import read_costs
from specpilot.simulation.policies import POLICY_NAMES, replay_policy
from specpilot.simulation.scenarios import EVALUATION_SEEDS
from specpilot.simulation.stream import at_load
from specpilot.trace import read_agreement

LOADS = (0.0, 0.4, 0.7)
"""0 is the closed loop."""


def main() -> None:
    """Replay and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("trace", type=Path)
    parser.add_argument("costs", type=Path, nargs="+")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    traces = read_agreement(options.trace)
    config = ControllerConfig()
    measured = [read_costs(path) for path in options.costs]
    engines = {costs.engine or f"{path}": costs for path, costs in zip(options.costs, measured, strict=True)}
    table: dict[str, Row] = {}
    for engine, costs in engines.items():
        for load in LOADS:
            results = []
            for seed in EVALUATION_SEEDS:
                requests, _ = at_load(
                    traces, costs, config, load, count=options.requests, max_tokens=24, seed=seed
                )
                results.append(
                    {
                        name: replay_policy(name, requests, costs, config, closed_loop=not load).result
                        for name in POLICY_NAMES
                    }
                )
            table[f"{engine}, {f'{load:g}' if load else 'closed'}"] = compare(results)
    text = (
        f"{len(traces)} recorded prompts, {options.requests} requests, evaluation seeds {EVALUATION_SEEDS}, "
        "B = 2, SLO 250 ms. "
        f"Goodput over the best static τ in hindsight; rules: {', '.join(RULES)}.\n\n{markdown(table)}"
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
