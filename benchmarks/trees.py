"""Trees and looked-up text against the best chain policy, live on the bundled pair, request by request in
turn.

    python benchmarks/trees.py --per-class 16 --rounds 3
    python benchmarks/trees.py --texts texts/ --class long

Three controllers with the same promises serve the same prompts, one request at a time (cold caches,
greedy): chains, trees, and trees that also hold looked-up text. Each learns from its own cycles only, and
begins anew with each class of prompts (``--mixed``: one stream of all classes); who begins changes from
prompt to prompt. The first round is warm-up. With ``--loop open`` a policy's clock runs on while the others
have their turn, as below capacity (a third of the time is its own); with ``--loop closed`` it stands still,
so that the policy sees a saturated engine and gives time its full price. ``oracle chain`` is what a
clairvoyant chain gets from the same passes of the same texts. Exit status 1 if a text is not the target's
own (near-ties apart).

With ``--texts`` the prompts are cut from other texts than the bundled ones (benchmarks/texts.py says how): a
folder of ``.txt`` and ``.md`` files, or a file whose documents stand between ``--separator``; ``--hold-out``
takes those that training/corpus.py never trains on. With ``--temperature`` tokens are sampled without a seed,
by rejection in chains and by coupled noise in trees: policies then write different texts, and there is no
oracle.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.paired import Account, ratio
from benchmarks.texts import cut, read_documents
from benchmarks.turns import exact, make_pair, take, take_turns

from specpilot.control import ControllerConfig
from specpilot.control.config import TREE_LOOKUP, TREE_NODES
from specpilot.demo.workload import WORDS, Prompt, bundled_prompts
from specpilot.pair import Completion, Pair, load_pair
from specpilot.simulation.oracle import run_of_ones
from specpilot.simulation.record import Recorder

POLICIES = ("chain", "tree", "tree+lookup")


def oracle_tokens(agree: Sequence[int], passes: int) -> int:
    """Tokens that a chain gets which is drafted exactly as far as it will be accepted."""
    emitted = 0
    for _ in range(passes):
        if emitted < len(agree):
            emitted = min(len(agree), emitted + run_of_ones(agree, emitted, len(agree)) + 1)
    return emitted


def make_pairs(loaded: Pair, budget: float, slo_ms: float, nodes: int, *, closed: bool) -> dict[str, Pair]:
    """One pair of models, a controller and a clock for each policy."""
    chain = ControllerConfig(pass_budget=budget, slo_p95_ms=slo_ms)
    tree = replace(chain, max_nodes=nodes)
    configs = {
        "chain": chain,
        "tree": tree,
        "tree+lookup": replace(tree, lookup_depth=min(nodes, TREE_LOOKUP)),
    }
    return {
        name: make_pair(loaded, config, "both" if config.lookup_depth else "model", closed=closed)
        for name, config in configs.items()
    }


def main() -> int:
    """Run, print a table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--per-class", type=int, default=16, help="prompts of each class")
    parser.add_argument(
        "--rounds", type=int, default=3, help="times each prompt is asked, the warm-up included"
    )
    parser.add_argument("--budget", type=float, default=2.0, help="target passes a request")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--slo-ms", type=float, default=250.0)
    parser.add_argument("--nodes", type=int, default=TREE_NODES, help="most nodes of a tree")
    parser.add_argument("--loop", choices=("open", "closed"), default="open")
    parser.add_argument(
        "--mixed", action="store_true", help="all classes in one stream, not one after the other"
    )
    parser.add_argument("--engine", choices=("onnx", "transformers"), default="onnx")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--texts", type=Path, help="folder or file that prompts are cut from")
    parser.add_argument("--separator", help="what stands between a file's documents")
    parser.add_argument("--hold-out", type=float, help="only this last share of a file's documents")
    parser.add_argument(
        "--class", dest="labels", action="append", help="take prompts of this class only; can be repeated"
    )
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    options = parser.parse_args()
    if min(options.per_class, options.max_tokens) < 1 or options.rounds < 2:
        parser.error("--per-class and --max-tokens must be ≥ 1, --rounds ≥ 2 (the first is warm-up)")
    loaded = load_pair(engine=options.engine)
    try:
        found = candidates(options, loaded)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    prompts = take(options.per_class, options.seed, found)
    sampled = {"temperature": options.temperature, "top_p": options.top_p} if options.temperature else {}
    groups = [prompts]
    if not options.mixed:
        groups = [
            [p for p in prompts if p.label == label] for label in dict.fromkeys(p.label for p in prompts)
        ]
    done: dict[tuple[str, str], list[Completion]] = defaultdict(list)
    oracle: dict[str, list[int]] = defaultdict(list)
    outputs = wrong = 0
    for group in groups:
        closed = options.loop == "closed"
        pairs = make_pairs(loaded, options.budget, options.slo_ms, options.nodes, closed=closed)

        def ask(name: str, ids: Sequence[int], pairs: dict[str, Pair] = pairs) -> Completion:
            return pairs[name].complete(ids, options.max_tokens, **sampled)

        recorder = Recorder(loaded.target, loaded.draft)
        agree = (
            {}
            if sampled
            else {
                prompt.key: recorder.record(
                    prompt.key, loaded.encode(prompt.text), options.max_tokens
                ).trace.agree
                for prompt in group
            }
        )
        for turn in take_turns(loaded, POLICIES, group, options.rounds, ask):
            outputs += 1
            wrong += not sampled and not exact(loaded.target, turn.ids, turn.answer.token_ids)
            if turn.warm_up:
                continue
            done[turn.prompt.label, turn.policy].append(turn.answer)
            if turn.policy == "chain" and not sampled:
                bits = [int(bit or 0) for bit in agree[turn.prompt.key]]
                oracle[turn.prompt.label].append(oracle_tokens(bits, turn.answer.target_passes))
    judged = "unseeded" if sampled else f"{wrong} not the target's own"
    print(
        f"{options.engine}, {options.loop} loop, at most {options.nodes} nodes, B = {options.budget:g}, "
        f"SLO {options.slo_ms:g} ms, temperature {options.temperature:g}, top-p {options.top_p:g}, "
        f"{len(prompts)} prompts {options.rounds - 1} times after a warm-up; {outputs} texts, {judged}.\n"
    )
    print(table(done, oracle))
    return int(wrong > 0)


