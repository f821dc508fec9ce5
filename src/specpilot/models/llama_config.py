"""What the graph needs to know of a Llama-family ``config.json``; anything it cannot honour is an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specpilot.models.base import FloatArray
from specpilot.models.folder import AGAIN, is_whole, read_object

MODEL_TYPES = ("llama", "mistral", "qwen2")
"""Families with this one computation (the last two without their sliding window)."""

_ELSEWHERE = "load it with the transformers engine instead"


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The shape of a Llama-family model. Sizes in elements, ``context_limit`` in tokens."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_limit: int
    norm_epsilon: float
    tied: bool
    inverse_frequencies: tuple[float, ...]
    eos_token_ids: frozenset[int]

    def graph_key(self) -> str:
        """A text that is equal for two configurations exactly if their graphs are."""
        fields = (
            self.layers,
            self.hidden,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.vocab_size,
            self.context_limit,
            self.norm_epsilon,
            self.tied,
            self.inverse_frequencies,
        )
        return repr(fields)


def read_config(folder: Path) -> LlamaConfig:
    """Read ``config.json`` and, for the end-of-text tokens, ``generation_config.json``.

    Raises:
        ValueError: if the file is missing, incomplete, or asks for what the graph does not compute.
    """
    path = folder / "config.json"
    config = read_object(path)
    _check_supported(path, config)
    hidden, heads = _size(path, config, "hidden_size"), _size(path, config, "num_attention_heads")
    kv_heads = _size(path, config, "num_key_value_heads", heads)
    head_dim = _size(path, config, "head_dim", hidden // heads)
    if heads % kv_heads:
        raise ValueError(
            f"{path}: num_key_value_heads: {kv_heads} does not divide the {heads} heads; {AGAIN}"
        )
    if head_dim % 16 or not head_dim:
        raise ValueError(
            f"{path}: head_dim: {head_dim} is not a multiple of 16 (ONNX Runtime's attention); {_ELSEWHERE}"
        )
    return LlamaConfig(
        layers=_size(path, config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_size(path, config, "vocab_size"),
        context_limit=_size(path, config, "max_position_embeddings"),
        norm_epsilon=_number(path, config, "rms_norm_eps", 1e-6),
        tied=_flag(path, config, "tie_word_embeddings"),
        inverse_frequencies=tuple(float(x) for x in _inverse_frequencies(path, config, head_dim)),
        eos_token_ids=read_eos(folder, config),
    )


def read_eos(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """End-of-text tokens: those of ``generation_config.json`` if it names any, else those of ``config``.

    Raises:
        ValueError: if they are not token ids, or the file is damaged.
    """
    path = folder / "generation_config.json"
    eos = read_object(path).get("eos_token_id") if path.is_file() else None
    if eos is None:
        path, eos = folder / "config.json", config.get("eos_token_id")
    if eos is None:
        return frozenset()
    found = eos if isinstance(eos, list) else [eos]
    if not all(is_whole(token) and token >= 0 for token in found):
        raise ValueError(
            f"{path}: eos_token_id: {eos!r} is not a whole number ≥ 0, nor a list of them; give token ids"
        )
    return frozenset(found)


# A field that is null is taken as one that is left out, as transformers does.


def _size(path: Path, config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        return default
    if not is_whole(value) or value < 1:
        raise ValueError(f"{path}: {name}: {value!r} is not a whole number ≥ 1; {AGAIN}")
    return value


def _number(path: Path, config: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = config.get(name)
    if value is None and default is not None:
        return default
    if not (is_whole(value) or isinstance(value, float)) or not 0.0 < value < math.inf:
        raise ValueError(f"{path}: {name}: {value!r} is not a finite number > 0; {AGAIN}")
    return float(value)


def _flag(path: Path, config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{path}: {name}: {value!r} is not true or false; {AGAIN}")
    return bool(value)


def _part(path: Path, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{path}: {name}: {value!r} is not an object; {AGAIN}")
    return value or {}


def _check_supported(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"{path}: model_type: {kind!r} is not one of {', '.join(MODEL_TYPES)}; {_ELSEWHERE}")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"{path}: hidden_act: {config['hidden_act']!r} is not 'silu'; {_ELSEWHERE}")
    if config.get("quantization_config"):
        raise ValueError(f"{path}: quantization_config: quantized weights are not read; {_ELSEWHERE}")
    # Qwen2 names a window that it does not use unless use_sliding_window says so.
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise ValueError(
            f"{path}: sliding_window: {config['sliding_window']} would drop cached rows, "
            "so a rejected block could not be rolled back; use a model with full attention"
        )
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list):
        raise ValueError(f"{path}: layer_types: {kinds!r} is not a list; {AGAIN}")
    other = sorted({str(kind) for kind in kinds if kind != "full_attention"})
    if other:
        raise ValueError(f"{path}: layer_types: {other} are not 'full_attention'; {_ELSEWHERE}")


def _inverse_frequencies(path: Path, config: Mapping[str, Any], head_dim: int) -> FloatArray:
    """Rotary frequencies, float32 as transformers computes them, shape (head_dim / 2,)."""
    rope = {**_part(path, config, "rope_scaling"), **_part(path, config, "rope_parameters")}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = _number(path, rope, "rope_theta", _number(path, config, "rope_theta", 10000.0))
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise ValueError(f"{path}: partial_rotary_factor: {partial} is not 1; {_ELSEWHERE}")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain: FloatArray = (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)
    if kind == "default":
        return plain
    if kind == "linear":
        slowed: FloatArray = (plain / np.float32(_number(path, rope, "factor"))).astype(np.float32)
        return slowed
    if kind == "llama3":
        return _llama3(path, plain, rope)
    raise ValueError(f"{path}: rope_type: {kind!r} is not one of default, linear, llama3; {_ELSEWHERE}")


def _llama3(path: Path, plain: FloatArray, rope: Mapping[str, Any]) -> FloatArray:
    """Llama 3.1's frequencies: long waves slowed down by ``factor``, short ones kept, a ramp between."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, trained = (_number(path, rope, name) for name in names)
    if high <= low:
        raise ValueError(f"{path}: high_freq_factor: {high} is not above low_freq_factor {low}; {AGAIN}")
    waves = 2.0 * math.pi / plain
    ramp = np.clip((trained / waves - low) / (high - low), 0.0, 1.0)
    mixed: FloatArray = ((1.0 - ramp) * plain / factor + ramp * plain).astype(np.float32)
    return mixed
