"""specpilot in vLLM against stock vLLM: static draft lengths, the batch-size schedule, no speculation.

The same pair (the bundled one), prompts and engine options for all. Every configuration is an engine in a
process of its own that waits while others run; rounds are interleaved. Target passes are counted by a hook on
the target's forward. Run it where vLLM is installed: ``.venv-vllm/bin/python benchmarks/vllm_compare.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

MAX_DRAFT = 6
SCHEDULE = [[1, 2, 4], [3, 4, 2], [5, 8, 1]]
"""Of vLLM's dynamic speculative decoding: (from batch size, to batch size, draft tokens)."""
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "no speculation": {"draft": 0},
    "static 1": {"draft": 1},
    "static 2": {"draft": 2},
    "static 4": {"draft": 4},
    "static 6": {"draft": 6},
    "batch-size schedule": {"draft": 4, "schedule": SCHEDULE},
    "specpilot, no budget": {"draft": MAX_DRAFT, "specpilot": {"pass_budget": None, "slo_p95_ms": 1e9}},
    "specpilot, B = 3": {"draft": MAX_DRAFT, "specpilot": {"pass_budget": 3, "slo_p95_ms": 1e9}},
    "specpilot, B = 2": {"draft": MAX_DRAFT, "specpilot": {"pass_budget": 2, "slo_p95_ms": 1e9}},
}


@dataclass(slots=True)
class Round:
    """One configuration's totals over all prompts. ``drafted``: also those trimmed before verification."""

    tokens: int
    target_passes: int
    forwards: int
    drafted: int
    verified: int
    accepted: int
    wall_s: float
    own_us_per_step: float
    own_us_per_pass: float


class Engine:
    """In the process of one configuration."""

    def __init__(self, configuration: dict[str, Any], batch: int) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        bundled = resources.files("specpilot").joinpath("bundled")
        draft = configuration["draft"]
        speculative: dict[str, Any] | None = None
        if draft:
            model = str(bundled.joinpath("draft"))
            speculative = {"method": "draft_model", "model": model, "num_speculative_tokens": draft}
            if "schedule" in configuration:
                speculative["num_speculative_tokens_per_batch_size"] = configuration["schedule"]
        self.llm = LLM(
            model=str(bundled.joinpath("target")),
            speculative_config=speculative,
            additional_config={"specpilot": configuration.get("specpilot", False)},
            dtype="float32",
            max_model_len=512,
            max_num_seqs=batch,
            max_num_batched_tokens=512,
            enforce_eager=True,
            block_size=32,
            enable_prefix_caching=False,
            disable_log_stats=False,
            seed=0,
        )
        core: Any = self.llm.llm_engine.engine_core
        self.scheduler: Any = core.engine_core.scheduler
        self.runner: Any = core.engine_core.model_executor.driver_worker.worker.model_runner
        self.forwards = self.passes = 0
        self.runner.model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.forwards += 1
        self.passes += len(self.runner.input_batch.req_ids)

    def _totals(self) -> dict[str, float]:
        totals = {m.name: m.value for m in self.llm.get_metrics() if hasattr(m, "value")}
        pilot = getattr(self.scheduler, "pilot", None)
        verified = totals.get("vllm:spec_decode_num_draft_tokens", 0)
        return {
            "forwards": self.forwards,
            "target_passes": self.passes,
            "verified": verified,
            "accepted": totals.get("vllm:spec_decode_num_accepted_tokens", 0),
            "drafted": verified if pilot is None else pilot.counters.drafted,
            "own_s": getattr(self.scheduler, "own_s", 0.0),
            "steps": getattr(self.scheduler, "steps", 0),
        }

    def run(self, prompts: list[str], max_tokens: int) -> dict[str, Any]:
        """Serve all prompts, handed over at once; a :class:`Round` as a dict."""
        from vllm import SamplingParams

        before = self._totals()
        start = time.perf_counter()
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        answers = self.llm.generate(prompts, params, use_tqdm=False)
        wall_s = time.perf_counter() - start
        done = {name: value - before[name] for name, value in self._totals().items()}
        own_us, steps = 1e6 * done.pop("own_s"), done.pop("steps")
        return {
            **{name: int(value) for name, value in done.items()},
            "tokens": sum(len(answer.outputs[0].token_ids) for answer in answers),
            "wall_s": wall_s,
            "own_us_per_step": own_us / max(1.0, steps),
            "own_us_per_pass": own_us / max(1.0, done["target_passes"]),
        }


