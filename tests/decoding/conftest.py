"""The bundled models, loaded once per test session."""

from __future__ import annotations

from importlib import resources

import pytest

from specpilot.models.base import CausalLM

Models = tuple[CausalLM, CausalLM]


def folder(role: str) -> str:
    """Where a bundled model lies."""
    return str(resources.files("specpilot").joinpath("bundled", role))


@pytest.fixture(scope="session")
def onnx_models() -> Models:
    """Target and draft on ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    from specpilot.models.onnx import OnnxCausalLM

    return OnnxCausalLM(folder("target")), OnnxCausalLM(folder("draft"))


@pytest.fixture(scope="session")
def transformers_models() -> Models:
    """Target and draft on transformers, one thread: two collapse where the machine is shared."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from specpilot.models.transformers import TransformersCausalLM

    torch.set_num_threads(1)
    return TransformersCausalLM(folder("target"), "cpu"), TransformersCausalLM(folder("draft"), "cpu")
