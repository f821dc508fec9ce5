"""What `specpilot plan` says before, against what the bundled pair does then.

    python benchmarks/plan_check.py --requests 400
    python benchmarks/plan_check.py --requests 200 --load 0.2 --load 0.4 --load 0.7

Each prompt of the demonstration's mixture is cold. The plan sees the agreement trace and the engine's costs
(bare passes, scaled to the cycles of a short run of other arrivals) and draws arrivals of its own; the live
runs take turns, a block of requests each, under Poisson arrivals at the same rate; one load after the other.
Kept: tokens per pass within 5 %, p95 within 15 %.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from specpilot.control import ControllerConfig
from specpilot.demo.live import LiveRun, Material
from specpilot.demo.pair_engine import load_engine
from specpilot.demo.workload import bundled_prompts, make_arrivals
from specpilot.simulation.measure import fitted, measure_costs
from specpilot.simulation.record import Recorder
from specpilot.simulation.results import PolicyResult
from specpilot.sizing import make_plan

TOLERANCE = {"tokens_per_pass": 0.05, "e2e_p95_ms": 0.15}
BLOCK, TURNS = 40, 4
"""Least requests of a block, and in how many turns a policy plays: a block begins with an empty queue, so at
a high load short ones would flatter p95."""
WARM_UP = 40


def main() -> int:
    """Run it; exit status 1 if a prediction misses its tolerance."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--requests", type=int, default=400, help="live requests per policy")
    parser.add_argument("--tau", type=int, action="append", help="repeatable; default 2, 4, 8 and 12")
    parser.add_argument(
        "--load", type=float, action="append", help="arrivals ÷ capacity; repeatable; default 0.4"
    )
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=71)
    options = parser.parse_args()
    loads = options.load or [0.4]
    if options.requests < 1 or not all(0.0 < load < 1.0 for load in loads):
        parser.error("--requests must be ≥ 1 and --load in (0, 1)")
    promises = ControllerConfig()
    names = ["specpilot", *(f"static-{tau}" for tau in options.tau or (2, 4, 8, 12))]
    engine = load_engine("onnx")
    mixture = make_arrivals(bundled_prompts(), options.requests + WARM_UP, options.seed)
    cold = [replace(arrival, session_id=None) for arrival in mixture]
    recorder = Recorder(engine.target, engine.draft)
    prompts = {arrival.prompt.key: arrival.prompt for arrival in cold}
    tokens = {key: tuple(engine.encode(prompt.text)) for key, prompt in prompts.items()}
    recordings = {
        key: recorder.record(key, tokens[key], options.max_tokens, label=prompt.label)
        for key, prompt in prompts.items()
    }
    material = Material(tokens, recordings)
    closed = material.requests(cold, options.max_tokens, math.inf)
    bare = measure_costs(engine.target, engine.draft, rounds=3, engine=engine.name)
    warm = LiveRun("specpilot", engine, promises, material.live(cold, closed, "warm-up"), closed)
    warm.serve(closed[:WARM_UP], closed_loop=True)
    costs = fitted(bare, warm.controller.cycle_records)
    traces = [replace(request.trace, request=request.request_id) for request in closed]
    print(
        f"{options.requests} requests of the demonstration's mixture at each load, each cold, B = "
        f"{promises.pass_budget:g}, SLO {promises.slo_p95_ms:g} ms, seed {options.seed}.\n"
    )
    print("| load | a second | policy | tokens/pass, plan | live | off | p95 ms, plan | live (95 %) | off |")
    print("| --- " * 9 + "|")
    kept = True
    for load in loads:
        plan = make_plan(
            traces,
            costs,
            promises,
            max_tokens=options.max_tokens,
            load=load,
            count=options.requests,
            seed=options.seed + 1,
            sensitivity=False,
        )
        assert plan.rate_per_s is not None
        requests = material.requests(cold, options.max_tokens, plan.rate_per_s)
        live = material.live(cold, requests, f"live-{load:g}")
        runs = {name: LiveRun(name, engine, promises, live, requests[WARM_UP:]) for name in names}
        block = max(BLOCK, -(-options.requests // TURNS))
        for turn, start in enumerate(range(WARM_UP, len(requests), block)):
            for name in names if turn % 2 == 0 else reversed(names):
                runs[name].serve(requests[start : start + block])
        for name in names:
            cells, good = _compared(plan.policies[name], runs[name].result(name))
            kept &= good
            print(f"| {load:g} | {plan.rate_per_s:.1f} | {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n{'Within' if kept else 'NOT within'} 5 % of tokens per pass and 15 % of p95.")
    return 0 if kept else 1


def _compared(told: PolicyResult, seen: PolicyResult) -> tuple[list[str], bool]:
    """Plan, live and their difference for both figures; whether both are within their tolerances."""
    cells, kept = [], True
    for field, allowed in TOLERANCE.items():
        before, after = getattr(told, field), getattr(seen, field)
        off = before / after - 1.0
        kept &= abs(off) <= allowed
        interval = seen.e2e_p95_ci_ms if field == "e2e_p95_ms" else None
        span = f" ({interval[0]:.0f}–{interval[1]:.0f})" if interval else ""
        digits = 0 if interval else 2
        cells += [f"{before:.{digits}f}", f"{after:.{digits}f}{span}", f"{off:+.1%}"]
    return cells, kept


if __name__ == "__main__":
    sys.exit(main())