def work(configuration: dict[str, Any], batch: int) -> None:
    """The process of one configuration: a line in (prompts and length), a line out."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what vLLM prints is not an answer
    engine = Engine(configuration, batch)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(engine.run(**json.loads(line))), file=answers, flush=True)


class Worker:
    """A configuration's process, seen from outside."""

    def __init__(self, name: str, batch: int, log: IO[bytes]) -> None:
        environ = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            # As in tests_vllm/steered.py: one thread on any core, so that a busy core does not decide.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "NUMBA_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, "--batch", str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**environ, **os.environ},
            text=True,
        )
        self.name = name
        self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: its engine has ended; see the log")
        return json.loads(line)

    def run(self, prompts: list[str], max_tokens: int) -> Round:
        """One round."""
        assert self.process.stdin is not None
        print(json.dumps({"prompts": prompts, "max_tokens": max_tokens}), file=self.process.stdin, flush=True)
        return Round(**self._answer())

    def close(self) -> None:
        """Its input ends, so it does."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60.0)


def report(rounds: dict[str, list[Round]], requests: int) -> str:
    """A Markdown table: medians of the rounds; wall time against the best static length."""
    middle = {
        name: {field: statistics.median(getattr(one, field) for one in done) for field in Round.__slots__}
        for name, done in rounds.items()
    }
    static = [name for name in middle if name.startswith("static")]
    best = min(static, key=lambda name: middle[name]["wall_s"]) if static else next(iter(middle))
    lines = [
        "| configuration | tokens per request | target passes per request | tokens per pass | drafted "
        "| verified | discarded | wall time | plugin, µs per step (per pass) |",
        "| --- |" + " ---: |" * 8,
    ]
    for name, row in middle.items():
        passes, time_ratio = row["target_passes"], row["wall_s"] / middle[best]["wall_s"]
        own = f"{row['own_us_per_step']:.0f} ({row['own_us_per_pass']:.0f})" if "specpilot" in name else "–"
        lines.append(
            f"| {name} | {row['tokens'] / requests:.1f} | {passes / requests:.2f} "
            f"| {row['tokens'] / passes:.2f} | {row['drafted']:.0f} | {row['verified']:.0f} "
            f"| {row['drafted'] - row['accepted']:.0f} | {time_ratio:.2f} | {own} |"
        )
    return "\n".join(lines) + f"\n\nWall time 1.00 is that of {best}, the fastest static length."


def main() -> None:
    """Start the engines, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", action="append", choices=list(CONFIGURATIONS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--log", type=Path, default=Path(os.devnull))
    parser.add_argument("--worker", choices=list(CONFIGURATIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(CONFIGURATIONS[options.worker], options.batch)
        return
    from specpilot.demo.workload import bundled_prompts

    prompts = [prompt.text for prompt in bundled_prompts()]
    prompts = [prompts[index % len(prompts)] for index in range(options.requests)]
    rounds: dict[str, list[Round]] = {name: [] for name in options.only or CONFIGURATIONS}
    workers: list[Worker] = []
    with options.log.open("wb") as log:
        try:
            workers += (Worker(name, options.batch, log) for name in rounds)
            for number in range(options.rounds + 1):
                for worker in workers:
                    done = worker.run(prompts, options.max_tokens)
                    if number:  # the first round warms up, the controller too
                        rounds[worker.name].append(done)
        finally:
            for worker in workers:
                worker.close()
    print(report(rounds, options.requests))
    if options.json is not None:
        found = {n: [{f: getattr(r, f) for f in Round.__slots__} for r in rs] for n, rs in rounds.items()}
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
