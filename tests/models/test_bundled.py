"""The pair in the package: graphs that fit its weights, engines that agree on it, and one vocabulary."""

from __future__ import annotations

import json
import struct
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from specpilot.models.base import ForwardItem
from specpilot.models.checks import check_batch, check_keep_path, check_tree
from specpilot.models.llama_graph import FILE_NAMES
from specpilot.models.onnx import OnnxCausalLM
from specpilot.models.tokenizer import Tokenizer, check_same_vocabulary

PAIR = Path(str(resources.files("specpilot") / "bundled"))
ROLES = ("target", "draft")
TEXT = "The committee recommends that each agency publish its plan before the end of the fiscal year. " * 3


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("file", FILE_NAMES.values())
def test_graph_offsets_are_those_of_the_safetensors_header(role: str, file: str) -> None:
    """Read without our own reader: a wrong offset would compute with other weights, in silence."""
    onnx = pytest.importorskip("onnx")
    weights = PAIR / role / "model.safetensors"
    with weights.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    graph = onnx.load(str(PAIR / role / file), load_external_data=False).graph
    found = {}
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert where["location"] == "model.safetensors"
            start = int(where["offset"]) - 8 - size
            found[tensor.name] = (list(tensor.dims), [start, start + int(where["length"])])
    assert found == {name: (part["shape"], part["data_offsets"]) for name, part in header.items()}


@pytest.mark.parametrize("role", ROLES)
def test_it_loads_without_the_onnx_package(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stale graphs would be rebuilt in a developer's checkout, and be an error in a user's installation."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert OnnxCausalLM(PAIR / role).vocab_size == 4096


@pytest.mark.parametrize("role", ROLES)
def test_protocol(role: str) -> None:
    model = OnnxCausalLM(PAIR / role)
    for check in (check_tree, check_keep_path, check_batch):
        check(model)


@pytest.mark.parametrize("role", ROLES)
def test_both_engines_agree(role: str) -> None:
    pytest.importorskip("transformers")
    from specpilot.models.transformers import TransformersCausalLM

    tokens = Tokenizer(PAIR / role).encode(TEXT)
    models = (OnnxCausalLM(PAIR / role), TransformersCausalLM(PAIR / role, device="cpu"))
    one, other = (model.forward([ForwardItem(model.new_cache(), tokens)])[0] for model in models)
    np.testing.assert_allclose(one, other, atol=1e-3)
    assert models[0].eos_token_ids == models[1].eos_token_ids


def test_one_vocabulary() -> None:
    target, draft = (Tokenizer(PAIR / role) for role in ROLES)
    check_same_vocabulary(target, draft)
    assert target.decode(target.encode(TEXT)) == TEXT
