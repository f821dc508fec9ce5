"""What rules of acceptance accept, from p and q: the arithmetic behind sampling_rules.py.

At one position the target's distribution is p, the draft's q, and up to k candidates are judged in turn.
For each rule :func:`joint` says how likely it is that the i-th candidate is accepted *and* is token y; its
sum over y and i is the acceptance, and divided by p(y) it is the chance that a text which goes on with y was
accepted at the i-th candidate. All rules emit samples of p, so one text of the target serves them all.

- ``rejection``: one candidate drawn from q (Leviathan et al. 2023; Chen et al. 2023). Closed form.
- ``deterministic``: the k likeliest of q; the target draws from p and follows. Closed form.
- ``iid``: recursive rejection of independent samples of q (SpecInfer, Miao et al. 2024): a rejected candidate
  leaves the normalised positive part of p − q for the next. Closed form, as it does not matter which token
  was rejected.
- ``distinct``: recursive rejection without replacement (Sequoia, Chen et al. 2024; Jeon et al. 2024): q loses
  each rejected candidate and is normalised anew. Closed form for two candidates; from the third on the mean
  over seeded sequences of rejected candidates.
- ``coupled``: argmax under shared Gumbel noise (Daliri et al. 2024); candidates are the k best of q under the
  noise. Seeded Monte Carlo; the exact noise given the target's token needs no draw to be thrown away.

Candidates that q gives no mass (top-p) are proposed by no rule.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specpilot.decoding.distribution import DoubleArray
from specpilot.decoding.types import depths

RULES = ("rejection", "deterministic", "iid", "distinct", "coupled")
_NOTHING = 1e-12
"""Mass below this is rounding."""


def joint(
    rule: str, p: DoubleArray, q: DoubleArray, count: int, paths: int, rng: np.random.Generator
) -> tuple[DoubleArray, float]:
    """P(the i-th candidate is accepted and is token y), for every rule but ``coupled``.

    Args:
        rule: one of :data:`RULES`.
        p: the target's distribution (vocab,).
        q: the draft's (vocab,).
        count: candidates, ≥ 1.
        paths: sequences of rejected candidates that are drawn, where there is no closed form.
        rng: for those.

    Returns:
        An array (count, vocab), and the Monte Carlo variance of its sum (0 for a closed form).

    Raises:
        ValueError: for a rule that has no such form.
    """
    found = np.zeros((count, p.size))
    if rule == "rejection":
        found[0] = np.minimum(p, q)
        return found, 0.0
    if rule == "deterministic":
        best = np.argsort(-q, kind="stable")[:count]
        places = np.flatnonzero(q[best] > 0.0)
        found[places, best[places]] = p[best[places]]
        return found, 0.0
    if rule == "iid":
        left, reach = p, 1.0
        for place in range(count):
            found[place] = reach * np.minimum(left, q)
            reach -= float(found[place].sum())
            beyond = np.maximum(left - q, 0.0)
            if beyond.sum() <= _NOTHING or reach <= _NOTHING:
                break
            left = beyond / beyond.sum()
        return found, 0.0
    if rule == "distinct":
        return _distinct(p, q, found, paths, rng)
    raise ValueError(f"rule: {rule!r} has no joint form; coupled() draws it, {RULES[:-1]} have one")


def _distinct(
    p: DoubleArray, q: DoubleArray, found: DoubleArray, paths: int, rng: np.random.Generator
) -> tuple[DoubleArray, float]:
    found[0] = np.minimum(p, q)
    refused = np.maximum(q - p, 0.0)
    beyond = np.maximum(p - q, 0.0)
    if len(found) == 1 or refused.sum() <= _NOTHING:
        return found, 0.0
    left = beyond / beyond.sum()
    # Σ_x refused(x) · min(left(y), q(y) / (1 − q(x))): the sum parts where the second passes the first.
    tokens = np.flatnonzero((refused > 0.0) & (q < 1.0 - _NOTHING))
    tokens = tokens[np.argsort(q[tokens])]
    scale = 1.0 / (1.0 - q[tokens])
    below = np.concatenate(([0.0], np.cumsum(refused[tokens] * scale)))
    weight = np.concatenate(([0.0], np.cumsum(refused[tokens])))
    ask = np.flatnonzero((left > 0.0) & (q > 0.0))
    parts = np.searchsorted(scale, left[ask] / q[ask], side="right")
    found[1, ask] = q[ask] * below[parts] + left[ask] * (weight[-1] - weight[parts])
    if len(found) == 2:
        return found, 0.0
    support = np.flatnonzero(q > 0.0)  # elsewhere there is nothing to accept
    p_rows = np.repeat(left[support][None], paths, axis=0)
    q_rows = np.repeat(q[support][None], paths, axis=0)
    gone = np.repeat(refused[support][None], paths, axis=0)
    # The first rejected candidate by strata: each path stands for an equal share of the rejections.
    uniforms = (np.arange(paths) + rng.random(paths)) / paths
    reach = np.full(paths, float(refused.sum()))
    total = np.zeros(paths)
    for place in range(1, len(found)):
        cumulative = np.cumsum(gone, axis=1)
        drawn = (cumulative > (uniforms * cumulative[:, -1])[:, None]).argmax(axis=1)
        q_rows[np.arange(paths), drawn] = 0.0
        mass = q_rows.sum(axis=1)
        reach = np.where(mass > _NOTHING, reach, 0.0)  # no candidate left
        q_rows /= np.maximum(mass, _NOTHING)[:, None]
        taken = reach[:, None] * np.minimum(p_rows, q_rows)
        if place > 1:
            found[place, support] = taken.mean(axis=0)
            total += taken.sum(axis=1)
        gone = np.maximum(q_rows - p_rows, 0.0)
        # p outside q's support is never accepted, but it is part of what is left to be normalised.
        lost = gone.sum(axis=1)
        reach = reach * np.minimum(lost, 1.0)
        reach = np.where(lost > _NOTHING, reach, 0.0)
        p_rows = np.maximum(p_rows - q_rows, 0.0) / np.maximum(lost, _NOTHING)[:, None]
        uniforms = rng.random(paths)
    return found, float(total.var(ddof=1) / paths) if paths > 1 else 0.0


def coupled(p: DoubleArray, q: DoubleArray, count: int, draws: int, rng: np.random.Generator) -> DoubleArray:
    """How often the target's token under shared noise is the i-th best of q: an array (count,)."""
    noise = rng.exponential(size=(draws, p.size))
    return _ranked(q / noise, (p / noise).argmax(axis=1), count)


