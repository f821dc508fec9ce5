"""KV caches for ONNX Runtime: preallocated, written in place by the graph, rolled back by forgetting.

All layers share one buffer of shape (layers, 2, H_kv, capacity, head_dim), float32; [:, 0] are the keys
(already rotated), [:, 1] the values. The graph's cache inputs *and* outputs are bound to it, so a pass
appends its rows without a copy, and what lies behind the rows held is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from specpilot.models.base import FloatArray
from specpilot.models.feed import check_path, check_truncate

if TYPE_CHECKING:
    import onnxruntime

_BLOCK_ROWS = 64
"""Capacities are multiples of this; a cache grows by half of what it has, at least."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The part of a cache's shape that the model fixes, and the largest capacity."""

    layers: int
    kv_heads: int
    head_dim: int
    most_rows: int


class OnnxCache:
    """Implements :class:`~specpilot.models.base.KVCache` for one session. Not for concurrent use."""

    __slots__ = ("_session", "_shape", "binding", "buffer", "logit_range", "rows", "tokens")

    def __init__(self, session: onnxruntime.InferenceSession, shape: CacheShape) -> None:
        self._session = session
        self._shape = shape
        self.buffer: FloatArray = np.zeros((shape.layers, 2, shape.kv_heads, 0, shape.head_dim), np.float32)
        """The rows; another one after the cache has grown."""
        self.tokens: list[int] = []
        self.binding: onnxruntime.IOBinding | None = None
        """The buffer bound to the session; None until there is one."""
        self.rows = np.zeros((2, 1), dtype=np.int32)
        """``last_row`` and ``total``: bound once, written before each pass."""
        self.logit_range = (0, 0)
        """What ``logit_indices`` is bound to."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens held."""
        return self.tokens

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.buffer.nbytes

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """The session whose caches these are."""
        return self._session

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
        kept = length
        while kept < length + len(rows) and rows[kept - length] == kept:  # these are in place already
            kept += 1
        moved = list(rows[kept - length :])
        if moved:
            # Indexing with a list copies, so overlapping rows are safe.
            self.buffer[:, :, :, kept : kept + len(moved)] = self.buffer[:, :, :, moved]
        self.tokens[kept:] = [self.tokens[row] for row in moved]

    def reserve(self, rows: int) -> onnxruntime.IOBinding:
        """Make room for ``rows`` rows in all; returns the binding of the buffer that has it."""
        capacity = self.buffer.shape[3]
        if self.binding is None or rows > capacity:
            held = len(self.tokens)
            wanted = -(-max(rows, capacity + capacity // 2) // _BLOCK_ROWS) * _BLOCK_ROWS
            shape = self._shape
            grown = np.zeros(
                (shape.layers, 2, shape.kv_heads, min(wanted, shape.most_rows), shape.head_dim),
                np.float32,
            )
            grown[:, :, :, :held] = self.buffer[:, :, :, :held]
            binding = self._session.io_binding()
            bind_rows(binding, grown, 0)
            binding.bind_cpu_input("last_row.0", self.rows[0])
            binding.bind_cpu_input("total.0", self.rows[1])
            self.binding, self.buffer, self.logit_range = binding, grown, (0, 0)
        return self.binding


def bind_rows(binding: onnxruntime.IOBinding, buffer: FloatArray, slot: int) -> None:
    """Bind a buffer as a slot's cache inputs and outputs. Only the address is kept: keep the buffer alive."""
    for layer in range(buffer.shape[0]):
        for index, kind in enumerate("kv"):
            part = buffer[layer, index][np.newaxis]
            address, shape = part.ctypes.data, part.shape
            binding.bind_input(f"past_{kind}.{layer}.{slot}", "cpu", 0, np.float32, shape, address)
            binding.bind_output(f"new_{kind}.{layer}.{slot}", "cpu", 0, np.float32, shape, address)
