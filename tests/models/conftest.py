"""Tiny random Llama-family folders, written with numpy alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[np.float32]
WriteLlama = Callable[..., Path]


def write_safetensors(path: Path, tensors: Mapping[str, Array], dtype: str, padding: int = 0) -> None:
    """Write the file format by hand; ``padding`` lengthens the header, and so moves every tensor."""
    blobs: list[bytes] = []
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "padding": "x" * padding}}
    at = 0
    for name, tensor in tensors.items():
        if dtype == "BF16":  # the upper half of a float32
            blob = (tensor.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            blob = tensor.astype({"F16": np.float16, "F32": np.float32}[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def random_tensors(config: Mapping[str, Any], seed: int, biased: tuple[str, ...]) -> dict[str, Array]:
    """All weights of the model that ``config`` describes, large enough that every part of it matters."""
    rng = np.random.default_rng(seed)
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    width, kv_width = config["num_attention_heads"] * head, config["num_key_value_heads"] * head

    def matrix(rows: int, columns: int) -> Array:
        drawn: Array = (rng.standard_normal((rows, columns)) * 1.5 / columns**0.5).astype(np.float32)
        return drawn

    def vector(size: int, mean: float) -> Array:
        drawn: Array = (mean + 0.3 * rng.standard_normal(size)).astype(np.float32)
        return drawn

    tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        linear = {
            "self_attn.q_proj": (width, hidden),
            "self_attn.k_proj": (kv_width, hidden),
            "self_attn.v_proj": (kv_width, hidden),
            "self_attn.o_proj": (hidden, width),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        for part, shape in linear.items():
            tensors[f"{name}{part}.weight"] = matrix(*shape)
            if part.removeprefix("self_attn.") in biased:
                tensors[f"{name}{part}.bias"] = vector(shape[0], 0.0)
        tensors[name + "input_layernorm.weight"] = vector(hidden, 1.0)
        tensors[name + "post_attention_layernorm.weight"] = vector(hidden, 1.0)
    tensors["model.norm.weight"] = vector(hidden, 1.0)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    return tensors


@pytest.fixture
def write_llama(tmp_path: Path) -> WriteLlama:
    """``write_llama(name, dtype="F32", seed=0, biased=(), shards=1, padding=0, **config)`` → its folder."""

    def write(
        name: str = "tiny",
        dtype: str = "F32",
        seed: int = 0,
        biased: tuple[str, ...] = (),
        shards: int = 1,
        padding: int = 0,
        **changes: Any,
    ) -> Path:
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "vocab_size": 50,
            "eos_token_id": 0,
            "bos_token_id": 0,
            **changes,
        }
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        tensors = random_tensors(config, seed, biased)
        if shards == 1:
            write_safetensors(folder / "model.safetensors", tensors, dtype, padding)
            return folder
        listing: dict[str, str] = {}
        names = list(tensors)
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {name: tensors[name] for name in names[shard::shards]}
            write_safetensors(folder / file, part, dtype)
            listing.update(dict.fromkeys(part, file))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listing}))
        return folder

    return write
