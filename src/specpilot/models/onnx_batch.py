"""A pass over several sequences on ONNX Runtime, each with its own cache and width; no copies, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from specpilot.models.base import FloatArray, ForwardItem
from specpilot.models.feed import IntArray
from specpilot.models.onnx_cache import CacheShape, OnnxCache, bind_rows

if TYPE_CHECKING:
    import onnxruntime


@dataclass(slots=True)
class Rows:
    """A checked item: ``width`` tokens behind its cache's rows, attending to ``total`` columns.

    ``positions`` has shape (width,), ``mask`` (1, 1, width, total).
    """

    item: ForwardItem
    cache: OnnxCache
    width: int
    total: int
    positions: IntArray
    mask: FloatArray


class OnnxBatch:
    """The batch graph's session with the caches that are bound to its slots; safe for concurrent use.

    Binding a cache takes longer than anything else here, so a sequence stays in its slot as long as it takes
    part. The last caches bound stay in memory for that.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, shape: CacheShape, slots: int, vocab_size: int
    ) -> None:
        self._session = session
        self._vocab_size = vocab_size
        self._lock = Lock()
        self._binding = session.io_binding()
        # One row that an unused slot may write.
        self._idle: FloatArray = np.zeros((shape.layers, 2, shape.kv_heads, 1, shape.head_dim), np.float32)
        self._idle_mask: FloatArray = np.zeros((1, 1, 1, 1), dtype=np.float32)
        self._bound: list[FloatArray | None] = [None] * slots
        self._rows = np.zeros((slots, 2, 1), dtype=np.int32)
        self._widths = np.ones(slots, dtype=np.int64)
        self._binding.bind_cpu_input("widths", self._widths)
        for slot in range(slots):
            self._binding.bind_cpu_input(f"last_row.{slot}", self._rows[slot, 0])
            self._binding.bind_cpu_input(f"total.{slot}", self._rows[slot, 1])

    @property
    def slots(self) -> int:
        """Most sequences of a pass."""
        return len(self._bound)

    def run(self, parts: Sequence[Rows]) -> list[FloatArray]:
        """Compute the parts' rows, in place behind those held; each part's logits, (wanted, vocab)."""
        for part in parts:
            part.cache.reserve(part.total)
        with self._lock:
            placed = self._place(parts)
            tokens: list[int] = []
            positions: list[IntArray] = []
            wanted: list[IntArray] = []
            for slot, own in enumerate(placed):
                self._bind(slot, own)
                if own is None:
                    tokens.append(0)
                    positions.append(np.zeros(1, dtype=np.int64))
                    continue
                first = len(tokens) + own.item.logits_from
                tokens.extend(own.item.token_ids)
                positions.append(own.positions)
                wanted.append(np.arange(first, len(tokens)))
            binding = self._binding
            binding.bind_cpu_input("input_ids", np.array([tokens], dtype=np.int64))
            binding.bind_cpu_input("position_ids", np.concatenate(positions).reshape(1, -1))
            indices = np.concatenate(wanted)
            binding.bind_cpu_input("logit_indices", indices)
            logits = np.empty((len(indices), self._vocab_size), dtype=np.float32)
            binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
            self._session.run_with_iobinding(binding)
        ends = np.cumsum([len(rows) for rows in wanted])[:-1]
        present = [id(own) for own in placed if own is not None]
        by_part = dict(zip(present, np.split(logits, ends), strict=True))
        return [by_part[id(part)] for part in parts]

    def _place(self, parts: Sequence[Rows]) -> list[Rows | None]:
        """The parts by slots: where their caches are bound already, if they are."""
        placed: list[Rows | None] = [None] * self.slots
        new: list[Rows] = []
        for part in parts:
            for slot, bound in enumerate(self._bound):
                if bound is part.cache.buffer:
                    placed[slot] = part
                    break
            else:
                new.append(part)
        # Idle slots first: whoever is bound to another may be back in the next pass.
        free = [slot for slot in range(self.slots) if placed[slot] is None]
        free.sort(key=lambda slot: self._bound[slot] is not self._idle)
        for slot, part in zip(free, new, strict=False):
            placed[slot] = part
        return placed

    def _bind(self, slot: int, part: Rows | None) -> None:
        buffer = self._idle if part is None else part.cache.buffer
        if self._bound[slot] is not buffer:
            self._bound[slot] = None  # if binding fails half-way
            bind_rows(self._binding, buffer, slot)
            self._bound[slot] = buffer
        last, total, mask = 0, 1, self._idle_mask
        if part is not None:
            last, total, mask = len(part.cache.tokens) + part.width - 1, part.total, part.mask
        self._widths[slot] = 1 if part is None else part.width
        self._rows[slot, :, 0] = last, total
        self._binding.bind_cpu_input(f"attention_mask.{slot}", mask)
