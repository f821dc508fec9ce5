"""Causal language models on Hugging Face transformers: any decoder with full attention, on a CPU or a GPU.

Several items run as one padded batch where their widths are alike; a prefill beside short blocks is run
apart, since every item of a batch is padded to the widest. Results differ from one at a time by rounding.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache, DynamicLayer

from specpilot.models.base import FloatArray, ForwardItem
from specpilot.models.feed import check_distinct, check_item, tree_layout
from specpilot.models.torch_cache import TorchCache, as_tensor, pass_cache

_NEEDED = ("attention_mask", "position_ids", "past_key_values")
_MASK_AWARE = ("sdpa", "eager")
_PADDING = 8
"""An item joins a batch if at most this many rows are padded for it: about a pass's fixed cost."""


class TransformersCausalLM:
    """Implements :class:`~specpilot.models.base.CausalLM`.

    Args:
        model: a loaded model, a local folder, or a hub id.
        device: by default a GPU if there is one, else the CPU; a loaded model stays where it is.
        dtype: a torch dtype or its name. By default float32 on a CPU and the checkpoint's own on a GPU; a
            loaded model keeps its own.
        name: by default the folder's name or the hub id.
        context_limit: most rows of a cache, for a model whose configuration does not say.

    Raises:
        ValueError: if the model's cache cannot be rolled back (sliding windows, recurrent states), it does
            not take a mask and positions, or its context is unknown; the message says what to do.
        OSError: from transformers, if the model is not found.
    """

    def __init__(
        self,
        model: Any,
        device: Any = None,
        dtype: Any = None,
        *,
        name: str | None = None,
        context_limit: int | None = None,
    ) -> None:
        if isinstance(model, str | os.PathLike):
            source, loaded = str(model), _load(model, device, dtype)
        else:
            if device is not None or dtype is not None:
                raise ValueError(
                    "device, dtype: a loaded model keeps its own; leave them out, or give its folder"
                )
            source, loaded = model.config._name_or_path, model
        self._model = loaded.eval()
        self._config = loaded.config.get_text_config(decoder=True)
        self._name = name or (Path(source).resolve().name if Path(source).is_dir() else source) or "model"
        self._keeps_logits = _check_forward(loaded, self._name)
        self._layers = _check_cache(self._config, self._name)
        self._context_limit = _context_limit(self._config, self._name, context_limit)
        self._eos = _eos(loaded)

    @property
    def name(self) -> str:
        """The folder's name or the hub id, unless another was given."""
        return self._name

    @property
    def vocab_size(self) -> int:
        """The configuration's; it may count rows that no token has."""
        return int(self._config.vocab_size)

    @property
    def context_limit(self) -> int:
        """Most rows a cache may hold (``max_position_embeddings``)."""
        return self._context_limit

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        return self._eos

    def new_cache(self) -> TorchCache:
        """An empty cache; memory is taken as it fills."""
        return TorchCache(self)

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        """See :meth:`specpilot.models.base.CausalLM.forward`.

        Raises:
            ContextLimitError: if an item would exceed ``context_limit``.
            ValueError: for another model's cache, one cache twice, an empty item, a token id outside the
                vocabulary, or a bad parent.
        """
        check_distinct(items)
        checked: list[tuple[ForwardItem, TorchCache, bool]] = []
        for item in items:
            cache = item.cache
            if not isinstance(cache, TorchCache) or cache.owner is not self:
                raise ValueError(f"cache: it is not one of {self._name}'s; make it with new_cache()")
            chain = check_item(item, self.vocab_size, self._context_limit)
            checked.append((item, cache, chain))
        logits: dict[int, FloatArray] = {}
        with torch.inference_mode():
            for group in _groups([len(item.token_ids) for item in items]):
                rows = self._run([checked[index] for index in group])
                logits.update(zip(group, rows, strict=True))
        # Rows behind those held are never read, so until here nothing has changed for anybody.
        for item, cache, _ in checked:
            cache.tokens.extend(item.token_ids)
        return [logits[index] for index in range(len(items))]

    def _run(self, parts: Sequence[tuple[ForwardItem, TorchCache, bool]]) -> list[FloatArray]:
        """One pass of the model; each item's logits, (wanted, vocab)."""
        widths = [len(item.token_ids) for item, _, _ in parts]
        width = max(widths)
        first = min(item.logits_from for item, _, _ in parts)
        ids = np.zeros((len(parts), width), dtype=np.int64)
        positions = np.zeros((len(parts), width), dtype=np.int64)
        for row, (item, cache, chain) in enumerate(parts):
            held = len(cache.tokens)
            ids[row, : widths[row]] = item.token_ids
            if chain or item.parents is None:
                positions[row, : widths[row]] = np.arange(held, held + widths[row])
            else:
                trunk = held if item.trunk is None else item.trunk
                positions[row, : widths[row]] = tree_layout(
                    item.parents, trunk, widths[row], held + widths[row]
                )[1]
        device = self._model.device
        keep = {"logits_to_keep": width - first} if self._keeps_logits else {}
        output = self._model(
            input_ids=as_tensor(ids, device),
            position_ids=as_tensor(positions, device),
            attention_mask=self._mask(parts, width),
            past_key_values=pass_cache(
                [(cache, widths[row]) for row, (_, cache, _) in enumerate(parts)], self._layers
            ),
            use_cache=True,
            **keep,
        )
        kept: FloatArray = output.logits[:, -(width - first) :, : self.vocab_size].float().cpu().numpy()
        return [
            kept[row, item.logits_from - first : widths[row] - first]
            for row, (item, _, _) in enumerate(parts)
        ]

    def _mask(self, parts: Sequence[tuple[ForwardItem, TorchCache, bool]], width: int) -> Any:
        """Additive mask (B, 1, T, S), or None for a single chain, where the model makes its own."""
        if len(parts) == 1 and parts[0][2]:
            return None
        most_held = max(len(cache.tokens) for _, cache, _ in parts)
        visible = np.zeros((len(parts), 1, width, most_held + width), dtype=np.bool_)
        # A row of padding sees one row that exists, lest its softmax be over nothing.
        visible[:, :, :, 0] = True
        for row, (item, cache, chain) in enumerate(parts):
            held, own = len(cache.tokens), len(item.token_ids)
            if chain or item.parents is None:
                visible[row, 0, :own, :held] = True
                visible[row, 0, :own, held : held + own] = np.tri(own, dtype=np.bool_)
            else:
                trunk = held if item.trunk is None else item.trunk
                mask, _ = tree_layout(item.parents, trunk, own, held + own)
                visible[row, 0, :own, : held + own] = mask == 0.0
        dtype = self._model.dtype
        added = torch.zeros(visible.shape, dtype=dtype, device=self._model.device)
        return added.masked_fill_(~as_tensor(visible, added.device), torch.finfo(dtype).min)


