"""One vocabulary for two models whose embeddings are padded to different sizes."""

from __future__ import annotations

from collections.abc import Sequence

from specpilot.models.base import CausalLM, FloatArray, ForwardItem, KVCache


class TrimmedModel:
    """A model without the rows beyond ``vocab_size``.

    Models that share a tokenizer are often padded to different multiples (Qwen2.5 0.5B: 151,936 rows, 7B:
    152,064). No token has such a row, so leaving them out changes nothing that can be decoded, and p and q
    become comparable.

    Raises:
        ValueError: if ``vocab_size`` is not within the model's.
    """

    def __init__(self, model: CausalLM, vocab_size: int) -> None:
        if not 1 <= vocab_size <= model.vocab_size:
            raise ValueError(f"vocab_size: {vocab_size} is not in 1…{model.vocab_size}; it can only be cut")
        self._model = model
        self._vocab_size = vocab_size

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def vocab_size(self) -> int:
        """What is left."""
        return self._vocab_size

    @property
    def context_limit(self) -> int:
        """The model's."""
        return self._model.context_limit

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The model's."""
        return self._model.eos_token_ids

    def new_cache(self) -> KVCache:
        """The model's."""
        return self._model.new_cache()

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        """The model's pass, logits cut to (rows, vocab_size)."""
        return [logits[:, : self._vocab_size] for logits in self._model.forward(items)]
