"""What each signal of trees is worth live: the bundled pair with one signal off at a time, in turn.

    python benchmarks/live_tree_ablation.py --loop closed --per-class 16 --rounds 4

The simulator undercharges trees (docs/trees.md), so signals that it finds to be worth nothing are judged
here. Each policy is the same controller with trees and looked-up text but one signal (``tree_ablation.py``
patches it away while that policy's request runs), learns from its own cycles only and serves the same
prompts. ``nothing`` is the whole policy a second time: what chance does. Goodput is tokens per target pass
with ``--loop open``, where nobody waits, and tokens per second with ``--loop closed``. Exit status 1 if a
text is not the target's own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.ablating import Ablation, without
from benchmarks.paired import Account, ratio
from benchmarks.tree_ablation import ABLATIONS
from benchmarks.turns import exact, make_pair, take, take_turns

from specpilot.control import ControllerConfig
from specpilot.control.config import TREE_LOOKUP, TREE_NODES
from specpilot.pair import Completion, Pair, load_pair

ALL = "everything"
SIGNALS: dict[str, Ablation] = {
    name: found
    for name, found in ABLATIONS.items()
    if not name.startswith(("nothing", "trees", "chains", "looked-up text", "nodes by the time"))
} | {name: ABLATIONS[name] for name in ABLATIONS if name.startswith("looked-up text in")}
"""Those that are judged unless ``--signal`` says which: all but the big ones."""


def main() -> int:
    """Run, print a table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--per-class", type=int, default=16, help="prompts of each class")
    parser.add_argument(
        "--rounds", type=int, default=5, help="times each prompt is asked, the warm-up included"
    )
    parser.add_argument("--loop", choices=("open", "closed"), default="closed")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--class", dest="labels", action="append", help="this class only; can be repeated")
    parser.add_argument("--signal", action="append", choices=list(ABLATIONS), help="can be repeated")
    options = parser.parse_args()
    if min(options.per_class, options.max_tokens) < 1 or options.rounds < 2:
        parser.error("--per-class and --max-tokens must be ≥ 1, --rounds ≥ 2 (the first is warm-up)")
    signals = {name: ABLATIONS[name] for name in options.signal} if options.signal else SIGNALS
    policies = {ALL: Ablation(), "nothing": Ablation()} | signals
    loaded = load_pair()
    whole = ControllerConfig(max_nodes=TREE_NODES, lookup_depth=TREE_LOOKUP)
    prompts = take(options.per_class, options.seed)
    if options.labels:
        if unknown := set(options.labels) - {prompt.label for prompt in prompts}:
            parser.error(f"--class: no prompts of {', '.join(sorted(unknown))}")
        prompts = [prompt for prompt in prompts if prompt.label in options.labels]
    labels = list(dict.fromkeys(prompt.label for prompt in prompts))
    done: dict[tuple[str, str], list[Completion]] = {(name, one): [] for name in policies for one in labels}
    outputs = wrong = 0
    for label in labels:
        group = [prompt for prompt in prompts if prompt.label == label]
        pairs = {
            name: make_pair(
                loaded,
                replace(whole, **off.config),  # type: ignore[arg-type]
                "both",
                closed=options.loop == "closed",
            )
            for name, off in policies.items()
        }

        def ask(name: str, ids: Sequence[int], pairs: dict[str, Pair] = pairs) -> Completion:
            with without(policies[name]):
                return pairs[name].complete(ids, options.max_tokens)

        for turn in take_turns(loaded, list(policies), group, options.rounds, ask):
            outputs += 1
            wrong += not exact(loaded.target, turn.ids, turn.answer.token_ids)
            if not turn.warm_up:
                done[turn.policy, label].append(turn.answer)
    print(
        f"onnx, {options.loop} loop, {len(prompts)} prompts {options.rounds - 1} times after a warm-up, "
        f"B = {whole.pass_budget:g}, SLO {whole.slo_p95_ms:g} ms; {outputs} texts, {wrong} not the target's "
        "own.\n"
    )
    print(table(done, options.loop))
    return int(wrong > 0)


def table(done: dict[tuple[str, str], list[Completion]], loop: str) -> str:
    """Goodput without each signal ÷ that of everything: over all with 95 % intervals over texts, by class."""
    per = "t/pass" if loop == "open" else "tok/s"
    labels = list(dict.fromkeys(label for _, label in done))
    heads = ["without", "t/pass", f"{per} ÷ everything's (95 %)", *labels]
    lines = [f"| {' | '.join(heads)} |", "| " + " | ".join("---" for _ in heads) + " |"]

    def account(name: str, chosen: list[str]) -> Account:
        answers = [answer for label in chosen for answer in done[name, label]]
        spent = [a.target_passes if loop == "open" else a.e2e_ms / 1e3 for a in answers]
        return Account([float(len(a.token_ids)) for a in answers], [float(part) for part in spent])

    for name in dict.fromkeys(name for name, _ in done):
        answers = [answer for label in labels for answer in done[name, label]]
        passes = sum(answer.target_passes for answer in answers)
        cells = [name, f"{sum(len(answer.token_ids) for answer in answers) / passes:.2f}"]
        if name != ALL:
            cells.append(str(ratio(account(name, labels), account(ALL, labels))))
            cells += [f"{account(name, [one]).rate / account(ALL, [one]).rate:.3f}" for one in labels]
        else:
            cells += [""] * (1 + len(labels))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
