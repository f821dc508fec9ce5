"""Forward times of a pair's two models: ``python benchmarks/bench_engine.py [--rounds N] [--json FILE]``.

Per model and number of threads: passes over 1…33 new tokens behind 128 and 384 cached ones (logits of all,
17 at most, as in a cycle), prefills of 200 and 400 tokens (logits of the last), and the part of a one-token
pass that is spent outside ONNX Runtime. All shapes are run in turn within each round, so that a slow second
of the machine hits all alike. A visit runs its shape four times: the first, with caches cold from the other
model (as after a target pass), is reported apart; the table has the medians of the others.

Then, on one thread, several sequences of 128 cached tokens: a shared pass beside one after the other.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import onnxruntime

from specpilot.models.base import CausalLM, ForwardItem, KVCache
from specpilot.models.onnx import OnnxCausalLM

WIDTHS = (1, 2, 5, 9, 17, 33)
CONTEXTS = (128, 384)
PREFILLS = (200, 400)
MOST_LOGITS = 17
VISIT = 4

Shape = tuple[int, int]
"""Cached tokens and new ones."""


class EngineClock:
    """Adds up the time inside ONNX Runtime."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count while inside."""
        original: Any = onnxruntime.InferenceSession.run_with_iobinding

        def timed(*arguments: Any) -> None:
            start = time.perf_counter()
            original(*arguments)
            self.seconds += time.perf_counter() - start

        onnxruntime.InferenceSession.run_with_iobinding = timed
        try:
            yield
        finally:
            onnxruntime.InferenceSession.run_with_iobinding = original


class Bench:
    """One model with its cache and the times measured."""

    def __init__(self, label: str, model: CausalLM) -> None:
        self.label = label
        self._model = model
        self._cache: KVCache = model.new_cache()
        self.shapes: list[Shape] = [(0, width) for width in PREFILLS]
        self.shapes += [(context, width) for context in CONTEXTS for width in WIDTHS]
        self.shapes = [shape for shape in self.shapes if sum(shape) <= model.context_limit]
        self.ms: dict[Shape, list[float]] = {shape: [] for shape in self.shapes}
        self.cold_ms: dict[Shape, list[float]] = {shape: [] for shape in self.shapes}
        self.host_us: dict[Shape, list[float]] = {shape: [] for shape in self.shapes}

    def visit(self, shape: Shape, engine: EngineClock) -> None:
        """A few passes of a shape."""
        context, width = shape
        held = len(self._cache.token_ids)
        if held < context:
            self._model.forward([ForwardItem(self._cache, self._tokens(held, context))])
        # A prefill's logits are wanted for its last token only.
        wanted = MOST_LOGITS if context else 1
        tokens = self._tokens(context, context + width)
        for number in range(VISIT):
            self._cache.truncate(context)
            item = ForwardItem(self._cache, tokens, logits_from=max(0, width - wanted))
            inside = engine.seconds
            start = time.perf_counter()
            self._model.forward([item])
            spent = time.perf_counter() - start
            if number:
                self.ms[shape].append(spent * 1e3)
                self.host_us[shape].append((spent - (engine.seconds - inside)) * 1e6)
            else:
                self.cold_ms[shape].append(spent * 1e3)

    def forget(self) -> None:
        """Drop what was measured so far: it was warm-up."""
        for shape in self.shapes:
            self.ms[shape].clear()
            self.cold_ms[shape].clear()
            self.host_us[shape].clear()

    def result(self) -> dict[str, Any]:
        """Medians by shape."""
        return {
            "model": self.label,
            "passes": [
                {
                    "context": context,
                    "new_tokens": width,
                    "ms": statistics.median(self.ms[context, width]),
                    "cold_ms": statistics.median(self.cold_ms[context, width]),
                    "host_us": statistics.median(self.host_us[context, width]),
                }
                for context, width in self.shapes
            ],
        }

    def _tokens(self, start: int, end: int) -> list[int]:
        return [(7 * position + 11) % self._model.vocab_size for position in range(start, end)]