def candidates(options: argparse.Namespace, loaded: Pair) -> list[Prompt]:
    """The prompts to choose from: bundled, or cut from the texts given; those that leave room for an answer.

    Raises:
        ValueError: where there are none, or for options that do not go together.
        OSError: for texts that cannot be read.
    """
    if options.texts is None:
        if options.separator is not None or options.hold_out is not None:
            raise ValueError("--separator and --hold-out: they say how a file is read; give it with --texts")
        found = bundled_prompts()
    else:
        documents = read_documents(options.texts, options.separator, options.hold_out)
        labels = list(dict.fromkeys(options.labels or WORDS))
        found = [prompt for label in labels for prompt in cut(documents, label)]
        print(f"{options.texts}: {len(documents)} documents, {len(found)} prompts.")
    known = {prompt.label for prompt in found}
    if unknown := set(options.labels or ()) - known:
        raise ValueError(f"--class: no prompts of {', '.join(sorted(unknown))}; there are {sorted(known)}")
    limit = min(loaded.target.context_limit, loaded.draft.context_limit) - options.max_tokens
    fitting = [
        prompt
        for prompt in found
        if (not options.labels or prompt.label in options.labels) and len(loaded.encode(prompt.text)) < limit
    ]
    if not fitting:
        raise ValueError("--texts: no prompt is cut from them; give longer texts, or another --class")
    return fitting


def table(done: dict[tuple[str, str], list[Completion]], oracle: dict[str, list[int]]) -> str:
    """Tokens per pass, finished suggestions, and tokens per second over the chain policy's, by class."""
    labels = list(dict.fromkeys(label for label, _ in done))
    heads = ["class", "oracle chain", *(f"{name}: t/pass" for name in POLICIES)]
    heads += [f"{name}: done" for name in POLICIES]
    heads += [f"{name} ÷ chain, {what}" for what in ("t/pass", "tok/s") for name in POLICIES[1:]]
    lines = [f"| {' | '.join(heads)} |", "| " + " | ".join("---" for _ in heads) + " |"]
    for label in [*labels, "all"]:
        chosen = labels if label == "all" else [label]
        rows = {name: [answer for one in chosen for answer in done[one, name]] for name in POLICIES}
        passes = {name: sum(answer.target_passes for answer in found) for name, found in rows.items()}
        # All of a class may have been refused: on a machine too slow for the SLO.
        perfect = sum(sum(oracle.get(one, ())) for one in chosen)
        cells = [label, f"{perfect / passes['chain']:.2f}" if passes["chain"] and perfect else "–"]
        for name in POLICIES:
            tokens = sum(len(answer.token_ids) for answer in rows[name])
            cells.append(f"{tokens / passes[name]:.2f}" if passes[name] else "–")
        for name in POLICIES:
            share = sum(answer.stop_cause.complete for answer in rows[name]) / len(rows[name])
            cells.append(f"{share:.0%}")
        for spent in (_passes, _seconds):
            accounts = {
                name: Account(
                    [float(len(answer.token_ids)) for answer in found], [spent(answer) for answer in found]
                )
                for name, found in rows.items()
            }
            for name in POLICIES[1:]:
                known = passes[name] and passes["chain"]
                cells.append(str(ratio(accounts[name], accounts["chain"])) if known else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _passes(answer: Completion) -> float:
    return float(answer.target_passes)


def _seconds(answer: Completion) -> float:
    return answer.e2e_ms / 1e3


if __name__ == "__main__":
    sys.exit(main())
