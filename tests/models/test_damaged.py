"""Damaged and partial model folders: the error names the file, the field, the value and what to do."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from specpilot.models.llama_config import read_config
from specpilot.models.safetensors_index import read_index

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def configured(folder: Path, **changes: object) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size: None is not a whole number ≥ 1"),
        ({"vocab_size": True}, "vocab_size: True is not a whole number ≥ 1"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads: '2' is not a whole number ≥ 1"),
        ({"num_key_value_heads": -4}, "num_key_value_heads: -4 is not a whole number ≥ 1"),
        ({"head_dim": 16.0}, "head_dim: 16.0 is not a whole number ≥ 1"),
        ({"hidden_size": 3}, "head_dim: 0 is not a multiple of 16"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: 'small' is not a finite number > 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: nan is not a finite number > 0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings: 'false' is not true or false"),
        ({"rope_theta": [1e4]}, r"rope_theta: \[10000.0\] is not a finite number > 0"),
        ({"rope_theta": 0}, "rope_theta: 0 is not a finite number > 0"),
        ({"rope_scaling": "linear"}, "rope_scaling: 'linear' is not an object"),
        ({"rope_parameters": [1]}, r"rope_parameters: \[1\] is not an object"),
        ({"rope_scaling": {"type": "linear"}}, "factor: None is not a finite number > 0"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor: 0 is not a finite number > 0"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "low_freq_factor: None is not a finite"),
        (
            {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
            "high_freq_factor: 1.0 is not above low_freq_factor 1.0",
        ),
        ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": "8k"}}, "original_max_.*'8k'"),
        ({"layer_types": 7}, "layer_types: 7 is not a list"),
        ({"layer_types": [["full_attention"], 3]}, "layer_types: .* are not 'full_attention'"),
        ({"eos_token_id": "</s>"}, "eos_token_id: '</s>' is not a whole number ≥ 0, nor a list of them"),
        ({"eos_token_id": [1, None]}, r"eos_token_id: \[1, None\] is not a whole number ≥ 0"),
        ({"eos_token_id": {"id": 1}}, "eos_token_id: .* is not a whole number ≥ 0"),
    ],
)
def test_a_configuration_of_the_wrong_types(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"config\.json: {message}.*; \w"):
        read_config(configured(tmp_path, **changes))


@pytest.mark.parametrize("text", ["[]", "null", '"llama"', "7"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_configuration_that_is_no_object(name: str, text: str, tmp_path: Path) -> None:
    configured(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}: is not a JSON object; download it again"):
        read_config(tmp_path)


def test_a_generation_config_that_is_damaged(tmp_path: Path) -> None:
    configured(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id": [2, 3')
    with pytest.raises(ValueError, match=r"generation_config\.json: is not JSON \(.*\); download it again"):
        read_config(tmp_path)
    path.write_text('{"eos_token_id": [2, "x"]}')
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id: \[2, 'x'\] is not"):
        read_config(tmp_path)


def test_what_may_be_left_out_or_null(tmp_path: Path) -> None:
    configured(
        tmp_path,
        num_key_value_heads=None,
        head_dim=None,
        rms_norm_eps=None,
        rope_scaling=None,
        rope_theta=None,
        layer_types=None,
        tie_word_embeddings=None,
        eos_token_id=[2, 3],
    )
    config = read_config(tmp_path)
    assert (config.kv_heads, config.head_dim, config.norm_epsilon) == (4, 16, 1e-6)
    assert config.eos_token_ids == {2, 3}
    assert not config.tied
    assert read_config(configured(tmp_path, rope_scaling=LLAMA3)).inverse_frequencies[0] == 1.0


PLACE: dict[str, Any] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def weights(folder: Path, header: object, data: int = 24, name: str = "model.safetensors") -> Path:
    raw = json.dumps(header).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data))
    return folder


def test_a_header_is_read(tmp_path: Path) -> None:
    index = read_index(weights(tmp_path, {"__metadata__": {"format": "pt"}, "w": PLACE}))
    assert index.elements == 6


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (7, "7 is not an object"),
        ({}, "dtype: None is not a type's name"),
        ({**PLACE, "dtype": 32}, "dtype: 32 is not a type's name"),
        ({**PLACE, "shape": None}, "shape: None is not a list of whole numbers ≥ 0"),
        ({**PLACE, "shape": 6}, "shape: 6 is not a list of whole numbers ≥ 0"),
        ({**PLACE, "shape": [2, "3"]}, r"shape: \[2, '3'\] is not a list of whole numbers ≥ 0"),
        ({**PLACE, "shape": [-2, -3]}, r"shape: \[-2, -3\] is not a list of whole numbers ≥ 0"),
        ({"dtype": "F32", "shape": [2, 3]}, "data_offsets: None is not"),
        ({**PLACE, "data_offsets": [0, 24, 48]}, r"data_offsets: \[0, 24, 48\] is not"),
        (
            {**PLACE, "data_offsets": [24, 0]},
            r"data_offsets: \[24, 0\] is not two whole numbers 0 ≤ begin ≤ end",
        ),
        ({**PLACE, "data_offsets": [-24, 0]}, r"data_offsets: \[-24, 0\] is not"),
        ({**PLACE, "data_offsets": [0.0, 24.0]}, r"data_offsets: \[0.0, 24.0\] is not"),
        ({**PLACE, "data_offsets": "24"}, "data_offsets: '24' is not"),
        ({**PLACE, "dtype": "I64", "data_offsets": None}, "data_offsets: None is not"),
    ],
)
def test_a_tensor_s_place_that_is_none(entry: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"model\.safetensors: tensor w: {message}.*; download or convert"):
        read_index(weights(tmp_path, {"w": entry}))


@pytest.mark.parametrize("dtype", ["F32", "I32"])
def test_a_file_that_was_not_downloaded_whole(dtype: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor w ends at byte 24 of the data, of which there are 23"):
        read_index(weights(tmp_path, {"w": {**PLACE, "dtype": dtype}}, data=23))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"is not JSON \("),
        ("[]", "is not a JSON object"),
        ("{}", "weight_map: None is not an object that names a file for each tensor"),
        ('{"weight_map": {}}', "weight_map: {} is not an object that names"),
        ('{"weight_map": ["a"]}', r"weight_map: \['a'\] is not an object that names"),
        ('{"weight_map": {"w": 1}}', "weight_map: .* is not an object that names"),
        ('{"weight_map": {"w": ["a"]}}', "weight_map: .* is not an object that names"),
    ],
)
def test_a_list_of_shards_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    listing = tmp_path / "model.safetensors.index.json"
    listing.write_text(text)
    with pytest.raises(ValueError, match=rf"model\.safetensors\.index\.json: {message}.*; download it again"):
        read_index(tmp_path)


def test_shards_are_read(tmp_path: Path) -> None:
    weights(tmp_path, {"w": PLACE}, name="one.safetensors")
    listing = tmp_path / "model.safetensors.index.json"
    listing.write_text('{"weight_map": {"w": "one.safetensors"}}')
    assert read_index(tmp_path).tensors["w"].file == "one.safetensors"
    listing.write_text('{"weight_map": {"w": "one.safetensors", "v": "two.safetensors"}}')
    with pytest.raises(ValueError, match=r"two\.safetensors: is listed but does not exist"):
        read_index(tmp_path)