def batches(role: str, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Shared passes and the same one after the other, in turn: medians in ms."""
    models = {"shared": OnnxCausalLM(folder), "in_turn": OnnxCausalLM(folder, batching=False)}
    results: list[dict[str, Any]] = []
    for count in (2, 4, 8):
        caches = {name: [model.new_cache() for _ in range(count)] for name, model in models.items()}
        for name, model in models.items():
            context = [7] * CONTEXTS[0]
            for cache in caches[name]:
                model.forward([ForwardItem(cache, context, logits_from=len(context) - 1)])
        for width in (1, 5, 9, 17):
            times: dict[str, list[float]] = {name: [] for name in models}
            for _ in range(rounds):
                for name, model in models.items():
                    for _ in range(2):  # the first warms up
                        for cache in caches[name]:
                            cache.truncate(CONTEXTS[0])
                        start = time.perf_counter()
                        model.forward([ForwardItem(cache, [5] * width) for cache in caches[name]])
                        spent = time.perf_counter() - start
                    times[name].append(spent * 1e3)
            medians = {name: statistics.median(values) for name, values in times.items()}
            results.append({"model": role, "sequences": count, "new_tokens": width, **medians})
    return results


def show_batches(results: list[dict[str, Any]]) -> None:
    """Print the table of shared passes."""
    print("\nsequences  new tokens   shared, ms   in turn, ms   ratio")
    for row in results:
        ratio = row["shared"] / row["in_turn"]
        print(
            f"{row['model']:<8}{row['sequences']:>3}{row['new_tokens']:>10}"
            f"{row['shared']:>13.2f}{row['in_turn']:>14.2f}{ratio:>8.2f}"
        )


def show(result: dict[str, Any]) -> None:
    """Print one model's table."""
    ms = {(part["context"], part["new_tokens"]): part["ms"] for part in result["passes"]}
    first = next(part for part in result["passes"] if part["new_tokens"] == 1)
    print(f"\n{result['model']}")
    print("  new tokens     " + "".join(f"{width:>9}" for width in WIDTHS) + "     9 ÷ 1")
    for context in CONTEXTS:
        if (context, 1) in ms:
            row = "".join(f"{ms[context, width]:>9.3f}" for width in WIDTHS if (context, width) in ms)
            print(f"  behind {context:>4}, ms {row}{ms[context, 9] / ms[context, 1]:>10.2f}")
    print("  prefill, ms    " + "".join(f"{w:>6}: {ms[0, w]:.1f}" for w in PREFILLS if (0, w) in ms))
    print(
        f"  one token, cold: {first['cold_ms']:.3f} ms; outside ONNX Runtime, warm: {first['host_us']:.0f} µs"
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", type=Path, help="folder with target/ and draft/; default: the bundled pair")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the medians there")
    options = parser.parse_args()
    pair = options.pair or Path(str(resources.files("specpilot") / "bundled"))
    benches = [
        Bench(f"{role}, {threads} thread{'s' * (threads > 1)}", OnnxCausalLM(pair / role, threads))
        for role in ("draft", "target")
        for threads in options.threads
    ]
    engine = EngineClock()
    with engine.running():
        for number in range(options.rounds + 2):
            for bench in benches:
                if number == 2:
                    bench.forget()
                for shape in bench.shapes:
                    bench.visit(shape, engine)
    results = [bench.result() for bench in benches]
    print(f"ONNX Runtime {onnxruntime.__version__}, {platform.processor() or platform.machine()}")
    for result in results:
        show(result)
    shared = [row for role in ("draft", "target") for row in batches(role, pair / role, options.rounds)]
    show_batches(shared)
    if options.json:
        report = {
            "onnxruntime": onnxruntime.__version__,
            "rounds": options.rounds,
            "models": results,
            "batches": shared,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
