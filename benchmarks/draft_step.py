"""What a step of the draft model costs: a chain's against a token tree's, on the bundled pair.

    python benchmarks/draft_step.py

Behind each prompt, its tokens already in the draft's cache, a chain and trees of the same depth are drafted
in turn by fixed rules (no policy, so that two versions of the code draft the same): a step's time is the
drafter's own measurement of the block ÷ its steps. ``narrow`` is a tree that never branches, ``wide`` one
whose nodes cost little. The digest is of all blocks: equal digests mean equal trees.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
from collections import defaultdict
from dataclasses import replace

from specpilot.control.stop import StopRule
from specpilot.control.tree import TreeRule
from specpilot.decoding.acceptance import Greedy
from specpilot.demo.workload import bundled_prompts
from specpilot.drafters.base import DraftItem
from specpilot.drafters.model import ModelDrafter
from specpilot.pair import load_pair

_RANKS = ((-0.4, 0.6), (-0.7, 0.5), (-0.9, 0.5), (-1.0, 0.5))
KINDS = {
    "chain": None,
    "narrow": TreeRule(branching=False),
    "dear nodes": TreeRule(node_price=(0.08,) * 32, ranks=_RANKS),
    "wide": TreeRule(node_price=(0.02,) * 32, ranks=_RANKS),
}


def main() -> int:
    """Run, print a table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=20, help="times each block is drafted")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--engine", choices=("onnx", "transformers"), default="onnx")
    options = parser.parse_args()
    if options.rounds < 1 or options.depth < 2:
        parser.error("--rounds must be ≥ 1, --depth ≥ 2")
    pair = load_pair(engine=options.engine)
    drafter = ModelDrafter(pair.draft)
    times: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, list[int]] = defaultdict(list)
    nodes: dict[str, list[int]] = defaultdict(list)
    digest = hashlib.sha256()
    for prompt in bundled_prompts()[::4]:
        context = pair.encode(prompt.text)
        drafter.open(prompt.key, context)
        for turn in range(options.rounds + 1):
            for kind, tree in KINDS.items():
                item = DraftItem(
                    prompt.key,
                    context,
                    options.depth,
                    32,
                    StopRule(),
                    Greedy(),
                    0.0,
                    tree and replace(tree),
                )
                draft = drafter.propose([item])[0]
                made = draft.steps if draft.steps is not None else len(draft.confidences)
                if not turn:  # the first of each brings the cache up to date
                    digest.update(repr((kind, draft.block.token_ids, draft.block.parents)).encode())
                    continue
                times[kind].append(draft.draft_ms / made)
                steps[kind].append(made)
                nodes[kind].append(len(draft.block))
        drafter.close(prompt.key)
    print("| block | draft steps | nodes | ms a step (median) | ÷ chain |")
    print("| --- | --- | --- | --- | --- |")
    base = statistics.median(times["chain"])
    for kind in KINDS:
        median = statistics.median(times[kind])
        print(
            f"| {kind} | {statistics.mean(steps[kind]):.1f} | {statistics.mean(nodes[kind]):.1f} "
            f"| {median:.3f} | {median / base:.2f} |"
        )
    print(f"\nblocks {digest.hexdigest()[:16]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
