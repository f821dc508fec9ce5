"""Live = replay on the bundled pair: ``python benchmarks/live_equals_replay.py [--requests N] [--seed N]``.

Runs the workload live (closed loop, greedy) under ``specpilot`` with chains, token trees, and trees with
looked-up text, and under τ = 4 and 16, then replays the executed plans over the agreement trace of the same
prompts, cycle by cycle. Accepted lengths, emitted lengths and endings must be the same in every cycle that
no near-tie (top-2 gap under 1e-3) precedes. Exit status 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace

from specpilot.control import ControllerConfig
from specpilot.control.config import TREE_LOOKUP, TREE_NODES
from specpilot.demo.live import LiveRun, live_equals_replay, lossless
from specpilot.demo.pair_engine import load_engine
from specpilot.demo.runner import DemoConfig, record_prompts
from specpilot.demo.workload import bundled_prompts, make_arrivals

POLICIES = ("specpilot", "static-4", "static-16", "trees", "trees+lookup")


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", default="onnx")
    options = parser.parse_args()
    config = DemoConfig(requests=options.requests, seed=options.seed)
    engine = load_engine(options.engine)
    material = record_prompts(engine, config)
    arrivals = make_arrivals(bundled_prompts(), config.requests, config.seed)
    requests = material.requests(arrivals, config.max_tokens, rate=math.inf)
    # No deadline, and four passes a request: more cycles to compare than the promises would allow.
    promises = ControllerConfig(pass_budget=4.0, slo_p95_ms=60_000.0)
    with_trees = {"trees": replace(promises, max_nodes=TREE_NODES)}
    with_trees["trees+lookup"] = replace(with_trees["trees"], lookup_depth=TREE_LOOKUP)
    report = {}
    for name in POLICIES:
        policy = "specpilot" if name in with_trees else name
        promised = with_trees.get(name, promises)
        run = LiveRun(policy, engine, promised, material.live(arrivals, requests, name), requests)
        run.serve(requests, closed_loop=True)
        compared, differences = live_equals_replay(run.controller, requests)
        mismatches, ties = lossless({name: run}, material, arrivals)
        report[name] = {
            "cycles": len(run.controller.cycle_records),
            "compared": compared,
            "differences": differences,
            "lossless_mismatches": mismatches,
            "lossless_near_ties": ties,
        }
    json.dump({"engine": engine.name, "requests": config.requests, "policies": report}, sys.stdout, indent=1)
    print()
    return int(any(row["differences"] or row["lossless_mismatches"] for row in report.values()))


if __name__ == "__main__":
    raise SystemExit(main())
