"""Live on transformers: specpilot against the best static τ and transformers' own schedules, interleaved.

    python benchmarks/live_transformers.py [--workload long|mixed] [--requests 100] [--budget 2]

One client that never waits (saturation). Policies take turns, a batch of requests each, on clocks of their
own; ledger, deadlines, cycle and models are the same for all, and learning is included. Short turns, so that
a machine that is slow for some seconds is slow for all. On this engine a draft step costs about a fifth of a
target pass, so τ matters.

The best static τ in hindsight is found by exact replay of the agreement trace of the same requests, at
costs fitted to cycles that really ran; it and its neighbours on the grid run live, and the best of these
(and of the constant schedules) *live* is the one compared with: picked after the fact, which favours it.

transformers' schedules are planners over the same cycle: ``additive`` is its ``heuristic`` (from 5; +2 after
a full accept, else −1), ``constant-5`` and ``constant-20`` draft that many (the second is cut at 16), and
``confidence`` is its default (stop below a threshold that starts at 0.4 and moves, at most 16).

Goodput: tokens of requests in their SLO, loops left out. Intervals: 95 %, paired bootstrap over the batches.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paired import Account, ratio

from specpilot.control import ControllerConfig
from specpilot.demo.live import LiveRun, Material, lossless
from specpilot.demo.pair_engine import PairEngine, load_engine
from specpilot.demo.workload import Arrival, bundled_prompts, make_arrivals
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.measure import fitted, measure_costs
from specpilot.simulation.policies import replay_policy
from specpilot.simulation.record import Recorder
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.results import PolicyResult, best_of

GRID = (0, 1, 2, 3, 4, 6, 8, 12, 16)
SCHEDULES = {
    "additive": "additive",
    "constant-5": "static-5",
    "constant-20": "static-16",
    "confidence": "confidence",
}
LONG = ("long", "session")
"""Classes of the long-prompt workload: 200 to 700 tokens, each prompt cold."""
WARM_UP = 12
"""Requests served before any policy is judged; the costs of the replay are fitted to their cycles."""


@dataclass(slots=True)
class Turns:
    """One policy's live run, and what it did batch by batch."""

    run: LiveRun
    tokens: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def serve(self, batch: Sequence[ReplayRequest]) -> None:
        """Serve a batch back to back."""
        began = self.run.clock.now()
        self.run.serve(batch, closed_loop=True)
        records = self.run.records()[-len(batch) :]
        self.tokens.append(sum(float(r.emitted_tokens - r.loop_tokens) for r in records if r.met_slo))
        self.seconds.append(self.run.clock.now() - began)

    @property
    def account(self) -> Account:
        """For the ratios."""
        return Account(self.tokens, self.seconds)


@dataclass(frozen=True, slots=True)
class Bench:
    """The engine with the recorded requests of a workload."""

    engine: PairEngine
    promises: ControllerConfig
    arrivals: Sequence[Arrival]
    material: Material
    requests: Sequence[ReplayRequest]

    def turns(self, name: str, policy: str) -> Turns:
        """A fresh live run under a policy; ``name`` is whose sessions it types in."""
        live = self.material.live(self.arrivals, self.requests, name)
        return Turns(LiveRun(policy, self.engine, self.promises, live, self.requests))


def workload(kind: str, count: int, seed: int) -> list[Arrival]:
    """The demonstration's mixture with its sessions, or long prompts only, each of them cold."""
    prompts = bundled_prompts()
    if kind == "mixed":
        return make_arrivals(prompts, count, seed)
    rng = random.Random(seed)
    long = [prompt for prompt in prompts if prompt.label in LONG]
    order: list[Arrival] = []
    while len(order) < count:
        for prompt in rng.sample(long, len(long)):
            order.append(Arrival(f"r{len(order):05}", prompt, 0.0))
    return order[:count]


def prepare(engine: PairEngine, promises: ControllerConfig, options: argparse.Namespace) -> Bench:
    """Record the agreement of the two models on the workload's prompts."""
    arrivals = workload(options.workload, options.requests + WARM_UP, options.seed)
    recorder = Recorder(engine.target, engine.draft)
    prompts = {arrival.prompt.key: arrival.prompt for arrival in arrivals}
    tokens = {key: tuple(engine.encode(prompt.text)) for key, prompt in prompts.items()}
    recordings = {
        key: recorder.record(key, tokens[key], options.max_tokens, label=prompt.label)
        for key, prompt in prompts.items()
    }
    material = Material(tokens, recordings)
    requests = material.requests(arrivals, options.max_tokens, math.inf)
    return Bench(engine, promises, arrivals, material, requests)


def fit(bench: Bench) -> EngineCosts:
    """Costs of this engine now: bare passes, scaled to the cycles of a short live run."""
    bare = measure_costs(bench.engine.target, bench.engine.draft, rounds=3, engine=bench.engine.name)
    warm = bench.turns("warm-up", "specpilot")
    warm.serve(bench.requests[:WARM_UP])
    return fitted(bare, warm.run.controller.cycle_records)


def hindsight(bench: Bench, costs: EngineCosts) -> dict[str, PolicyResult]:
    """Every static τ of the grid and specpilot, replayed on the very requests."""
    return {
        name: replay_policy(name, bench.requests[WARM_UP:], costs, bench.promises, closed_loop=True).result
        for name in (*(f"static-{tau}" for tau in GRID), "specpilot")
    }