def _groups(widths: Sequence[int]) -> list[list[int]]:
    """Indices of the items that run together: no item is padded by more than ``_PADDING`` rows."""
    groups: list[list[int]] = []
    for index in sorted(range(len(widths)), key=lambda index: -widths[index]):
        if groups and widths[groups[-1][0]] - widths[index] <= _PADDING:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _load(source: str | os.PathLike[str], device: Any, dtype: Any) -> Any:
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        dtype = torch.float32 if where.type == "cpu" else "auto"
    # Flash attention takes no mask, which trees and batches need.
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="sdpa")
    return model.to(where)


def _check_forward(model: Any, name: str) -> bool:
    """Check that the model takes what a pass needs; whether it can compute logits for some rows only."""
    parameters = inspect.signature(model.forward).parameters
    missing = [needed for needed in _NEEDED if needed not in parameters]
    if missing:
        raise ValueError(
            f"{name}: {type(model).__name__} takes no {missing[0]}, which token trees and rollback need; "
            "use a model with rotary or learned positions"
        )
    kind = model.config._attn_implementation
    if kind not in _MASK_AWARE:
        raise ValueError(
            f"{name}: attention {kind!r} takes no additive mask; load it with attn_implementation='sdpa'"
        )
    return "logits_to_keep" in parameters


def _check_cache(config: Any, name: str) -> int:
    """Check that every layer's cache is a plain list of rows; the number of layers."""
    layers = DynamicCache(config=config).layers
    for index, layer in enumerate(layers):
        if type(layer) is not DynamicLayer:
            raise ValueError(
                f"{name}: layer {index} has a {type(layer).__name__} (sliding window or recurrent state), "
                "which cannot roll back a rejected block; use a model with full attention in every layer"
            )
    return len(layers) or int(config.num_hidden_layers)


def _context_limit(config: Any, name: str, given: int | None) -> int:
    limit = given if given is not None else getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"{name}: context_limit: {limit!r} is not a whole number ≥ 1; give context_limit=…")
    return limit


def _eos(model: Any) -> frozenset[int]:
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos is None:
        eos = model.config.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset(eos) if isinstance(eos, list) else frozenset((int(eos),))
