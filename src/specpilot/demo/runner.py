"""The main job from end to end: measure, record, replay every policy, then run two of them live.

1. Time the engine's passes, record the agreement of the two models on every unique prompt.
2. Measure the capacity with one client that never waits; set the arrival rate to a share of it.
3. Replay every policy on these arrivals; pick the best static τ in hindsight.
4. Run ``specpilot`` and that static τ live on the same arrivals, in alternating blocks, so that whatever
   else the machine does hits both alike.
5. Check the outputs against plain greedy decoding, and the accepted lengths against the agreement bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from specpilot.control import ControllerConfig
from specpilot.control.config import TREE_LOOKUP, TREE_NODES
from specpilot.demo.engine import Engine
from specpilot.demo.live import LiveRun, Material, live_equals_replay, lossless
from specpilot.demo.outcome import DemoOutcome
from specpilot.demo.workload import Arrival, bundled_prompts, make_arrivals
from specpilot.simulation.baselines import STATIC_NAMES
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.measure import fitted, measure_costs
from specpilot.simulation.policies import POLICY_NAMES, TREE_NAMES, replay_all
from specpilot.simulation.record import Recorder, Recording
from specpilot.simulation.replay import LIMITS, ReplayRequest
from specpilot.simulation.results import PolicyResult, best_of

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it, and how much there is."""


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """How the demonstration is run.

    Raises:
        ValueError: for a value out of its range.
    """

    requests: int = 600
    seed: int = 1
    load: float = 0.4
    max_tokens: int = 24
    """Most output tokens of a suggestion."""
    capacity_requests: int = 80
    """Requests served back to back to measure the capacity."""
    block: int = 40
    """Requests that one policy serves before the other takes its turn."""
    promises: ControllerConfig = field(
        default_factory=lambda: ControllerConfig(max_nodes=TREE_NODES, lookup_depth=TREE_LOOKUP)
    )

    def __post_init__(self) -> None:
        for name in ("requests", "max_tokens", "capacity_requests", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not ≥ 1; give a count")
        if not 0.0 < self.load < 1.0:
            raise ValueError(f"load: {self.load} is not in (0, 1); 0.4 leaves room for queues to empty")


def run_demo(engine: Engine, config: DemoConfig, progress: Progress | None = None) -> DemoOutcome:
    """Run the whole demonstration on a loaded pair.

    Args:
        engine: the pair.
        config: size, seed, load and promises.
        progress: told what is going on.
    """
    began = time.perf_counter()
    tell = progress or (lambda *_: None)
    tell("measuring the engine", 0, 1)
    bare = measure_costs(engine.target, engine.draft, engine=engine.name)
    material = record_prompts(engine, config, tell)
    capacity, costs = _capacity(engine, config, material, bare, tell)
    rate = config.load * capacity
    arrivals = make_arrivals(bundled_prompts(), config.requests, config.seed)
    requests = material.requests(arrivals, config.max_tokens, rate)
    names = (*POLICY_NAMES, *(TREE_NAMES if config.promises.max_nodes else ()))
    tell("replaying every policy", 0, len(names))
    replays: list[PolicyResult] = []
    for index, name in enumerate(names):
        replays += replay_all([name], requests, costs, config.promises)
        tell("replaying every policy", index + 1, len(names))
    best_static = best_of(result for result in replays if result.name in STATIC_NAMES).name
    runs = _run_live(engine, config, material, arrivals, requests, ("specpilot", best_static), tell)
    mismatches, ties = lossless(runs, material, arrivals)
    cycles, differences = live_equals_replay(runs["specpilot"].controller, requests)
    return DemoOutcome(
        config=config.promises,
        engine=engine.name,
        seed=config.seed,
        load=config.load,
        arrivals_per_s=rate,
        capacity_per_s=capacity,
        live=[run.result(name) for name, run in runs.items()],
        replays=replays,
        best_static=best_static,
        lossless_mismatches=mismatches,
        lossless_near_ties=ties,
        live_replay_cycles=cycles,
        live_replay_differences=differences,
        inconsistent_positions=sum(recording.inconsistent for recording in material.recordings.values()),
        seconds=time.perf_counter() - began,
        cycles={name: run.controller.cycle_records for name, run in runs.items()},
        traces={
            name: (
                replace(run.controller.header, source="demo", engine=engine.name),
                run.controller.trace,
            )
            for name, run in runs.items()
        },
        latencies_ms={name: run.latencies_ms() for name, run in runs.items()},
        notes=[*LIMITS, "The replayed specpilot meets measured medians, the live one this machine as it is."],
    )


def record_prompts(engine: Engine, config: DemoConfig, progress: Progress | None = None) -> Material:
    """Record the agreement of the two models on every bundled prompt."""
    tell = progress or (lambda *_: None)
    prompts = bundled_prompts()
    tokens = {prompt.key: tuple(engine.encode(prompt.text)) for prompt in prompts}
    recorder = Recorder(engine.target, engine.draft)
    recordings: dict[str, Recording] = {}
    for index, prompt in enumerate(prompts):
        recordings[prompt.key] = recorder.record(
            prompt.key, tokens[prompt.key], config.max_tokens, label=prompt.label
        )
        tell("recording agreement", index + 1, len(prompts))
    return Material(tokens, recordings)


def _capacity(
    engine: Engine, config: DemoConfig, material: Material, bare: EngineCosts, tell: Progress
) -> tuple[float, EngineCosts]:
    """Requests per second in a closed loop, live, and the costs as its cycles showed them.

    Other arrivals than the ones that are judged.
    """
    arrivals = make_arrivals(bundled_prompts(), config.capacity_requests, config.seed + 1)
    requests = material.requests(arrivals, config.max_tokens, rate=1.0)
    tell("measuring capacity", 0, 1)
    run = LiveRun(
        "specpilot", engine, config.promises, material.live(arrivals, requests, "capacity"), requests
    )
    run.serve(requests, closed_loop=True)
    return len(run.controller.summaries) / run.clock.now(), fitted(bare, run.controller.cycle_records)


def _run_live(
    engine: Engine,
    config: DemoConfig,
    material: Material,
    arrivals: Sequence[Arrival],
    requests: Sequence[ReplayRequest],
    names: Sequence[str],
    tell: Progress,
) -> dict[str, LiveRun]:
    runs = {
        name: LiveRun(name, engine, config.promises, material.live(arrivals, requests, name), requests)
        for name in names
    }
    done = 0
    for number, start in enumerate(range(0, len(requests), config.block)):
        block = requests[start : start + config.block]
        # Who begins changes too, in case the machine slows down steadily.
        for name in names if number % 2 == 0 else reversed(names):
            runs[name].serve(block)
            done += len(block)
            tell("running live", done, len(names) * len(requests))
    return runs
