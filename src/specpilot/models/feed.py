"""What every engine checks and derives of a :class:`~specpilot.models.base.ForwardItem`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from specpilot.models.base import ContextLimitError, FloatArray, ForwardItem

IntArray = npt.NDArray[np.int64]

MASKED = np.float32(-1e30)
"""Added to a score that must not count: far below any score, and still finite when a score is added to it
(−inf would make a row of nothing but masked scores NaN)."""


def check_item(item: ForwardItem, vocab_size: int, context_limit: int) -> bool:
    """Check an item against its model; whether its tokens are a chain.

    Raises:
        ContextLimitError: if its rows would exceed ``context_limit``.
        ValueError: for no tokens, a token outside the vocabulary, a bad parent or ``logits_from``.
    """
    tokens, size = item.token_ids, len(item.token_ids)
    if not size:
        raise ValueError("token_ids: there are none; feed at least one token")
    if not 0 <= item.logits_from < size:
        raise ValueError(
            f"logits_from: {item.logits_from} is not in 0…{size - 1}; logits are of the fed tokens"
        )
    low, high = min(tokens), max(tokens)
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"token_ids: {low if low < 0 else high} is not in 0…{vocab_size - 1}; is it another tokenizer's?"
        )
    held = len(item.cache.token_ids)
    if held + size > context_limit:
        raise ContextLimitError(
            f"token_ids: {held} cached and {size} more exceed the context of {context_limit} tokens; "
            f"feed at most {context_limit - held}, or shorten the prompt"
        )
    if item.trunk is None:
        return item.parents is None or _check_parents(item.parents, size)
    if not 0 <= item.trunk <= held or item.parents is None:
        raise ValueError(
            f"trunk: {item.trunk} with {held} rows cached and parents {item.parents}; give the rows that "
            "everybody sees, and the parents of all rows behind them"
        )
    _check_parents(item.parents, held - item.trunk + size)
    return False


def check_distinct(items: Sequence[ForwardItem]) -> None:
    """Refuse a cache that is in two items of one pass: its rows would have no order.

    Raises:
        ValueError: if there is one.
    """
    if len({id(item.cache) for item in items}) < len(items):
        raise ValueError("items: two of them share a cache; give each sequence its own")


def check_truncate(length: int, held: int) -> None:
    """Check the argument of ``KVCache.truncate``.

    Raises:
        ValueError: if there are not so many rows.
    """
    if not 0 <= length <= held:
        raise ValueError(f"length: {length} is not in 0…{held}, the rows held")


def check_path(length: int, rows: Sequence[int], held: int) -> None:
    """Check the arguments of ``KVCache.keep_path``.

    Raises:
        ValueError: unless 0 ≤ length ≤ rows[0] < rows[1] < … < held.
    """
    check_truncate(length, held)
    before = length - 1
    for row in rows:
        if not before < row < held:
            raise ValueError(
                f"rows: {row} is not in {before + 1}…{held - 1}; give rows behind length, ascending"
            )
        before = row


def tree_layout(parents: Sequence[int], trunk: int, width: int, columns: int) -> tuple[FloatArray, IntArray]:
    """What a tree's last ``width`` nodes see, and where they are.

    A node sees the ``trunk``, its ancestors and itself. Only the path from each of these nodes up to the
    chain that the tree may begin with is walked.

    Returns:
        The additive mask, (width, columns) with ``columns`` ≥ trunk + T: row i for the i-th of these nodes,
        columns for the trunk, the T nodes, and any more rows that nobody sees; absolute positions, (width,):
        the predecessor's plus one.
    """
    size = len(parents)
    first = size - width
    chain = 0  # nodes that lead the tree one after the other: the context that is not cached yet
    while chain < size and parents[chain] == chain - 1:
        chain += 1
    straight = max(0, chain - first)
    mask = np.zeros((width, columns), dtype=np.float32)
    mask[:, trunk + max(0, min(first, chain)) :] = MASKED
    positions = list(range(trunk + first, trunk + first + straight))
    if straight:
        mask[:straight, trunk + first : trunk + chain][np.tri(straight, dtype=np.bool_)] = 0.0
    for row in range(straight, width):
        node = first + row
        depth = 0
        while node >= chain:
            mask[row, trunk + node] = 0.0
            node = parents[node]
            depth += 1
        # ``node`` is now the last one of the chain that this one sees.
        if chain:
            mask[row, trunk : trunk + node + 1] = 0.0
            mask[row, trunk + node + 1 : trunk + chain] = MASKED
        positions.append(trunk + node + depth)
    return mask, np.array(positions, dtype=np.int64)


def _check_parents(parents: Sequence[int], size: int) -> bool:
    """Whether the (valid) parents make a chain."""
    if len(parents) != size:
        raise ValueError(
            f"parents: {len(parents)} for {size} tokens; give one per token, or None for a chain"
        )
    chain = True
    for index, parent in enumerate(parents):
        if not -1 <= parent < index:
            raise ValueError(
                f"parents[{index}]: {parent} is not in −1…{index - 1}; order parents before children"
            )
        chain = chain and parent == index - 1
    return chain
