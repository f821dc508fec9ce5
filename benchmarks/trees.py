"""Leaves beside a chain: ``python benchmarks/trees.py [--per-class N] [--depth N] [--leaves N]``.

Live on the bundled pair (ONNX Runtime, one request at a time, greedy, the first two passes of a request, as
B = 2 gives it): a fixed chain and the same chain with leaves, in an order that changes by prompt. Neither
learns, and times are not compared, so this says nothing about goodput under an SLO. Exit status 1 if an
output is not the target's own (near-ties apart).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from importlib import resources

import numpy as np

from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.static import StaticController
from specpilot.demo.workload import bundled_prompts
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import ForwardItem
from specpilot.models.onnx import OnnxCausalLM
from specpilot.models.tokenizer import Tokenizer
from specpilot.targets.model import ModelTarget
from specpilot.testing import decode

PASSES = 2
NEAR_TIE = 1e-3


def exact(model: OnnxCausalLM, prompt: list[int], output: list[int]) -> bool:
    """Whether one teacher-forced pass over the output prefers each of its tokens (or nearly)."""
    item = ForwardItem(model.new_cache(), [*prompt, *output[:-1]], logits_from=len(prompt) - 1)
    rows = model.forward([item])[0]
    chosen = rows[np.arange(len(output)), output]
    return bool((rows.max(axis=1) - chosen < NEAR_TIE).all())


def main() -> int:
    """Run, print one line a class, return the exit status."""
    parser = argparse.ArgumentParser(description="Tokens per pass: chain against tree.")
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
    outputs = mismatches = 0
    print(f"{'class':14}{'prompts':>8}{'chain':>8}{'tree':>8}{'ratio':>8}")
    for label, prompts in by_class.items():
        tokens: dict[int, list[float]] = {0: [], args.leaves: []}
        taken = prompts[: args.per_class]
        for number, prompt in enumerate(taken):
            ids = tokenizer.encode(prompt.text)
            widths = list(tokens) if number % 2 else list(tokens)[::-1]
            for leaves in widths:
                room = PASSES * (args.depth + 1)
                request = DecodingRequest(f"{number}-{leaves}", ids, room, eos_token_ids=target.eos_token_ids)
                decode(verifier, drafter, [request], StaticController(args.depth, leaves=leaves))
                first = request.details[:PASSES]
                emitted = [token for cycle in first for token in cycle.emitted]
                tokens[leaves].append(len(emitted) / len(first))
                outputs += 1
                mismatches += not exact(target, ids, list(request.output))
        chain, tree = (statistics.fmean(tokens[leaves]) for leaves in (0, args.leaves))
        print(f"{label:14}{len(taken):8}{chain:8.2f}{tree:8.2f}{tree / chain:8.2f}")
    print(f"{outputs} outputs, {mismatches} not the target's own")
    return int(mismatches > 0)


if __name__ == "__main__":
    sys.exit(main())