def coupled_given(
    p: DoubleArray, q: DoubleArray, token: int, count: int, draws: int, rng: np.random.Generator
) -> DoubleArray:
    """The same, given that the target's token under the noise is ``token``, which must have p > 0.

    E_x / p_x are exponentials of rate p_x: the least of them is an exponential of rate 1 whichever token it
    is of, and the others exceed it by exponentials of their own rates (they have no memory).
    """
    least = rng.exponential(size=(draws, 1))
    noise = p * least + rng.exponential(size=(draws, p.size))
    noise[:, token] = p[token] * least[:, 0]
    return _ranked(q / noise, np.full(draws, token), count)


def _ranked(scores: DoubleArray, tokens: np.ndarray, count: int) -> DoubleArray:
    own = scores[np.arange(len(scores)), tokens]
    ranks = (scores > own[:, None]).sum(axis=1)
    ranks[own <= 0.0] = count  # q has no such token
    return np.bincount(ranks[ranks < count], minlength=count)[:count] / len(scores)


@dataclass(frozen=True, slots=True)
class Weights:
    """One text of the target under one rule.

    ``rows[t, i]`` is the chance that token t was accepted at the i-th candidate, given the text. ``ended``
    says that the text has its own end; one cut off has tokens behind the last block that is counted.
    """

    rows: DoubleArray
    ended: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """A tree's shape: ``parents`` as in a block, ``ranks[n]`` is which child of its parent n is (from 0)."""

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    @classmethod
    def chain(cls, nodes: int) -> Shape:
        """First candidates only."""
        return cls(tuple(range(-1, nodes - 1)), (0,) * nodes)

    def depths(self) -> list[int]:
        """Depth of each node, from 1."""
        return depths(self.parents)


