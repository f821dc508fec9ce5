"""Loaded into each of vLLM's workers (``worker_extension_cls``), in whatever process they run."""

from __future__ import annotations

from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from specpilot.vllm import timing

timing.install(GPUModelRunner)


class TimedWorker:
    """Adds nothing to the worker: that this module is imported there is what it is for."""
