"""What a decision costs, on the state that the policy learns from the bundled pair.

    python benchmarks/bench_decision.py [--cycles 5000] [--trace FILE --costs FILE] [--json FILE]
    make bench

The controller serves requests replayed from the pair's agreement trace (recorded on the spot unless one is
given), one after the other. Timed apart, on a state that has learnt from ``--warm-up`` cycles:

(a) the decision, one ``plan`` call (constraints, choice of τ, stop rule, grant), and how many of them were
    *new*: solved then and there, where the others took up one that the context had made a few cycles before;
(b) learning, one ``observe`` call;
(c) the stop rule, both questions over a block's own confidences, divided by their number.

With token trees of up to 32 nodes, looked-up text among them, (a) is the decision with its tree rule.
Medians of one run, in microseconds, printed beside what they should be. They depend on the machine and on
what else it does, so no exit status hangs on them.

``make bench`` runs the same calls under pytest-benchmark (B = 2).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, cast

from specpilot.control import Controller, ControllerConfig, CycleOutcome, CyclePlan, RequestInfo
from specpilot.control.contexts import Context
from specpilot.control.planner import OptimalPlanner
from specpilot.control.types import StopCause
from specpilot.decoding.loop import duration_ms
from specpilot.simulation.costs import EngineCosts, read_costs
from specpilot.simulation.measure import measure_costs
from specpilot.simulation.record import Recorder
from specpilot.simulation.replay import ReplayRequest, TraceExecutor
from specpilot.simulation.stream import stream
from specpilot.trace import read_agreement
from specpilot.trace.agreement import AgreementTrace

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

PLAN_TARGET_US = 20.0
TREE_TARGET_US = 100.0
STOP_TARGET_US = 2.0
NODES = 32
WARM_UP = 500
RECORDED = 24
"""Prompts recorded where no trace is given: some of each class."""
MAX_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Material:
    """What is replayed: the pair's traces and its engine's costs."""

    traces: Sequence[AgreementTrace]
    costs: EngineCosts


@cache
def recorded() -> Material:
    """Every eighth bundled prompt on the bundled pair, and its engine's costs."""
    from specpilot.demo.pair_engine import load_engine
    from specpilot.demo.workload import bundled_prompts

    engine = load_engine("onnx")
    recorder = Recorder(engine.target, engine.draft)
    prompts = bundled_prompts()
    chosen = prompts[:: max(1, len(prompts) // RECORDED)]
    traces = [
        recorder.record(prompt.key, engine.encode(prompt.text), MAX_TOKENS, label=prompt.label).trace
        for prompt in chosen
    ]
    return Material(traces, measure_costs(engine.target, engine.draft, rounds=2, engine=engine.name))


class Service:
    """Serves replayed requests one after the other, and halts before each call that is timed.

    ``ready`` → ``plan`` → ``run`` → ``observe``; ``ready`` does whatever is left of the last cycle, and lets
    cycles on pool passes run untimed, so that every ``plan`` after it is a decision on τ and no refusal.
    """

    def __init__(self, material: Material, budget: float, nodes: int = 0) -> None:
        requests, _ = stream(material.traces, count=None, max_tokens=MAX_TOKENS, rate=math.inf, seed=1)
        self.controller = Controller(
            ControllerConfig(pass_budget=budget, slo_p95_ms=60_000.0, max_nodes=nodes, lookup_depth=nodes)
        )
        self._source = cycle(requests)
        self._costs = material.costs
        self._serial = 0
        self._now = 0.0
        self._request = ""
        self._executor: TraceExecutor | None = None
        self._own = 0
        self.planned: CyclePlan | None = None
        self.outcome: CycleOutcome | None = None

    def ready(self) -> None:
        """Until the next decision on one of a request's own passes."""
        if self.planned is not None:
            if self.outcome is None:
                self.run()
            self.observe()
        while self._executor is None or self._own < 1:
            if self._executor is None:
                self._admit()
            else:
                self._on_the_pool()

    @property
    def solved(self) -> int:
        """Changes with a ``plan`` that has solved a decision."""
        planner = self.controller.planner
        if not isinstance(planner, OptimalPlanner):
            raise TypeError(f"planner: {planner.name} keeps no decisions; time specpilot's own")
        contexts = cast("dict[object, Context]", planner.learned()["contexts"])
        return sum(kept.until for context in contexts.values() for kept in context.decisions.values())

    def plan(self) -> None:
        """The decision."""
        answer = self.controller.plan([self._request], now=self._now)
        self.planned = answer.cycles[0] if answer.cycles else None
        if answer.stops:
            self._finish(answer.stops[0].cause)

    def run(self) -> None:
        """Run what was planned."""
        if self.planned is None or self._executor is None:
            raise RuntimeError("run: nothing is planned; call ready() and plan() first")
        self.controller.begin([self.planned.cycle_id], now=self._now)
        self.outcome = self._executor.run([self.planned])[0]
        self._now += duration_ms([self.outcome]) / 1000.0
        self._own -= 1

    def observe(self) -> None:
        """Learn from it."""
        if self.outcome is None:
            raise RuntimeError("observe: nothing has run; call run() first")
        outcome, self.planned, self.outcome = self.outcome, None, None
        self.controller.observe([outcome], now=self._now)
        if outcome.ended is not None:
            self._finish(outcome.ended)

    def _admit(self) -> None:
        known = next(self._source)
        self._serial += 1
        self._request = f"{self._serial}"
        request = ReplayRequest(self._request, known.trace, known.max_tokens)
        info = RequestInfo(self._request, known.trace.prompt_tokens, request.length)
        if not self.controller.admit(info, now=self._now).admitted:
            raise RuntimeError(f"request {self._request}: refused in spite of a minute's time")
        self._executor = TraceExecutor({self._request: request}, self._costs)
        self._executor.open(self._request)
        self._own = math.floor(self.controller.config.pass_budget)

    def _on_the_pool(self) -> None:
        self.plan()
        if self.planned is not None:
            self.run()
            self.observe()

    def _finish(self, cause: StopCause) -> None:
        self.controller.finish(self._request, cause, now=self._now)
        self._executor = None


def stop_rule_over(plan: CyclePlan, confidences: Sequence[float]) -> None:
    """The drafter's part of a block: both questions at each position."""
    stop = plan.stop
    stop.start()
    for position, confidence in enumerate(confidences, 1):
        stop.draft_on(position, 0.0)
        stop.keep(position, confidence)


def measure(material: Material, cycles: int, warm_up: int, budget: float, nodes: int = 0) -> dict[str, float]:
    """Median microseconds of each kind of call over ``cycles`` cycles."""
    service = Service(material, budget, nodes)
    plans: list[float] = []
    new: list[bool] = []
    observes: list[float] = []
    tokens: list[float] = []
    engine: list[float] = []
    clock = time.perf_counter
    for number in range(warm_up + cycles):
        service.ready()
        before = service.solved
        began = clock()
        service.plan()
        planning = clock() - began
        solved = service.solved != before
        plan = service.planned
        if plan is None:
            continue
        service.run()
        outcome = service.outcome
        began = clock()
        service.observe()
        observing = clock() - began
        if number < warm_up:
            continue
        plans.append(planning)
        new.append(solved)
        observes.append(observing)
        if outcome is None:
            continue
        engine.append(duration_ms([outcome]))
        if outcome.confidences:
            began = clock()
            stop_rule_over(plan, outcome.confidences)
            tokens.append((clock() - began) / len(outcome.confidences))
    return {
        "plan_us": _median_us(plans),
        "plan_mean_us": statistics.fmean(plans) * 1e6,
        "new_share": sum(new) / len(new),
        "plan_new_us": _median_us([plan for plan, solved in zip(plans, new, strict=True) if solved]),
        "plan_kept_us": _median_us([plan for plan, solved in zip(plans, new, strict=True) if not solved]),
        "observe_us": _median_us(observes),
        "stop_rule_us_per_token": _median_us(tokens),
        "cycle_ms": statistics.median(engine),
    }


def _median_us(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e6 if seconds else 0.0


def test_decision(benchmark: BenchmarkFixture) -> None:
    """(a) One ``plan`` on the learned state; should take 20 µs."""
    service = _learned()
    benchmark.pedantic(service.plan, setup=service.ready, rounds=5000)


def test_observe(benchmark: BenchmarkFixture) -> None:
    """(b) One ``observe``."""
    service = _learned()

    def ran() -> None:
        service.ready()
        service.plan()
        service.run()

    benchmark.pedantic(service.observe, setup=ran, rounds=5000)


def test_stop_rule_over_16_tokens(benchmark: BenchmarkFixture) -> None:
    """(c) Both questions at 16 positions; should take 16 × 2 µs."""
    service = _learned()
    service.ready()
    service.plan()
    confidences = [value for trace in recorded().traces for value in trace.confidence or ()][:16]
    if service.planned is None:
        raise RuntimeError("plan: the request was ended in spite of its own passes")
    benchmark.pedantic(stop_rule_over, args=(service.planned, confidences), rounds=5000)


def _learned() -> Service:
    service = Service(recorded(), 2.0)
    for _ in range(WARM_UP):
        service.ready()
        service.plan()
    return service


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--cycles", type=int, default=5000)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="cycles before the first one timed")
    parser.add_argument("--trace", type=Path, help="an agreement trace (with --costs)")
    parser.add_argument("--costs", type=Path, help="its engine's costs (with --trace)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if (options.trace is None) != (options.costs is None):
        parser.error("--trace and --costs belong together; give both, or neither")
    if options.cycles < 1 or options.warm_up < 0:
        parser.error("--cycles must be ≥ 1 and --warm-up ≥ 0")
    given = options.trace is not None
    material = Material(read_agreement(options.trace), read_costs(options.costs)) if given else recorded()
    result = {
        f"B={budget:g}": measure(material, options.cycles, options.warm_up, budget)
        for budget in (1.0, 2.0, 3.0)
    }
    if all(trace.shares is not None for trace in material.traces):
        result[f"B=2, trees of {NODES}"] = measure(material, options.cycles, options.warm_up, 2.0, NODES)
    state = options.trace or "the bundled pair"
    print(f"Learnt from {options.warm_up} cycles of {state}; medians of {options.cycles} cycles, in µs:")
    for name, row in result.items():
        target = TREE_TARGET_US if "trees" in name else PLAN_TARGET_US
        print(
            f"{name}: (a) plan {row['plan_us']:.1f} (should be {target:g}); "
            f"{row['new_share']:.0%} new {row['plan_new_us']:.1f}, "
            f"others {row['plan_kept_us']:.1f}, mean {row['plan_mean_us']:.1f}  "
            f"(b) observe {row['observe_us']:.1f}  "
            f"(c) stop rule {row['stop_rule_us_per_token']:.2f} per token (should be {STOP_TARGET_US:g})  "
            f"in a cycle of {row['cycle_ms']:.1f} ms"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