def reaches(rows: DoubleArray, shape: Shape) -> DoubleArray:
    """P(at least d tokens of a block that begins at t are accepted): an array (len(rows), depth + 2).

    Candidates of different nodes are drawn independently of each other, so given the text a node's chance is
    the product along its path.
    """
    node_depths = shape.depths()
    deepest = max(node_depths, default=0)
    padded = np.concatenate([rows, np.zeros((deepest + 1, rows.shape[1]))])
    found = np.zeros((len(rows), deepest + 2))
    found[:, 0] = 1.0
    chances: list[DoubleArray] = []
    for parent, rank, depth in zip(shape.parents, shape.ranks, node_depths, strict=True):
        before = found[:, 0] if parent < 0 else chances[parent]
        chances.append(before * padded[depth - 1 : depth - 1 + len(rows), rank])
        found[:, depth] += chances[-1]
    return found


def decode(text: Weights, shape: Shape, margin: int) -> tuple[float, float]:
    """Expected tokens and passes of a text decoded block after block, the target's own tokens included.

    Blocks begin where the one before ended. In a text that was cut off the last ``margin`` tokens begin none,
    so that every block has the tokens that it could accept.
    """
    size = len(text.rows)
    found = reaches(text.rows, shape)
    begins = np.zeros(size + found.shape[1] + 1)
    begins[0] = 1.0
    tokens = passes = 0.0
    for start in range(size if text.ended else size - margin):
        passes += begins[start]
        for accepted in range(found.shape[1] - 1):
            chance = begins[start] * (found[start, accepted] - found[start, accepted + 1])
            tokens += chance * min(accepted + 1, size - start)
            begins[start + accepted + 1] += chance
    return tokens, passes


def best_shape(texts: Sequence[Weights], nodes: int, deepest: int) -> Shape:
    """The shape of ``nodes`` nodes that accepts most over blocks that begin at all positions of ``texts``.

    Sequoia's question, answered by the measured chance of each path instead of a product of means. Nodes are
    taken best first; a candidate needs its parent and the candidates before it.
    """
    padded = [np.concatenate([text.rows, np.zeros((deepest, text.rows.shape[1]))]) for text in texts]
    children = texts[0].rows.shape[1]

    def along(before: list[DoubleArray], depth: int, rank: int) -> tuple[float, list[DoubleArray]]:
        after = [one * rows[depth : depth + len(one), rank] for one, rows in zip(before, padded, strict=True)]
        return sum(float(one.sum()) for one in after), after

    heap: list[tuple[float, int, int, int, int, list[DoubleArray]]] = []
    made = 0

    def offer(parent: int, depth: int, rank: int, before: list[DoubleArray]) -> None:
        nonlocal made
        if depth < deepest and rank < children:
            chance, after = along(before, depth, rank)
            heapq.heappush(heap, (-chance, made, parent, depth, rank, after))
            made += 1

    chances = [[np.ones(len(text.rows)) for text in texts]]  # [n + 1] of node n
    offer(-1, 0, 0, chances[0])
    parents: list[int] = []
    ranks: list[int] = []
    while heap and len(parents) < nodes:
        _, _, parent, depth, rank, after = heapq.heappop(heap)
        parents.append(parent)
        ranks.append(rank)
        chances.append(after)
        offer(len(parents) - 1, depth + 1, 0, after)
        offer(parent, depth, rank + 1, chances[parent + 1])
    return Shape(tuple(parents), tuple(ranks))
