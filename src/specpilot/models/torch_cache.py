"""KV caches for transformers models: preallocated, and written by the model through its own cache API.

transformers' DynamicCache copies all rows whenever one is added (``torch.cat``), and its ``crop`` has changed
its meaning between versions. Here each sequence owns a :class:`TorchCache`; :func:`pass_cache` presents those
of a pass to the model as a transformers cache whose layers write the new rows behind those held. For one
sequence the layer returns a view; for several, a padded batch, which is the copy the engine forces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from specpilot.models.feed import check_path, check_truncate

_BLOCK_ROWS = 64
"""Capacities are multiples of this; a cache grows by half of what it has, at least."""


class TorchCache:
    """Implements :class:`~specpilot.models.base.KVCache`: per layer (1, H_kv, capacity, head_dim) tensors."""

    __slots__ = ("_stored", "owner", "tokens")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        """The model whose cache it is."""
        self.tokens: list[int] = []
        self._stored: list[tuple[Any, Any]] = []

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens held."""
        return self.tokens

    @property
    def nbytes(self) -> int:
        """Bytes allocated, on whatever device."""
        return sum(int(tensor.nbytes) for pair in self._stored for tensor in pair)

    def truncate(self, length: int) -> None:
        """Roll back to the first ``length`` rows; O(1) in the rows' size.

        Raises:
            ValueError: if there are not so many.
        """
        check_truncate(length, len(self.tokens))
        del self.tokens[length:]

    def keep_path(self, length: int, rows: Sequence[int]) -> None:
        """Keep ``length`` rows and the given later ones, moved up behind them.

        Raises:
            ValueError: unless ``rows`` are ascending, behind ``length``, and held.
        """
        check_path(length, rows, len(self.tokens))
        if list(rows) != list(range(length, length + len(rows))):
            moved = list(rows)
            with torch.inference_mode():  # as when the rows were written
                for pair in self._stored:
                    for tensor in pair:
                        # Indexing with a list copies, so overlapping rows are safe.
                        tensor[:, :, length : length + len(moved)] = tensor[:, :, moved]
        self.tokens[length:] = [self.tokens[row] for row in rows]

    def write(self, layer: int, keys: Any, values: Any) -> tuple[Any, Any]:
        """Put new rows, (1, H_kv, T, head_dim), behind those held; views of all, (1, H_kv, S, head_dim)."""
        held, width = len(self.tokens), keys.shape[-2]
        if layer == len(self._stored):
            empty = keys[..., :0, :]
            self._stored.append((empty, values[..., :0, :]))
        stored = tuple(
            _append(tensor, new, held)
            for tensor, new in zip(self._stored[layer], (keys, values), strict=True)
        )
        self._stored[layer] = (stored[0], stored[1])
        return stored[0][:, :, : held + width], stored[1][:, :, : held + width]


def _append(stored: Any, new: Any, held: int) -> Any:
    """``stored`` with ``new`` in place behind ``held`` rows; a larger tensor if they do not fit."""
    total, capacity = held + new.shape[-2], stored.shape[-2]
    if total > capacity:
        rows = -(-max(total, capacity + capacity // 2) // _BLOCK_ROWS) * _BLOCK_ROWS
        grown = new.new_zeros((*new.shape[:-2], rows, new.shape[-1]))
        grown[:, :, :held] = stored[:, :, :held]
        stored = grown
    stored[:, :, held:total] = new
    return stored


class _PassLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of the caches of a pass, as transformers wants to see it."""

    def __init__(self, index: int, parts: Sequence[tuple[TorchCache, int]]) -> None:
        super().__init__()
        self._index = index
        self._parts = parts
        self._held = max(len(cache.tokens) for cache, _ in parts)

    def get_seq_length(self) -> int:
        """Rows held, from which transformers derives mask and positions where it is given none."""
        return self._held

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Take the new rows, (B, H_kv, T, head_dim); all rows, (B, H_kv, S, head_dim), padded at the end."""
        if len(self._parts) == 1:
            return self._parts[0][0].write(self._index, key_states, value_states)
        total = self._held + key_states.shape[-2]
        keys = key_states.new_zeros((*key_states.shape[:-2], total, key_states.shape[-1]))
        values = value_states.new_zeros((*value_states.shape[:-2], total, value_states.shape[-1]))
        for row, (cache, width) in enumerate(self._parts):
            at = slice(row, row + 1)
            own = cache.write(self._index, key_states[at, :, :width], value_states[at, :, :width])
            keys[at, :, : own[0].shape[-2]], values[at, :, : own[1].shape[-2]] = own
        return keys, values


def pass_cache(parts: Sequence[tuple[TorchCache, int]], layers: int) -> Any:
    """A transformers cache of one pass; ``parts`` are each sequence's cache and number of new tokens."""
    return Cache(layers=[_PassLayer(index, parts) for index in range(layers)])


def as_tensor(values: Any, device: Any) -> Any:
    """A numpy array on a device."""
    return torch.from_numpy(values).to(device)
