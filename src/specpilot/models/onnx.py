"""Causal language models on ONNX Runtime: any Llama-family Hugging Face folder, no torch.

A pass copies no keys or values (see :mod:`~specpilot.models.onnx_cache`) and, for a chain, builds no mask:
the attention is causal by itself, so a slice of one array of zeros serves all chains.

Several items run up to ``BATCH_SLOTS`` at a time in one pass of a second graph that computes the same, to the
last bit where it was compared. It needs a session of its own, and ONNX Runtime's sessions cannot share
float32 weights: ``batching=False`` saves that memory, and items then run one after the other. Measured on the
bundled pair (one thread, 128 cached tokens each; benchmarks/bench_engine.py), time of a shared pass ÷ time
one after the other: target, 4 items, 0.46 for a token each, 0.64 for 5, 0.71 for 9, about 0.9 for 17 or more;
2 items 0.77, 0.84, 0.89; draft, 4 items, 0.71 for a token each, but 1.3 for 2 items. Hence the limits below.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from specpilot.models.base import FloatArray, ForwardItem
from specpilot.models.feed import check_distinct, check_item, tree_layout
from specpilot.models.llama_config import read_config
from specpilot.models.llama_graph import BATCH_SLOTS
from specpilot.models.onnx_batch import OnnxBatch, Rows
from specpilot.models.onnx_cache import CacheShape, OnnxCache
from specpilot.models.onnx_session import open_session
from specpilot.models.safetensors_index import read_index

_NARROW = 16
"""Widest item that shares a pass: a wider one (a prefill) keeps the processor busy by itself."""
_STREAMED_BYTES = 16_000_000
"""From this size on, a pass over few tokens takes the time of reading the weights from memory."""


class OnnxCausalLM:
    """Implements :class:`~specpilot.models.base.CausalLM`.

    Args:
        folder: a Hugging Face folder (config.json, safetensors). If it has no fitting graphs, they are
            built, in memory where the folder cannot be written; that needs the ``onnx`` package.
        threads: ONNX Runtime's threads for one pass, ≥ 1.
        name: by default the folder's.
        batching: whether several items share a pass, at the price of the weights' memory once more.

    Raises:
        ValueError: if the folder holds no model that the engine can run; the message says what to do.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        threads: int = 1,
        *,
        name: str | None = None,
        batching: bool = True,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads: {threads} is not ≥ 1; 1 gives the steadiest times")
        self.one_thread = threads == 1
        """See :func:`specpilot.models.base.runs_in_one_thread`."""
        path = Path(folder)
        config = read_config(path)
        self._config = config
        self._name = name or path.resolve().name
        # One row more than the context, see _layout.
        self._shape = CacheShape(config.layers, config.kv_heads, config.head_dim, config.context_limit + 1)
        self._session = open_session(path, config, threads, 1)
        # Shared reading pays for an idle slot's arithmetic; a small model has only the arithmetic.
        self._fewest = 2 if read_index(path).elements * 4 >= _STREAMED_BYTES else BATCH_SLOTS
        self._batch: OnnxBatch | None = None
        if batching:
            session = open_session(path, config, threads, BATCH_SLOTS)
            self._batch = OnnxBatch(session, self._shape, BATCH_SLOTS, config.vocab_size)
        self._indices = np.arange(config.context_limit, dtype=np.int64)
        self._zeros: FloatArray = np.zeros(config.context_limit, dtype=np.float32)

    @property
    def name(self) -> str:
        """The folder's name, unless another was given."""
        return self._name

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self._config.vocab_size

    @property
    def context_limit(self) -> int:
        """Most rows a cache may hold (``max_position_embeddings``)."""
        return self._config.context_limit

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        return self._config.eos_token_ids

    def new_cache(self) -> OnnxCache:
        """An empty cache; memory is taken as it fills."""
        return OnnxCache(self._session, self._shape)

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        """See :meth:`specpilot.models.base.CausalLM.forward`."""
        if len(items) > 1:
            check_distinct(items)
        parts = [self._layout(item) for item in items]
        if self._batch is None or len(parts) == 1:
            logits = [self._run(part) for part in parts]
        else:
            logits = self._run_together(parts, self._batch)
        # Rows behind those held are never read, so until here nothing has changed for anybody.
        for part in parts:
            part.cache.tokens.extend(part.item.token_ids)
        return logits

    def _run_together(self, parts: Sequence[Rows], batch: OnnxBatch) -> list[FloatArray]:
        """Compute all items' rows, in passes of several where that is faster."""
        narrow = [index for index, part in enumerate(parts) if part.width <= _NARROW]
        logits: dict[int, FloatArray] = {}
        for start in range(0, len(narrow), batch.slots):
            group = narrow[start : start + batch.slots]
            if len(group) >= self._fewest:
                rows = batch.run([parts[index] for index in group])
                logits.update(zip(group, rows, strict=True))
        for index, part in enumerate(parts):
            if index not in logits:
                logits[index] = self._run(part)
        return [logits[index] for index in range(len(parts))]

    def _layout(self, item: ForwardItem) -> Rows:
        """Check an item; where its rows go and what they see."""
        cache = item.cache
        if not isinstance(cache, OnnxCache) or cache.session is not self._session:
            raise ValueError(f"cache: it is not one of {self._name}'s; make it with new_cache()")
        chain = check_item(item, self._config.vocab_size, self._config.context_limit)
        held, width = len(cache.tokens), len(item.token_ids)
        total = held + width
        if chain or item.parents is None:
            positions = self._indices[held:total]
            mask = self._zero_mask(width * total)
        else:
            trunk = held if item.trunk is None else item.trunk
            # Where S = T the attention takes positions to be 0, 1, 2, …; one row more that nobody sees
            # (``last_row`` ends before it) makes it read them.
            total += not held
            mask, positions = tree_layout(item.parents, trunk, width, total)
        return Rows(item, cache, width, total, positions, mask.reshape(1, 1, width, total))

    def _run(self, part: Rows) -> FloatArray:
        """Compute one item's rows, in place behind those held; logits (wanted, vocab)."""
        cache, first, width = part.cache, part.item.logits_from, part.width
        binding = cache.reserve(part.total)
        # Each bind keeps its array alive, so temporaries are safe.
        binding.bind_cpu_input("input_ids", np.array([part.item.token_ids], dtype=np.int64))
        binding.bind_cpu_input("position_ids", part.positions.reshape(1, width))
        binding.bind_cpu_input("attention_mask.0", part.mask)
        if cache.logit_range != (first, width):
            binding.bind_cpu_input("logit_indices", self._indices[first:width])
            cache.logit_range = (first, width)
        cache.rows[0, 0] = len(cache.tokens) + width - 1
        cache.rows[1, 0] = part.total
        logits = np.empty((width - first, self._config.vocab_size), dtype=np.float32)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        return logits

    def _zero_mask(self, size: int) -> FloatArray:
        if size > self._zeros.size:
            self._zeros = np.zeros(size, dtype=np.float32)
        return self._zeros[:size]
