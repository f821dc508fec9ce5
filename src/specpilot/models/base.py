"""What an engine must offer: a causal language model with a KV cache that can be rolled back.

Draft and target models are the same kind of thing and both engines (ONNX Runtime, transformers)
implement these two protocols; drafters and targets are written once, on top of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class ContextLimitError(ValueError):
    """The tokens do not fit the model's context; the message says how many do."""


class KVCache(Protocol):
    """Keys and values of one sequence, and the tokens that they belong to."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens whose keys and values are held, in row order. Do not modify."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes (allocated, not only used)."""
        ...

    def truncate(self, length: int) -> None:
        """Roll back to the first ``length`` rows; O(1) where the engine allows it."""
        ...

    def keep_path(self, length: int, rows: Sequence[int]) -> None:
        """Keep the first ``length`` rows, then the given later ``rows`` (ascending) moved up behind them.

        This commits one path of a verified token tree; for a chain it is a truncation.
        """
        ...


@dataclass(frozen=True, slots=True)
class ForwardItem:
    """One sequence's part in a forward pass.

    ``token_ids`` (at least one) are appended to ``cache``. ``parents[i]`` is the index (within
    ``token_ids``) of token i's predecessor, −1 for the last row already cached; ``None`` means a
    chain. A token attends to all cached rows, its ancestors and itself; its position is that of its
    predecessor plus one. Logits are wanted for the tokens from index ``logits_from`` on.

    A tree can be fed in parts: ``trunk`` then says how many cached rows everybody sees, and ``parents``
    covers all rows behind them, those of earlier parts first (−1: the trunk's last row).
    """

    cache: KVCache
    token_ids: Sequence[int]
    parents: Sequence[int] | None = None
    logits_from: int = 0
    trunk: int | None = None


class CausalLM(Protocol):
    """A causal language model on some engine."""

    @property
    def name(self) -> str:
        """What it is called in messages and reports."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are below it; as wide are the logits."""
        ...

    @property
    def context_limit(self) -> int:
        """Most rows a cache may hold."""
        ...

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an output; may be empty."""
        ...

    def new_cache(self) -> KVCache:
        """An empty cache for one sequence."""
        ...

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        """One forward pass over all items; each cache grows by its item's tokens.

        Returns one float32 array of shape ``(len(token_ids) − logits_from, vocab_size)`` per item.
        The arrays belong to the caller. On an exception no cache has grown.

        Raises:
            ContextLimitError: if an item would exceed ``context_limit``.
            ValueError: for an empty item, a token id outside the vocabulary, or a bad parent.
        """
        ...


def runs_in_one_thread(model: CausalLM) -> bool:
    """Whether the model's passes keep to the thread that asks for them, as an engine may say of itself.

    Only such a model may be called from a thread that is kept on one core
    (:mod:`specpilot.drafters.core`): an engine's own threads, started then, would be kept there for good.
    """
    return bool(getattr(model, "one_thread", False))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two token sequences."""
    if type(a) is not type(b):  # a tuple's slice never equals a list's
        a, b = tuple(a), tuple(b)
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit  # a[:low] == b[:low] and a[:high] != b[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def catch_up(cache: KVCache, context: Sequence[int]) -> list[int]:
    """Make ``cache`` a cache of ``context`` less its last tokens; return those that must be fed.

    This one rule covers rollback after a rejection, the bonus token after a full accept (it has not
    been fed yet, so it is in the answer) and the reuse of an earlier request's cache: whatever the
    cache holds beyond the common prefix is dropped. At least one token is always returned, since
    the logits after ``context`` need a forward pass over its last token.

    Raises:
        ValueError: if ``context`` is empty.
    """
    if not context:
        raise ValueError("context: at least one token is needed (start an empty prompt with BOS or EOS)")
    shared = min(common_prefix(cache.token_ids, context), len(context) - 1)
    cache.truncate(shared)
    return list(context[shared:])
