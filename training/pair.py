"""The two models of a pair: shapes, loading, saving (fp16, Hugging Face Llama format)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from training.corpus import END_ID, END_OF_TEXT
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of a Llama model; heads are 64 wide unless the hidden size is smaller."""

    layers: int
    hidden: int
    mlp: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From ``LAYERSxHIDDENxMLP``, for example ``12x256x688``.

        Raises:
            ValueError: if the text has another form, or the hidden size is no multiple of 64 above 64.
        """
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ValueError(f"{text!r} is not LAYERSxHIDDENxMLP, for example 12x256x688")
        shape = cls(*(int(part) for part in parts))
        if shape.hidden > 64 and shape.hidden % 64:
            raise ValueError(f"hidden size {shape.hidden} is not a multiple of 64")
        return shape


def new_model(shape: Shape, *, vocabulary: int, context: int) -> Any:
    """A randomly initialised Llama model."""
    heads = max(1, shape.hidden // 64)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )
    return LlamaForCausalLM(config)


def load_model(folder: Path) -> Any:
    """A model in float32, ready to be trained or evaluated."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def load_tokenizer(path: Path) -> Tokenizer:
    """From a ``tokenizer.json`` or a folder that holds one.

    Raises:
        ValueError: if token 0 is not the end-of-text token, on which windows and examples rely.
    """
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
    if tokenizer.id_to_token(END_ID) != END_OF_TEXT:
        raise ValueError(f"{path}: token {END_ID} is {tokenizer.id_to_token(END_ID)!r}, not {END_OF_TEXT!r}")
    return tokenizer


def save_model(model: Any, tokenizer: Tokenizer, folder: Path, *, context: int) -> None:
    """Write config, fp16 weights and tokenizer; the model itself stays as it is."""
    kept = copy.deepcopy(model).to("cpu").half()
    kept.config.dtype = torch.float16
    kept.config.max_position_embeddings = context
    kept.config.use_cache = True
    kept.save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=context,
    )
    wrapped.save_pretrained(folder)
    # The file as the tokenizers library writes it: the wrapper may add settings of its own.
    tokenizer.save(str(folder / "tokenizer.json"))
