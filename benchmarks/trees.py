"""Leaves beside a chain: ``python benchmarks/trees.py [--per-class N] [--depth N] [--leaves N]``.

Live on the bundled pair (ONNX Runtime, one request at a time, greedy, cold caches, the first two passes of
a request, as B = 2 gives it): a fixed chain, the same chain with leaves, and a chain with as many nodes as
that tree. They take turns on each prompt, in an order that rotates, and none learns. Tokens per second are
those of the cycles (prefill, drafting, passes, host) in a closed loop, with 95 % intervals over prompts: no
queue, no deadline. Exit status 1 if an output is not the target's own (near-ties apart).
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from importlib import resources
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.paired import Account, ratio

from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.static import StaticController
from specpilot.demo.workload import bundled_prompts
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import ForwardItem
from specpilot.models.onnx import OnnxCausalLM
from specpilot.models.tokenizer import Tokenizer
from specpilot.targets.model import ModelTarget
from specpilot.testing import decode
from specpilot.trace import CycleRecord, TracedController, TraceRecord

PASSES = 2
NEAR_TIE = 1e-3


def exact(model: OnnxCausalLM, prompt: list[int], output: list[int]) -> bool:
    """Whether one teacher-forced pass over the output prefers each of its tokens (or nearly)."""
    item = ForwardItem(model.new_cache(), [*prompt, *output[:-1]], logits_from=len(prompt) - 1)
    rows = model.forward([item])[0]
    chosen = rows[np.arange(len(output)), output]
    return bool((rows.max(axis=1) - chosen < NEAR_TIE).all())


def first_cycles(records: list[TraceRecord]) -> list[CycleRecord]:
    """The cycles that a budget of two passes pays for."""
    return [record for record in records if isinstance(record, CycleRecord)][:PASSES]


def main() -> int:
    """Run, print one line a class, return the exit status."""
    parser = argparse.ArgumentParser(description="Tokens per pass and per second: chains against a tree.")
    parser.add_argument("--per-class", type=int, default=12, help="prompts of each class")
    parser.add_argument("--depth", type=int, default=8, help="draft length of the chain")
    parser.add_argument("--leaves", type=int, default=8, help="nodes beside the chain")
    args = parser.parse_args()
    if min(args.per_class, args.depth, args.leaves) < 1:
        parser.error("--per-class, --depth, --leaves: each must be ≥ 1")
    bundled = resources.files("specpilot").joinpath("bundled")
    target, draft = (OnnxCausalLM(str(bundled.joinpath(role))) for role in ("target", "draft"))
    tokenizer = Tokenizer(str(bundled.joinpath("target")))
    by_class = defaultdict(list)
    for prompt in bundled_prompts():
        by_class[prompt.label].append(prompt)
    verifier, drafter = ModelTarget(target), ModelDrafter(draft)
    nodes = args.depth + args.leaves
    systems = {"chain": (args.depth, 0), "tree": (args.depth, args.leaves), "long": (nodes, 0)}
    outputs = mismatches = 0
    print(f"chain: {args.depth}, tree: {args.depth} and {args.leaves} leaves, long: a chain of {nodes}")
    print(
        f"{'class':14}{'prompts':>8}{'chain':>7}{'tree':>7}{'long':>7}  tok/s ÷ chain's       tok/s ÷ long's"
    )
    for number, (label, prompts) in enumerate(by_class.items()):
        spent: dict[str, list[tuple[int, float, int]]] = {name: [] for name in systems}
        taken = prompts[: args.per_class]
        for place, prompt in enumerate(taken):
            ids = tokenizer.encode(prompt.text)
            turn = (number + place) % len(systems)
            for name in [*systems, *systems][turn : turn + len(systems)]:
                depth, leaves = systems[name]
                request = DecodingRequest(
                    f"{place}-{name}", ids, PASSES * (nodes + 1), eos_token_ids=target.eos_token_ids
                )
                records: list[TraceRecord] = []
                controller = TracedController(StaticController(depth, leaves=leaves), records.append)
                decode(verifier, drafter, [request], controller)
                cycles = first_cycles(records)
                busy_ms = sum(
                    part.draft_ms + part.draft_prefill_ms + part.verify_ms + part.host_ms for part in cycles
                )
                spent[name].append((sum(part.emitted for part in cycles), busy_ms / 1000.0, len(cycles)))
                outputs += 1
                mismatches += not exact(target, ids, list(request.output))
        per_pass = {
            name: sum(tokens for tokens, _, _ in rows) / sum(passes for _, _, passes in rows)
            for name, rows in spent.items()
        }
        accounts = {
            name: Account([float(tokens) for tokens, _, _ in rows], [seconds for _, seconds, _ in rows])
            for name, rows in spent.items()
        }
        versus = [str(ratio(accounts["tree"], accounts[name])) for name in ("chain", "long")]
        figures = "".join(f"{value:7.2f}" for value in per_pass.values())
        print(f"{label:14}{len(taken):8}{figures}  {versus[0]:21} {versus[1]}", flush=True)
    print(f"{outputs} outputs, {mismatches} not the target's own")
    return int(mismatches > 0)


if __name__ == "__main__":
    sys.exit(main())
