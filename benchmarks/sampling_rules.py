"""Which rule of acceptance gets most out of a target pass under sampling? Chains and trees, bundled pair.

    python benchmarks/sampling_rules.py --per-class 8 --markdown rules.md

The target samples a continuation of each prompt; true p and q are taken at each of its positions. First
table: the chance that one of k candidates is accepted, by rule (benchmarks/acceptance_rates.py says which are
exact). Second table: tokens per target pass where that text is decoded block after block, by rule, at an
equal number of nodes. ``chain`` is rejection sampling of a drafted chain. Trees of a fixed shape have, for
each rule, the shape that accepts most on every second prompt; the second table is of the other prompts.
``grown`` trees are the package's own: the drafter grows them best first, believing the draft, until the
nodes are used up. Their shape depends on what was drafted, which recursive rejection does not allow: there,
which candidates are judged must not depend on their draws.

Nothing is timed. The same options give the same figures. Intervals are of the bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.acceptance_rates import (
    RULES,
    Shape,
    Weights,
    best_shape,
    coupled,
    coupled_given,
    decode,
    joint,
)
from benchmarks.paired import Account, Ratio, ratio
from benchmarks.turns import along, take

from specpilot.control.stop import StopRule
from specpilot.control.tree import TreeRule
from specpilot.decoding.acceptance import Coupled, Deterministic
from specpilot.decoding.distribution import probabilities
from specpilot.decoding.rule import AcceptanceRule, follow
from specpilot.decoding.types import Block, SamplingParams
from specpilot.drafters.base import DraftItem
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import FloatArray, ForwardItem
from specpilot.pair import Pair, load_pair

CANDIDATES = (1, 2, 4)
MOST = max(CANDIDATES)
DEEPEST = 16
"""Longest chain and deepest node; so many tokens at the end of a text that was cut off begin no block."""
SETTINGS = ((0.6, 1.0), (0.6, 0.95), (1.0, 1.0), (1.0, 0.95))
"""Temperature and top-p."""
NO_TOKEN = -1
GROWN = ("deterministic, grown", "coupled, grown")
TREES = ("deterministic", "iid", "distinct", "coupled", *GROWN)


@dataclass(slots=True)
class Text:
    """A sampled continuation: its tokens, and what each model says at each of them (tokens, vocab)."""

    key: str
    label: str
    prompt: list[int]
    seed: int
    tokens: list[int]
    target: FloatArray
    draft: FloatArray
    ended: bool


@dataclass(slots=True)
class Result:
    """One setting: acceptance by rule and k (mean, standard error over texts, of the Monte Carlo alone), and
    each text's tokens and passes by kind of block and nodes.
    """

    temperature: float
    top_p: float
    positions: int = 0
    acceptance: dict[str, dict[int, tuple[float, float, float]]] = field(default_factory=dict)
    accounts: dict[int, dict[str, Account]] = field(default_factory=dict)
    shapes: dict[int, dict[str, Shape]] = field(default_factory=dict)


def sample(pair: Pair, key: str, label: str, prompt: list[int], params: SamplingParams, tokens: int) -> Text:
    """The target's own sample of at most ``tokens`` tokens, and both models' logits along it.

    It is drawn by the shared noise of ``params.seed``, so it is a sample of p for every rule and the very
    text that coupled sampling emits.
    """
    rule = Coupled(params)
    cache = pair.target.new_cache()
    feed: list[int] = prompt
    output: list[int] = []
    rows: list[FloatArray] = []
    while len(output) < min(tokens, pair.target.context_limit - len(prompt)):
        logits = pair.target.forward([ForwardItem(cache, feed, logits_from=len(feed) - 1)])[0][0]
        token = rule.draw(rule.look(logits, len(prompt) + len(output)))
        rows.append(logits)
        output.append(token)
        feed = [token]
        if token in pair.target.eos_token_ids:
            break
    ended = output[-1] in pair.target.eos_token_ids
    assert params.seed is not None
    return Text(
        key, label, prompt, params.seed, output, np.stack(rows), along(pair.draft, prompt, output), ended
    )


@dataclass(slots=True)
class Rates:
    """What the rules accept along one text: by rule, acceptance of k candidates at each position (positions,
    MOST), the Monte Carlo variance of those, and the text's weights.
    """

    accepted: dict[str, np.ndarray]
    variance: dict[str, np.ndarray]
    weights: dict[str, Weights]


def rates(text: Text, params: SamplingParams, draws: int, rng: np.random.Generator) -> Rates:
    """All rules at all positions of a text."""
    size = len(text.tokens)
    accepted = {rule: np.zeros((size, MOST)) for rule in RULES}
    variance = {rule: np.zeros(size) for rule in RULES}
    rows = {rule: np.zeros((size, MOST)) for rule in RULES}
    for at, token in enumerate(text.tokens):
        p, q = (probabilities(logits[at], params) for logits in (text.target, text.draft))
        support = np.flatnonzero(p + q > 0.0)
        p, q, own = p[support], q[support], int(np.searchsorted(support, token))
        for rule in RULES[:-1]:
            found, variance[rule][at] = joint(rule, p, q, MOST, max(2, draws // 4), rng)
            accepted[rule][at] = found.sum(axis=1).cumsum()
            rows[rule][at] = found[:, own] / p[own]
        shares = coupled(p, q, MOST, draws, rng).cumsum()
        accepted["coupled"][at] = shares
        variance["coupled"][at] = shares[-1] * (1.0 - shares[-1]) / draws
        rows["coupled"][at] = coupled_given(p, q, own, MOST, draws, rng)
    return Rates(accepted, variance, {rule: Weights(row, text.ended) for rule, row in rows.items()})


def followed(block: Block, tokens: Sequence[int]) -> int:
    """How many of ``tokens`` are a path of the block."""
    return len(follow(block, lambda row, depth: tokens[depth] if depth < len(tokens) else NO_TOKEN).path)


def walk(drafter: ModelDrafter, text: Text, rule: AcceptanceRule, nodes: int) -> tuple[float, float]:
    """Tokens and passes of a text decoded with grown trees of ``nodes`` nodes."""
    drafter.open(text.key, text.prompt)
    size, start, tokens, passes = len(text.tokens), 0, 0.0, 0.0
    while start < (size if text.ended else size - DEEPEST):
        context = [*text.prompt, *text.tokens[:start]]
        item = DraftItem(text.key, context, DEEPEST, nodes, StopRule(), rule, 0.0, TreeRule())
        block = drafter.propose([item])[0].block
        emitted = min(followed(block, text.tokens[start:]) + 1, size - start)
        start += emitted
        tokens += emitted
        passes += 1.0
    drafter.close(text.key)
    return tokens, passes


def measure(
    pair: Pair, texts: Sequence[Text], params: SamplingParams, nodes: Sequence[int], draws: int, seed: int
) -> Result:
    """One setting. The texts of even places settle the shapes, those of odd places give the figures."""
    rng = np.random.default_rng(seed)
    found = [rates(text, params, draws, rng) for text in texts]
    result = Result(params.temperature, params.top_p, positions=sum(len(text.tokens) for text in texts))
    for rule in RULES:
        result.acceptance[rule] = {
            k: _mean([one.accepted[rule][:, k - 1] for one in found], [one.variance[rule] for one in found])
            for k in (CANDIDATES if rule != "rejection" else (1,))
        }
    drafter = ModelDrafter(pair.draft)
    for count in nodes:
        accounts: dict[str, list[tuple[float, float]]] = defaultdict(list)
        shapes = {"chain": Shape.chain(min(count, DEEPEST))}
        for rule in RULES[1:]:
            shapes[rule] = best_shape([one.weights[rule] for one in found[::2]], count, DEEPEST)
        for text, one in zip(texts[1::2], found[1::2], strict=True):
            for name, shape in shapes.items():
                weights = one.weights["rejection" if name == "chain" else name]
                accounts[name].append(decode(weights, shape, DEEPEST))
            for name in GROWN:
                shared = name == "coupled, grown"
                judge = Coupled(params, text.seed) if shared else Deterministic(params)
                accounts[name].append(walk(drafter, text, judge, count))
        result.shapes[count] = shapes
        # An account's seconds are passes here: tokens per pass is its rate.
        result.accounts[count] = {
            name: Account(*map(list, zip(*rows, strict=True))) for name, rows in accounts.items()
        }
    return result


def _mean(values: Sequence[np.ndarray], variances: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Mean over positions, its standard error over texts, and that of the Monte Carlo alone."""
    sums, sizes = np.array([one.sum() for one in values]), np.array([len(one) for one in values])
    mean = sums.sum() / sizes.sum()
    spread = float(np.sqrt(((sums - mean * sizes) ** 2).sum())) / sizes.sum()
    drawn = float(np.sqrt(sum(float(one.sum()) for one in variances))) / sizes.sum()
    return float(mean), float(spread), drawn


