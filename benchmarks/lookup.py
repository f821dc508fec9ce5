"""Prompt lookup, the draft model, and both in one tree, live on the bundled pair, prompt by prompt in turn.

    python benchmarks/lookup.py --per-class 12

Greedy, B passes a request, no deadline, the whole policy in all; who begins changes from prompt to prompt.
"""

from __future__ import annotations

import argparse
import sys

from specpilot.control import ControllerConfig
from specpilot.control.config import NO_SLO_MS
from specpilot.demo.workload import bundled_prompts
from specpilot.pair import DRAFTERS, load_pair


def main() -> int:
    """Run and print; exit status 1 if the two disagree about a text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--per-class", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3, help="times each prompt is asked")
    parser.add_argument("--budget", type=float, default=2.0)
    parser.add_argument("--max-tokens", type=int, default=24)
    options = parser.parse_args()
    if options.per_class < 1 or options.rounds < 1 or options.max_tokens < 1:
        parser.error("--per-class, --rounds and --max-tokens must be ≥ 1")
    config = ControllerConfig(pass_budget=options.budget, slo_p95_ms=NO_SLO_MS)
    pairs = {name: load_pair(config=config, drafter=name) for name in DRAFTERS}
    sums: dict[tuple[str, str], list[float]] = {}
    taken: dict[str, int] = {}
    different = turn = 0
    prompts = []
    for prompt in bundled_prompts():
        taken[prompt.label] = taken.get(prompt.label, 0) + 1
        if taken[prompt.label] <= options.per_class:
            prompts.append(prompt)
    for _ in range(options.rounds):
        for prompt in prompts:
            turn += 1
            outputs = []
            for place in range(len(DRAFTERS)):
                name = DRAFTERS[(turn + place) % len(DRAFTERS)]
                answer = pairs[name].complete(prompt.text, options.max_tokens)
                outputs.append(answer.token_ids)
                row = sums.setdefault((prompt.label, name), [0.0, 0.0, 0.0])
                for at, value in enumerate((len(answer.token_ids), answer.target_passes, answer.e2e_ms)):
                    row[at] += value
            shortest = min(map(len, outputs))
            different += len({output[:shortest] for output in outputs}) > 1
    print(
        f"B = {options.budget:g}, {options.rounds} times {len(prompts)} prompts; texts unlike: {different}.\n"
    )
    heads = [f"{name}: {what}" for what in ("tokens/pass", "tokens/s") for name in DRAFTERS]
    print(f"| class | {' | '.join(heads)} |\n| --- {'| --- ' * len(heads)}|")
    for label in taken:
        cells = [sums[label, name] for name in DRAFTERS]
        per_pass = [f"{tokens / passes:.2f}" for tokens, passes, _ in cells]
        per_s = [f"{1000.0 * tokens / ms:.0f}" for tokens, _, ms in cells]
        print(f"| {label} | {' | '.join(per_pass)} | {' | '.join(per_s)} |")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
