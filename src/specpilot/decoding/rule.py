"""What a rule of acceptance offers, and what the rules (:mod:`specpilot.decoding.acceptance`) share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from specpilot.control.types import AcceptanceName
from specpilot.decoding.distribution import DoubleArray, probabilities
from specpilot.decoding.types import Acceptance, Block, SamplingParams
from specpilot.models.base import FloatArray


class DraftStep(NamedTuple):
    """One draft position before its token is drawn.

    ``position`` is absolute (prompt and output counted, from 0), ``top`` the draft's likeliest token,
    ``confidence`` its probability in the distribution that is drawn from, ``q`` that distribution (vocab,),
    where the rule draws from one. Under shared noise both are of q as the noise weighs it.
    """

    position: int
    top: int
    confidence: float
    q: DoubleArray | None = None


class AcceptanceRule(Protocol):
    """How one request's tokens are drawn and accepted."""

    @property
    def name(self) -> AcceptanceName:
        """Of :attr:`specpilot.control.types.RequestInfo.acceptance`."""
        ...

    @property
    def needs_q(self) -> bool:
        """Whether :meth:`accept` must be given the q rows that the tokens were drawn from."""
        ...

    def coupled(self) -> AcceptanceRule:
        """The rule from now on if draft and target are to share their noise: of Rejection another one."""
        ...

    def look(self, logits: FloatArray, position: int) -> DraftStep:
        """The draft's distribution at an absolute position, from its ``logits`` (vocab,)."""
        ...

    def look_all(self, logits: FloatArray, positions: Sequence[int]) -> list[DraftStep]:
        """:meth:`look` at each row of ``logits`` (n, vocab): the nodes of a tree's draft step."""
        ...

    def draw(self, step: DraftStep) -> int:
        """The drafter's token for that position."""
        ...

    def choices(self, step: DraftStep, logits: FloatArray, count: int) -> Iterator[tuple[int, float]]:
        """The likeliest ``count`` tokens of that position, the one that :meth:`draw` gives first.

        With each its share: its probability among those not listed before it (of the first: its confidence).
        Who needs fewer stops asking: each is looked for when it is asked for, where the rule allows it.
        """
        ...

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        """Judge a block.

        Args:
            block: what was proposed.
            q: rows (len(block), vocab) that the tokens were drawn from, where ``needs_q``.
            target_logits: (len(block) + 1, vocab); row 0 after the context, row i + 1 after node i.
            position: absolute position of the first token after the context.
        """
        ...


def follow(block: Block, choose: Callable[[int, int], int]) -> Acceptance:
    """Walk down the tree along the target's tokens.

    Args:
        block: a chain or a token tree; of equal siblings the first is followed.
        choose: from (row, depth) to the target's token there. Row 0 is that of the last known token, row
            ``i + 1`` that of node ``i``; depth counts the nodes accepted so far.
    """
    if block.is_chain:  # the common case, without a table of children
        for depth, proposed in enumerate(block.token_ids):
            token = choose(depth, depth)
            if token != proposed:
                return Acceptance(tuple(range(depth)), token)
        return Acceptance(tuple(range(len(block))), choose(len(block), len(block)))
    children: dict[tuple[int, int], int] = {}
    for node, key in enumerate(zip(block.parents, block.token_ids, strict=True)):
        children.setdefault(key, node)
    path: list[int] = []
    node = -1
    while True:
        token = choose(node + 1, len(path))
        child = children.get((node, token))
        if child is None:
            return Acceptance(tuple(path), token)
        path.append(child)
        node = child


def likeliest(scores: npt.NDArray[np.floating[Any]], count: int, top: int | None = None) -> Iterator[int]:
    """The tokens of the ``count`` highest scores, best first; fewer where the vocabulary has fewer.

    Each is a search for a maximum: a few of them take less time than a partition. ``top``, if given, is the
    first, and known.
    """
    token = int(scores.argmax()) if top is None else top
    yield token
    left = scores.copy() if count > 1 else scores
    for _ in range(min(count, scores.size) - 1):
        left[token] = -np.inf
        token = int(left.argmax())
        if left[token] == -np.inf:
            return
        yield token


def shares(candidates: Iterable[tuple[int, float]], confidence: float) -> Iterator[tuple[int, float]]:
    """From tokens and their probabilities, best first, to tokens with their shares of what is not listed
    before them; the first with its confidence. What has no probability (top-k, top-p) is no candidate.
    """
    left = 1.0
    first = True
    for token, chance in candidates:
        if chance <= 0.0 and not first:
            return
        yield token, confidence if first else min(1.0, chance / left)
        first = False
        left = max(left - chance, 1e-9)


def shaped(logits: FloatArray, position: int, params: SamplingParams) -> DraftStep:
    """The distribution shaped by ``params`` (temperature, top-k, top-p), and its maximum."""
    q = probabilities(logits, params)
    top = int(q.argmax())
    return DraftStep(position, top, float(q[top]), q)


def drawn_from(step: DraftStep) -> DoubleArray:
    """The step's q.

    Raises:
        ValueError: for a step of a rule that draws from none.
    """
    if step.q is None:
        raise ValueError("step.q: None is not a distribution; pass on what this rule's look() returned")
    return step.q
