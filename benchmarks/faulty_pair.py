"""The same faults in the bundled pair: does the diagnosis hold on real models?

    python benchmarks/faulty_pair.py
    python benchmarks/faulty_pair.py --rescore --requests 40

Real weights, real prompts, real time, one client that never waits. The faults that concern the models are
put into the engine around them: a draft cache that keeps a row too many after a rejection, a bonus token
that the draft is not fed, permuted ids, a draft that draws at another temperature, blocks taken unverified,
a pass that takes its positions one by one. With --rescore the greedy runs are also re-scored with a
fresh draft cache, which needs far fewer requests.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.faulty_engine import AcceptAnything, AcceptMatches, OtherTemperature

from specpilot.control import Controller, ControllerConfig
from specpilot.decoding.clock import RealClock
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.loop import ServeLoop
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.rule import AcceptanceRule
from specpilot.decoding.types import SamplingParams
from specpilot.demo.pair_engine import PairEngine, load_engine
from specpilot.demo.workload import bundled_prompts
from specpilot.diagnosis import Diagnosis, diagnose, read_columns
from specpilot.diagnosis.rescore import Rescored, rescore
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import CausalLM, FloatArray, ForwardItem, KVCache
from specpilot.simulation.baselines import make_rule
from specpilot.targets.model import ModelTarget
from specpilot.trace import TracedController, TraceHeader, TraceRecord, header_for, write_trace

RUNS: tuple[tuple[str, str, float], ...] = (
    ("healthy", "specpilot", 0.0),
    ("healthy", "static-4", 0.0),
    ("healthy", "static-3", 0.8),
    ("kv_misalignment", "static-4", 0.0),
    ("kv_misalignment", "specpilot", 0.0),
    ("missing_bonus_token", "static-3", 0.0),
    ("tokenizer_mismatch", "static-4", 0.0),
    ("sampling_mismatch", "static-4", 0.8),
    ("non_prefix_accept", "static-4", 0.0),
    ("unverified_emission", "static-4", 0.0),
    ("verify_not_parallel", "static-4", 0.0),
)
"""Fault, policy, temperature."""


class StaleCache:
    """A draft cache with faults: it claims to hold its tokens, its rows are others."""

    def __init__(self, inner: KVCache, keep_stale: bool) -> None:
        self.inner = inner
        self._keep_stale = keep_stale
        self._tokens: list[int] = []
        self._shift = 0

    @property
    def token_ids(self) -> Sequence[int]:
        """What it claims."""
        return self._tokens

    @property
    def nbytes(self) -> int:
        """The rows' memory."""
        return self.inner.nbytes

    def truncate(self, length: int) -> None:
        """Roll back, one row too few where something was to be dropped."""
        dropped = len(self._tokens) - length
        if dropped <= 0:
            return
        del self._tokens[length:]
        keep = len(self.inner.token_ids) - dropped
        self.inner.truncate(keep + 1 if self._keep_stale else keep)

    def keep_path(self, length: int, rows: Sequence[int]) -> None:
        """Chains only."""
        self.truncate(length + len(rows))

    def fed(self, tokens: Sequence[int]) -> None:
        """These tokens were given to it."""
        self._tokens.extend(tokens)


