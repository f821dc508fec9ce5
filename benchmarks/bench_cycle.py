"""Host overhead of a cycle: ``python benchmarks/bench_cycle.py [--rounds N] [--json FILE]``.

For each draft length: the median over cycles of (wall time of the cycle) ÷ (sum of the times of the model
forward passes in it), with the draft behind its guard as in production, and the same ratio with the
policy's plan and observe included. Draft lengths are interleaved, one request each in turn, so that a slow
second of the machine hits all alike. Exit status 1 if a cycle's ratio is above the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from specpilot.control import Controller, ControllerConfig
from specpilot.control.calls import ControllerLike
from specpilot.control.config import NO_SLO_MS
from specpilot.control.types import CycleOutcome, CyclePlan
from specpilot.decoding.clock import RealClock
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.loop import ServeLoop
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.static import StaticController
from specpilot.drafters.guarded import GuardedDrafter
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import CausalLM, FloatArray, ForwardItem, KVCache, runs_in_one_thread
from specpilot.pair import Pair, load_pair
from specpilot.targets.model import ModelTarget

LIMIT = 1.10
DEPTHS = (0, 2, 4, 8, 16)
PROMPT_TOKENS = 128
OUTPUT_TOKENS = 32


class Timed:
    """A model that adds up the time of its forward passes."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self.spent_s = 0.0

        self.name = model.name
        self.vocab_size = model.vocab_size
        self.context_limit = model.context_limit
        self.eos_token_ids = model.eos_token_ids
        self.one_thread = runs_in_one_thread(model)

    def new_cache(self) -> KVCache:
        """See the model."""
        return self._model.new_cache()

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        """The model's pass, timed."""
        start = time.perf_counter()
        logits = self._model.forward(items)
        self.spent_s += time.perf_counter() - start
        return logits


class Probe(LiveExecutor):
    """Measures each cycle's wall time against its models' passes; first cycles (prefill) apart."""

    def __init__(self, target: Timed, draft: Timed) -> None:
        guarded = GuardedDrafter(
            ModelDrafter(draft), 10_000.0, target.vocab_size, one_core=runs_in_one_thread(draft)
        )
        super().__init__(ModelTarget(target), guarded)
        self.models = (target, draft)
        self.ratios: list[float] = []
        self.forward_s: list[float] = []
        self.wall_s: list[float] = []

    def run(self, plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
        """One cycle, measured."""
        before = sum(model.spent_s for model in self.models)
        start = time.perf_counter()
        outcomes = super().run(plans)
        self.wall_s.append(time.perf_counter() - start)
        self.forward_s.append(sum(model.spent_s for model in self.models) - before)
        return outcomes


def measure(pair: Pair, rounds: int) -> dict[str, dict[str, float]]:
    """Ratios by draft length, and for the policy's own choice."""
    target, draft = Timed(pair.target), Timed(pair.draft)
    policy = Controller(ControllerConfig(pass_budget=3.0, slo_p95_ms=NO_SLO_MS))
    makers: dict[str, Callable[[], ControllerLike]] = {
        **{f"static-{depth}": partial(StaticController, depth) for depth in DEPTHS},
        "specpilot": lambda: policy,
    }
    rows: dict[str, dict[str, list[float]]] = {
        name: {"cycle": [], "step": [], "first_cycle": [], "forward_ms": [], "host_us": []} for name in makers
    }
    for number in range(rounds + 1):
        prompt = [(7 * number + 3 * place) % 251 + 4 for place in range(PROMPT_TOKENS)]
        for name, make in makers.items():
            row, probe = rows[name], Probe(target, draft)
            steps = run_one(make(), probe, DecodingRequest(name, prompt, OUTPUT_TOKENS))
            if number == 0:
                continue  # warm-up
            row["first_cycle"].append(probe.wall_s[0] / probe.forward_s[0])
            for wall, forward, step in zip(probe.wall_s[1:], probe.forward_s[1:], steps[1:], strict=True):
                row["cycle"].append(wall / forward)
                row["step"].append(step / forward)
                row["forward_ms"].append(forward * 1e3)
                row["host_us"].append((wall - forward) * 1e6)
    return {
        name: {key: statistics.median(values) for key, values in row.items()} | {"cycles": len(row["cycle"])}
        for name, row in rows.items()
    }


def run_one(controller: ControllerLike, probe: Probe, request: DecodingRequest) -> list[float]:
    """Run a request to its end; wall time of each loop step that ran a cycle (policy included)."""
    loop = ServeLoop(controller, probe, RealClock())
    probe.add(request)
    loop.submit(request.info())
    steps = []
    while loop.outstanding:
        ran = len(probe.wall_s)
        start = time.perf_counter()
        loop.step()
        if len(probe.wall_s) > ran:
            steps.append(time.perf_counter() - start)
    return steps


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="requests per draft length")
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--target", default=None)
    parser.add_argument("--draft", default=None)
    parser.add_argument("--json", type=Path, default=None, help="also write the results here")
    options = parser.parse_args()
    pair = load_pair(options.target, options.draft, options.engine)
    results = measure(pair, options.rounds)
    print(f"{'policy':<12}{'cycles':>8}{'forward ms':>12}{'host µs':>10}{'cycle':>8}{'step':>8}{'first':>8}")
    for name, row in results.items():
        print(
            f"{name:<12}{row['cycles']:>8.0f}{row['forward_ms']:>12.2f}{row['host_us']:>10.0f}"
            f"{row['cycle']:>8.3f}{row['step']:>8.3f}{row['first_cycle']:>8.3f}"
        )
    worst = max(row["cycle"] for row in results.values())
    print(f"wall ÷ forward, medians; worst cycle ratio {worst:.3f}, limit {LIMIT:.2f}")
    if options.json is not None:
        record = {"engine": options.engine, "limit": LIMIT, "worst": worst, "policies": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
