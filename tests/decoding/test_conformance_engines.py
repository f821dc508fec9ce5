"""The bundled models on both engines go through the public conformance checks."""

from __future__ import annotations

import pytest

from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import CausalLM
from specpilot.targets.model import ModelTarget
from specpilot.testing import drafter_checks, model_checks, target_checks

Models = tuple[CausalLM, CausalLM]


@pytest.mark.parametrize("engine", ["onnx_models", "transformers_models"])
def test_models(engine: str, request: pytest.FixtureRequest) -> None:
    models: Models = request.getfixturevalue(engine)
    for model in models:
        for check in model_checks(lambda model=model: model):  # type: ignore[misc]
            check()


@pytest.mark.parametrize("engine", ["onnx_models", "transformers_models"])
def test_targets_and_drafters(engine: str, request: pytest.FixtureRequest) -> None:
    models: Models = request.getfixturevalue(engine)
    for check in target_checks(lambda: ModelTarget(models[0])) + drafter_checks(
        lambda: ModelDrafter(models[1])
    ):
        check()