class FaultyDraft:
    """The draft model with a fault in its cache or its vocabulary; everything else is the model's."""

    def __init__(self, model: CausalLM, fault: str) -> None:
        self._model, self._fault = model, fault
        moved = np.random.default_rng(3).permutation(np.arange(4, model.vocab_size))
        self._order = np.arange(model.vocab_size)
        # Half of the ids change places.
        half = moved[: len(moved) // 2]
        self._order[half] = np.roll(half, 1)

    @property
    def name(self) -> str:
        """The model's."""
        return self._model.name

    @property
    def vocab_size(self) -> int:
        """The model's."""
        return self._model.vocab_size

    @property
    def context_limit(self) -> int:
        """The model's."""
        return self._model.context_limit

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The model's."""
        return self._model.eos_token_ids

    def new_cache(self) -> KVCache:
        """A cache with the fault."""
        return StaleCache(self._model.new_cache(), self._fault == "kv_misalignment")

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        """A pass; after a full accept two tokens are fed, of which a faulty engine forgets the first."""
        inner: list[ForwardItem] = []
        for item in items:
            cache = item.cache
            assert isinstance(cache, StaleCache)
            tokens, first = list(item.token_ids), item.logits_from
            if self._fault == "missing_bonus_token" and len(tokens) == 2:
                tokens, first = tokens[1:], 0
            inner.append(ForwardItem(cache.inner, tokens, logits_from=first))
        rows = self._model.forward(inner)
        for item in items:
            assert isinstance(item.cache, StaleCache)
            item.cache.fed(item.token_ids)
        if self._fault == "tokenizer_mismatch":
            rows = [np.ascontiguousarray(part[:, self._order]) for part in rows]
        return rows


class SerialTarget:
    """The target model, verifying position by position."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        """The prompt in one pass, as it should be; then one pass for each token of the block."""
        results = []
        for item in items:
            rows = []
            head = item.logits_from + 1
            rows += self._model.forward([replace(item, token_ids=list(item.token_ids[:head]))])
            for token in item.token_ids[head:]:
                rows += self._model.forward([ForwardItem(item.cache, [token])])
            results.append(np.concatenate(rows))
        return results


def serve(
    pair: PairEngine,
    fault: str,
    policy: str,
    temperature: float,
    requests: int,
    rescored: bool = False,
    keep: Path | None = None,
) -> Diagnosis:
    """Serve the bundled prompts with a fault; the diagnosis of the trace's file, perhaps with re-scoring."""
    with tempfile.TemporaryDirectory() as folder:
        path = (keep or Path(folder)) / f"{fault}-{policy}.jsonl"
        write_trace(path, *record(pair, fault, policy, temperature, requests))
        again = rescore(path, pair.draft) if rescored and temperature == 0.0 else None
        return diagnose(read_columns(path), again)


def record(
    pair: PairEngine, fault: str, policy: str, temperature: float, requests: int
) -> tuple[TraceHeader, list[TraceRecord]]:
    """Serve the bundled prompts with a fault; the trace, token ids included."""
    wrapped = fault in ("kv_misalignment", "missing_bonus_token", "tokenizer_mismatch")
    draft: CausalLM = FaultyDraft(pair.draft, fault) if wrapped else pair.draft
    target: CausalLM = pair.target
    if fault == "verify_not_parallel":
        target = SerialTarget(pair.target)  # type: ignore[assignment]
    executor = LiveExecutor(ModelTarget(target), ModelDrafter(draft), evidence_ids=True)
    config = ControllerConfig(pass_budget=24.0, slo_p95_ms=60_000.0)
    controller = Controller(config, None if policy == "specpilot" else make_rule(policy))
    records: list[TraceRecord] = []
    traced = TracedController(controller, records.append)
    executor.report_evidence(traced.recorder.evidence)
    loop = ServeLoop(traced, executor, RealClock())
    chance, rng = random.Random(1), np.random.default_rng(1)
    prompts = bundled_prompts()
    infos = []
    for number in range(requests):
        tokens = pair.encode(prompts[number % len(prompts)].text)
        request = DecodingRequest(
            f"r{number}",
            tokens,
            24,
            params=SamplingParams(temperature),
            rule=_rule(fault, temperature, chance, rng),
        )
        executor.add(request)
        infos.append(request.info())
    header = header_for(controller, "benchmark", engine=pair.name)
    loop.run_closed(infos)
    return header, records


def _rule(
    fault: str, temperature: float, chance: random.Random, rng: np.random.Generator
) -> AcceptanceRule | None:
    makers: dict[str, Callable[[], AcceptanceRule]] = {
        "sampling_mismatch": lambda: OtherTemperature(SamplingParams(temperature), 0.4, rng),
        "non_prefix_accept": lambda: AcceptMatches(0.5, chance),
        "unverified_emission": lambda: AcceptAnything(0.1, chance),
    }
    return makers[fault]() if fault in makers else None


def _verdicts(rescored: Rescored) -> str:
    if not rescored.same_model:
        return "not this model's drafts"
    return f"cache {rescored.verdict('kv_misalignment')}, bonus {rescored.verdict('missing_bonus_token')}"


def main() -> int:
    """Run and print a table; exit status 1 if a primary cause is not the fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=190)
    parser.add_argument("--only", action="append", help="this fault only; repeatable")
    parser.add_argument(
        "--rescore", action="store_true", help="re-score greedy runs with a fresh draft cache"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the traces there")
    options = parser.parse_args()
    pair = load_engine()
    wrong = 0
    print("| injected | policy | temperature | primary | others | re-scored |\n" + "| --- " * 6 + "|")
    for fault, policy, temperature in RUNS:
        if options.only and fault not in options.only:
            continue
        began = time.perf_counter()
        found = serve(pair, fault, policy, temperature, options.requests, options.rescore, options.keep)
        causes = [finding.cause for finding in found.findings]
        wrong += causes[0] != fault
        others = ", ".join(f"`{cause}`" for cause in causes[1:]) or "–"
        again = "–" if found.rescored is None else _verdicts(found.rescored)
        print(f"| `{fault}` | {policy} | {temperature:g} | `{causes[0]}` | {others} | {again} |", flush=True)
        print(f"{time.perf_counter() - began:.0f} s", dict(found.findings[0].evidence), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
