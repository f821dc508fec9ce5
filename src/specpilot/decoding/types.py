"""The records of the decoding cycle: blocks, drafts, verifications, requests' sampling parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from specpilot.models.base import FloatArray


def depths(parents: Sequence[int]) -> list[int]:
    """The depth of each node, from 1, of nodes in topological order."""
    found: list[int] = []
    for parent in parents:
        found.append(1 if parent < 0 else found[parent] + 1)
    return found


@dataclass(frozen=True, slots=True)
class Block:
    """A token tree in topological order: ``parents[i] < i``, −1 for a child of the last known token.

    A chain is the tree with one branch: ``parents == (-1, 0, 1, …)``.

    Raises:
        ValueError: if the two differ in length or a parent does not come before its child.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    main_chain: int = field(init=False, repr=False, compare=False)
    """How many nodes lead the block as a chain; the others are beside it."""

    def __post_init__(self) -> None:
        parents, size = self.parents, len(self.parents)
        if len(self.token_ids) != size:
            raise ValueError(f"parents: {size} for {len(self.token_ids)} tokens; give one per token")
        chain = size
        for index, parent in enumerate(parents):
            if parent != index - 1:
                if not -1 <= parent < index:
                    raise ValueError(
                        f"parents[{index}]: {parent} is not in −1…{index - 1}; order parents before children"
                    )
                chain = min(chain, index)
        # Kept, since every part of a cycle asks for it.
        object.__setattr__(self, "main_chain", chain)

    @classmethod
    def chain(cls, token_ids: Sequence[int]) -> Block:
        """The block that proposes ``token_ids`` one after the other."""
        return cls(tuple(token_ids), tuple(range(-1, len(token_ids) - 1)))

    @property
    def is_chain(self) -> bool:
        """Whether every node is the child of the one before."""
        return self.main_chain == len(self.parents)

    @property
    def depth(self) -> int:
        """Length of the longest path."""
        if self.is_chain:
            return len(self.token_ids)
        return max(depths(self.parents), default=0)

    def __len__(self) -> int:
        return len(self.token_ids)


EMPTY_BLOCK = Block((), ())


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn; temperature, top-k and top-p are applied alike to p and q.

    ``temperature == 0`` is greedy. With a ``seed`` sampling is *coupled*: the same prompt and seed
    give the same text whatever τ was. ``top_k == 0`` and ``top_p == 1`` are off.

    Raises:
        ValueError: for a temperature that is not ≥ 0 and finite, a ``top_k`` below 0, or a ``top_p`` outside
            (0, 1].
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature: {self.temperature} is not ≥ 0 and finite; use 0 for greedy decoding"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k: {self.top_k} is not ≥ 0; use 0 to switch it off")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p: {self.top_p} is not in (0, 1]; use 1 to switch it off")


@dataclass(frozen=True, slots=True)
class Draft:
    """What a drafter proposes for one request in one cycle.

    ``confidences`` holds max q (under coupled sampling, of q as the noise weighs it) for each *computed*
    position, in order, so it may be one longer than the block (the last token computed was not kept). ``q``
    has one row (vocab,) per proposed token where the acceptance rule needs it, else ``None``. Times in ms;
    ``prefill_*`` is the part spent on bringing the draft's cache in step. ``fault`` is set where the drafter
    failed: the block is then empty and the cycle decodes with the target alone.

    Of a token tree ``main`` says how many nodes lead the block as the drafter's own first choices
    (``None``: as many as lead it as a chain), ``ranks`` and ``shares`` what choice each node is and how
    likely among those not ranked before it (:mod:`specpilot.control.tree`), ``steps`` how many draft steps
    were made, ``side_worth`` what the nodes beside that chain are taken to be worth, in tokens (None: a tree
    was not asked for). ``looked_up`` is what text seen before would have gone on with, and its confidence,
    proposed or not; ``drafter`` names the source of a block that is not the usual drafter's.
    """

    block: Block = EMPTY_BLOCK
    confidences: tuple[float, ...] = ()
    q: FloatArray | None = None
    draft_ms: float = 0.0
    prefill_ms: float = 0.0
    prefill_tokens: int = 0
    fault: str | None = None
    main: int | None = None
    ranks: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()
    steps: int | None = None
    side_worth: float | None = None
    looked_up: tuple[tuple[int, ...], float] | None = None
    drafter: str | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """One request's part of a target pass.

    ``logits`` has shape ``(len(block) + 1, vocab)``: row 0 is the target's distribution after the
    context, row i + 1 the one after node i. ``context_tokens`` is what the KV cache held before,
    ``new_tokens`` the width of the pass for this request; ``verify_ms`` the pass's wall time (the
    same for all requests that shared it).
    """

    logits: FloatArray
    context_tokens: int
    new_tokens: int
    verify_ms: float


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What verification accepted: ``path`` are the block's accepted node indices from the root on,
    ``next_token`` the target's own token after them (recovered if a proposed token was rejected,
    bonus if the path ran to a leaf).
    """

    path: tuple[int, ...]
    next_token: int
