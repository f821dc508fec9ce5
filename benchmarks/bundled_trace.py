"""Every policy on the bundled pair's agreement trace, at the engine's own costs and where τ matters.

    specpilot record out/trace.jsonl --costs out/costs.json
    python benchmarks/bundled_trace.py out/trace.jsonl out/costs.json [--requests 1500] [--markdown FILE]

Closed loop (saturation) and open loop at 0.4 and 0.7 of capacity, three seeds, learning included. Costs:
as measured by `record`, and two regimes given as numbers with a draft ÷ target of about 0.2.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from specpilot.control import ControllerConfig
from specpilot.simulation.baselines import RULES
from specpilot.simulation.compare import Row, compare, markdown
from specpilot.simulation.costs import EngineCosts, read_costs
from specpilot.simulation.policies import POLICY_NAMES, replay_policy
from specpilot.simulation.stream import capacity, stream
from specpilot.trace import read_agreement

LOADS = (0.0, 0.4, 0.7)
"""0 is the closed loop."""
SEEDS = (31, 37, 41)
TRANSFORMERS_LIKE = EngineCosts.from_numbers(draft_ms=2.5, verify_ms=11.0, verify_token_ms=0.4)
"""transformers eager, 10.5 M target and 0.9 M draft on one thread, measured before the project began."""
FLAT = EngineCosts.from_numbers(draft_ms=2.5, verify_ms=12.0, verify_token_ms=0.1)
"""The same draft ÷ target with a memory-bound target."""


def main() -> None:
    """Replay and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("trace", type=Path)
    parser.add_argument("costs", type=Path)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    traces = read_agreement(options.trace)
    config = ControllerConfig()
    engines = {
        "ONNX, measured": read_costs(options.costs),
        "draft 2.5 ms, pass 11 + 0.4/token": TRANSFORMERS_LIKE,
        "draft 2.5 ms, pass 12 + 0.1/token": FLAT,
    }
    table: dict[str, Row] = {}
    for engine, costs in engines.items():
        for load in LOADS:
            results = []
            for seed in SEEDS:
                requests, _ = stream(traces, count=options.requests, max_tokens=24, rate=math.inf, seed=seed)
                if load:
                    rate = load * capacity(requests, costs, config)
                    requests, _ = stream(traces, count=options.requests, max_tokens=24, rate=rate, seed=seed)
                results.append(
                    {
                        name: replay_policy(name, requests, costs, config, closed_loop=not load).result
                        for name in POLICY_NAMES
                    }
                )
            table[f"{engine}, {f'{load:g}' if load else 'closed'}"] = compare(results)
    text = (
        f"{len(traces)} recorded prompts, {options.requests} requests, seeds {SEEDS}, B = 2, SLO 250 ms. "
        f"Goodput over the best static τ in hindsight; rules: {', '.join(RULES)}.\n\n{markdown(table)}"
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
