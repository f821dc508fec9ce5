"""Which vLLM the plugin works with.

It subclasses a scheduler that vLLM does not call public, so it names versions.
"""

from __future__ import annotations

import re
from typing import Any

SUPPORTED = ((0, 32),)
"""(major, minor) of the vLLM versions that the test-suite has run against."""


class UnsupportedVllm(RuntimeError):  # noqa: N818 - says what it is
    """Raised for a vLLM, or a way to set it up, that the plugin cannot steer."""


def supported_names() -> str:
    """The supported versions, for messages."""
    return ", ".join(f"{major}.{minor}.x" for major, minor in SUPPORTED)


def is_supported(version: str) -> bool:
    """Whether the plugin knows this vLLM version (local parts such as ``+cpu`` do not matter)."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) in SUPPORTED


def check_version(version: str) -> None:
    """Refuse a vLLM that the plugin has not been tested with.

    Raises:
        UnsupportedVllm: naming the versions that are supported.
    """
    if not is_supported(version):
        raise UnsupportedVllm(
            f"specpilot: vLLM {version} is not supported; supported are {supported_names()}. Install one of "
            "these, or switch the plugin off: no SPECPILOT_VLLM, no specpilot in --additional-config"
        )


def problems(vllm_config: Any) -> list[str]:
    """What keeps this (complete) ``VllmConfig`` from being steered, each with its remedy."""
    found = []
    spec = vllm_config.speculative_config
    scheduler = vllm_config.scheduler_config
    if scheduler.async_scheduling:
        found.append(
            "asynchronous scheduling is on: there the drafts never pass the scheduler; "
            "switch it off with --no-async-scheduling (async_scheduling=False)"
        )
    if spec is None or not vllm_config.num_speculative_tokens:
        found.append(
            "speculative decoding is off: there is nothing to steer; give --speculative-config with "
            "num_speculative_tokens ≥ 1"
        )
    elif spec.num_speculative_tokens_per_batch_size:
        found.append(
            "num_speculative_tokens_per_batch_size sets the draft length too; leave it out of "
            "--speculative-config"
        )
    elif spec.method == "suffix":
        found.append("the suffix method fixes its draft length; use draft_model, eagle or ngram")
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        found.append("pipeline parallelism runs several batches at a time; use --tensor-parallel-size")
    if vllm_config.kv_transfer_config is not None or vllm_config.ec_transfer_config is not None:
        found.append("KV or encoder connectors move requests between engines; leave them out")
    if vllm_config.use_v2_model_runner:
        found.append("model runner V2 is on, which is not tested; set VLLM_USE_V2_MODEL_RUNNER=0")
    if vllm_config.model_config.runner_type != "generate":
        found.append(f"runner {vllm_config.model_config.runner_type!r} does not generate; nothing to steer")
    return found


def check_setup(vllm_config: Any) -> None:
    """Refuse a setup that cannot be steered.

    Raises:
        UnsupportedVllm: with every reason and what to do about it.
    """
    found = problems(vllm_config)
    if found:
        raise UnsupportedVllm("specpilot cannot steer this vLLM setup: " + "; ".join(found))
