"""Causal language models on ONNX Runtime: any Llama-family Hugging Face folder, no torch.

A pass over one sequence copies no keys or values (see :mod:`~specpilot.models.onnx_cache`) and, for a chain,
builds no mask: the attention is causal by itself, so a slice of one array of zeros serves all chains.

Several items run one after the other within a call. Measured on the bundled pair (CPU, float32), a padded
batch gained nothing: a pass over a block is bound by arithmetic, so merging saves little more than copying
all caches into a batch tensor costs, and the padding of a prefill beside short blocks is far worse.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from specpilot.models.base import FloatArray, ForwardItem
from specpilot.models.feed import check_distinct, check_item, tree_mask, tree_positions
from specpilot.models.llama_config import LlamaConfig, read_config
from specpilot.models.llama_graph import FILE_NAME, build_graph, export_onnx, graph_key
from specpilot.models.onnx_cache import CacheShape, OnnxCache
from specpilot.models.safetensors_index import read_index

_FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


class OnnxCausalLM:
    """Implements :class:`~specpilot.models.base.CausalLM`.

    Args:
        folder: a Hugging Face folder (config.json, safetensors). If it has no fitting model.onnx, one is
            built, in memory where the folder cannot be written; that needs the ``onnx`` package.
        threads: ONNX Runtime's threads for one pass, ≥ 1.
        name: by default the folder's.

    Raises:
        ValueError: if the folder holds no model that the engine can run; the message says what to do.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int = 1, *, name: str | None = None) -> None:
        if threads < 1:
            raise ValueError(f"threads: {threads} is not ≥ 1; 1 gives the steadiest times")
        path = Path(folder)
        self._config = read_config(path)
        self._session = _load(path, self._config, threads)
        self._name = name or path.resolve().name
        config = self._config
        # One row more than the context, see _run.
        self._shape = CacheShape(config.layers, config.kv_heads, config.head_dim, config.context_limit + 1)
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
        checked: list[tuple[ForwardItem, OnnxCache, bool]] = []
        for item in items:
            cache = item.cache
            if not isinstance(cache, OnnxCache) or cache.session is not self._session:
                raise ValueError(f"cache: it is not one of {self._name}'s; make it with new_cache()")
            chain = check_item(item, self._config.vocab_size, self._config.context_limit)
            checked.append((item, cache, chain))
        logits = [self._run(item, cache, chain) for item, cache, chain in checked]
        # Rows behind those held are never read, so until here nothing has changed for anybody.
        for item, cache, _ in checked:
            cache.tokens.extend(item.token_ids)
        return logits

    def _run(self, item: ForwardItem, cache: OnnxCache, chain: bool) -> FloatArray:
        """Compute one item's rows, in place behind those held; logits (wanted, vocab)."""
        held, width = len(cache.tokens), len(item.token_ids)
        total = held + width
        if chain or item.parents is None:
            positions = self._indices[held:total]
            mask = self._zero_mask(width * total)
        else:
            positions = tree_positions(item.parents, held)
            mask = tree_mask(item.parents, held)
            if not held:
                # Where S = T the attention takes positions to be 0, 1, 2, …; one row more that nobody sees
                # (``last_rows`` ends before it) makes it read them.
                mask = np.pad(mask, ((0, 0), (0, 1)))
                total += 1
        binding = cache.reserve(total)
        # Each bind keeps its array alive, so temporaries are safe.
        binding.bind_cpu_input("input_ids", np.array([item.token_ids], dtype=np.int64))
        binding.bind_cpu_input("position_ids", positions.reshape(1, width))
        binding.bind_cpu_input("attention_mask", mask.reshape(1, 1, width, total))
        wanted = (item.logits_from, width)
        if cache.logit_range != wanted:
            binding.bind_cpu_input("logit_indices", self._indices[wanted[0] : wanted[1]])
            cache.logit_range = wanted
        cache.rows[0, 0] = held + width - 1
        cache.rows[1, 0] = total
        logits = np.empty((width - item.logits_from, self._config.vocab_size), dtype=np.float32)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        return logits

    def _zero_mask(self, size: int) -> FloatArray:
        if size > self._zeros.size:
            self._zeros = np.zeros(size, dtype=np.float32)
        return self._zeros[:size]


def _load(folder: Path, config: LlamaConfig, threads: int) -> onnxruntime.InferenceSession:
    """A session of the folder's graph, which is built anew where it is missing or does not fit."""
    index = read_index(folder)
    path = (folder / FILE_NAME).resolve()
    graph: str | bytes = str(path)
    if (
        path.parent != index.folder
    ):  # a hub cache's links; ONNX Runtime reads no data outside the graph's folder
        graph = build_graph(folder)
    elif not path.is_file() or graph_key(config, index).encode() not in path.read_bytes():
        # Missing, or the weights were replaced by others of another layout, or config.json was edited.
        try:
            graph = str(export_onnx(folder))
        except OSError:  # a read-only folder
            graph = build_graph(folder)
    return _session(graph, index.folder, threads)


def _session(graph: str | bytes, weights: Path, threads: int) -> onnxruntime.InferenceSession:
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Waiting threads sleep: a spinning pool takes the cores from the other model of the pair.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if isinstance(graph, bytes):
        options.add_session_config_entry(_FOLDER_OPTION, str(weights))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