def ratios(accounts: dict[str, Account]) -> Iterator[tuple[str, str, Ratio]]:
    """The questions: each kind of tree over the chain, then recursive rejection's against the other trees."""
    pairs = [(name, "chain") for name in TREES]
    pairs += [("distinct", "deterministic"), ("distinct", "coupled"), ("coupled, grown", "distinct")]
    for one, other in pairs:
        yield one, other, ratio(accounts[one], accounts[other])


def tables(results: Sequence[Result]) -> str:
    """Both tables and the ratios as Markdown."""
    heads = ["temperature, top-p", "rejection, 1"]
    heads += [
        f"{rule}, {k}"
        for k in CANDIDATES
        for rule in RULES[1:]
        if k > 1 or rule in ("deterministic", "coupled")
    ]
    lines = [_row(heads), _row(["---"] * len(heads))]
    worst = 0.0
    for result in results:
        cells = [_setting(result), f"{result.acceptance['rejection'][1][0]:.3f}"]
        for head in heads[2:]:
            rule, k = head.rsplit(", ", 1)
            cells.append(f"{result.acceptance[rule][int(k)][0]:.3f}")
        worst = max(worst, *(entry[2] for by_k in result.acceptance.values() for entry in by_k.values()))
        lines.append(_row(cells))
    lines += ["", f"Standard error of what is drawn: at most {worst:.4f}.", ""]
    heads = ["temperature, top-p", "nodes", "chain", *TREES]
    lines += [_row(heads), _row(["---"] * len(heads))]
    for result in results:
        for count, accounts in result.accounts.items():
            rates = [f"{accounts[name].rate:.2f}" for name in heads[2:]]
            lines.append(_row([_setting(result), str(count), *rates]))
    pairs = [(one, other) for one, other, _ in ratios(next(iter(results[0].accounts.values())))]
    lines += ["", _row(["ratio", *(f"{_setting(r)}: {n} nodes" for r in results for n in r.accounts)])]
    lines.append(_row(["---"] * (1 + sum(len(result.accounts) for result in results))))
    columns = [
        {(one, other): value for one, other, value in ratios(accounts)}
        for result in results
        for accounts in result.accounts.values()
    ]
    for one, other in pairs:
        lines.append(_row([f"{one} ÷ {other}", *(str(column[one, other]) for column in columns)]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _setting(result: Result) -> str:
    return f"{result.temperature:g}, {result.top_p:g}"


def record(result: Result) -> dict[str, Any]:
    """One setting for --json."""
    return {
        "temperature": result.temperature,
        "top_p": result.top_p,
        "positions": result.positions,
        "acceptance": {
            rule: {
                str(k): dict(zip(("mean", "standard_error", "monte_carlo_error"), entry, strict=True))
                for k, entry in by_k.items()
            }
            for rule, by_k in result.acceptance.items()
        },
        "tokens_per_pass": {
            str(count): {name: account.rate for name, account in accounts.items()}
            for count, accounts in result.accounts.items()
        },
        "ratios": {
            str(count): {
                f"{one} ÷ {other}": [value.value, value.low, value.high]
                for one, other, value in ratios(accounts)
            }
            for count, accounts in result.accounts.items()
        },
        "shapes": {
            str(count): {
                name: {"parents": shape.parents, "ranks": shape.ranks, "depth": max(shape.depths())}
                for name, shape in shapes.items()
            }
            for count, shapes in result.shapes.items()
        },
    }


def main() -> int:
    """Run, print the tables, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--per-class", type=int, default=8, help="prompts of each class")
    parser.add_argument(
        "--tokens", type=int, default=64, help="tokens of each text, past which no block begins"
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[8, 16], help="nodes of a block")
    parser.add_argument("--draws", type=int, default=64, help="draws of shared noise at each position")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    options = parser.parse_args()
    if min(options.per_class, options.tokens, *options.nodes) < 1 or options.draws < 8:
        parser.error("--per-class, --tokens and --nodes must be ≥ 1, --draws ≥ 8")
    pair = load_pair()
    prompts = take(options.per_class, options.seed)
    results = []
    for temperature, top_p in SETTINGS:
        texts = []
        for place, prompt in enumerate(prompts):
            params = SamplingParams(temperature, top_p=top_p, seed=1000 * options.seed + place)
            ids = pair.encode(prompt.text)
            texts.append(sample(pair, prompt.key, prompt.label, ids, params, options.tokens + DEEPEST))
        params = SamplingParams(temperature, top_p=top_p)
        results.append(measure(pair, texts, params, options.nodes, options.draws, options.seed))
    positions = sum(result.positions for result in results)
    text = f"{len(prompts)} prompts, {positions} positions, seed {options.seed}.\n\n{tables(results)}"
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.json:
        options.json.write_text(
            json.dumps([record(one) for one in results], indent=1) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