def neighbours(best: str) -> list[str]:
    """The static of that name, and the grid's lengths around it."""
    place = GRID.index(int(best.removeprefix("static-")))
    return [f"static-{tau}" for tau in GRID[max(0, place - 1) : place + 2]]


def serve(bench: Bench, policies: Mapping[str, str], batch: int) -> dict[str, Turns]:
    """All policies on all requests, a batch each in turn; who begins changes from batch to batch."""
    turns = {name: bench.turns(name, policy) for name, policy in policies.items()}
    for number, part in enumerate(batches(bench.requests[WARM_UP:], batch)):
        order = list(turns)
        start = number % len(order)
        for name in order[start:] + order[:start]:
            turns[name].serve(part)
    return turns


def batches(requests: Sequence[ReplayRequest], size: int) -> Iterator[Sequence[ReplayRequest]]:
    """The requests, ``size`` at a time."""
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


def table(
    turns: Mapping[str, Turns], results: Mapping[str, PolicyResult], best: str, replays: Mapping[str, float]
) -> str:
    """Markdown, specpilot first, then by goodput."""
    own = turns["specpilot"].account
    lines = [
        "| policy | goodput tok/s | specpilot ÷ it (95 %) | replayed | arrivals served | tokens/arrival "
        "| done | loops | p95 ms | passes | τ drafted | violations |",
        "| --- " * 12 + "|",
    ]
    order = sorted(turns, key=lambda name: (name != "specpilot", -turns[name].account.rate))
    for name in order:
        row = results[name]
        mark = f"**{name}**" if name in (best, "specpilot") else name
        gain = "" if name == "specpilot" else str(ratio(own, turns[name].account))
        replayed = f"{replays[name]:.1f}" if name in replays else ""
        p95 = "–" if row.e2e_p95_ms is None else f"{row.e2e_p95_ms:.0f}"
        lines.append(
            f"| {mark} | {turns[name].account.rate:.1f} | {gain} | {replayed} "
            f"| {row.requests} of {row.arrivals} | {row.tokens_per_arrival:.2f} | {row.completion_share:.0%} "
            f"| {row.loop_share:.1%} | {p95} | {row.target_passes_per_request:.2f} "
            f"| {row.mean_draft_length:.1f} | {row.budget_violations} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run it; exit status 1 if an output or the budget was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--workload", choices=("mixed", "long"), default="mixed")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1, help="requests per turn")
    parser.add_argument("--budget", type=float, default=2.0, help="passes per request; inf for none")
    parser.add_argument("--slo-p95-ms", type=float, default=2000.0)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--seed", type=int, default=53)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.requests < 1 or options.batch < 1 or options.max_tokens < 1:
        parser.error("--requests, --batch and --max-tokens must be ≥ 1")
    promises = ControllerConfig(pass_budget=options.budget, slo_p95_ms=options.slo_p95_ms)
    engine = load_engine(options.engine)
    bench = prepare(engine, promises, options)
    costs = fit(bench)
    replayed = hindsight(bench, costs)
    found = best_of(result for name, result in replayed.items() if name != "specpilot").name
    static = neighbours(found)
    policies = {"specpilot": "specpilot", **{name: name for name in static}, **SCHEDULES}
    turns = serve(bench, policies, options.batch)
    results = {name: part.run.result(name) for name, part in turns.items()}
    constants = [name for name in SCHEDULES if name.startswith("constant")]
    best = max([*static, *constants], key=lambda name: turns[name].account.rate)
    rates = {name: result.goodput_tokens_per_s for name, result in replayed.items()}
    mismatches, ties = lossless(
        {name: part.run for name, part in turns.items()}, bench.material, bench.arrivals[WARM_UP:]
    )
    violations = sum(result.budget_violations for result in results.values())
    share = costs.draft_step(200) / costs.verify_ms(1, 200)
    text = (
        f"{options.engine}, {options.workload} prompts, {options.requests} requests of at most "
        f"{options.max_tokens} tokens, {options.batch} in a turn, B = {options.budget:g}, SLO "
        f"{options.slo_p95_ms:g} ms, seed {options.seed}. Draft step ÷ one-token pass at 200 tokens: "
        f"{share:.2f}; replayed, static-2 makes {rates['static-2'] / rates['static-16']:.2f} of static-16's "
        f"goodput and {rates['static-2'] / rates[found]:.2f} of {found}'s, the best. Best static live: "
        f"{best}. Outputs unlike plain greedy decoding: {mismatches}, {ties} more at near-ties.\n\n"
        + table(turns, results, best, rates)
    )
    print(text)
    if options.json:
        record = {
            "settings": {key: value for key, value in vars(options).items() if key != "json"},
            "best_static": best,
            "best_static_replayed": found,
            "costs": costs.to_json(),
            "replayed_goodput": rates,
            "policies": {name: result.to_json() for name, result in results.items()},
            "batches": {
                name: {"tokens": part.tokens, "seconds": part.seconds} for name, part in turns.items()
            },
            "gain_over_best_static": str(ratio(turns["specpilot"].account, turns[best].account)),
            "lossless_mismatches": mismatches,
            "lossless_near_ties": ties,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(mismatches > 0 or violations > 0)


if __name__ == "__main__":
    sys.exit(main())
