"""The entry point that vLLM calls in each of its processes (group ``vllm.general_plugins``).

It puts one wrapper around ``EngineArgs.create_engine_config``. Unless the plugin is configured the wrapper
calls what it wraps and nothing else happens. Another wrapper, inert too, takes the plugin's metrics up.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from specpilot.vllm import metrics
from specpilot.vllm.config import configured
from specpilot.vllm.support import UnsupportedVllm, check_setup, check_version

SCHEDULER = "specpilot.vllm.scheduler.PilotScheduler"
WORKER = "specpilot.vllm.worker.TimedWorker"


def register() -> None:
    """Called by vLLM. May be called several times in one process."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.metrics.loggers import StatLoggerManager

    metrics.install(StatLoggerManager)
    if not getattr(EngineArgs, "_specpilot", False):
        EngineArgs._specpilot = True
        EngineArgs.create_engine_config = _steered(EngineArgs.create_engine_config)


def _steered(create: Any) -> Any:
    """``create_engine_config`` that puts the scheduler in, where the plugin is configured."""

    @functools.wraps(create)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = configured(self.additional_config, os.environ)
        if config is None:
            return create(self, *args, **kwargs)
        import vllm

        check_version(vllm.__version__)
        if self.scheduler_cls not in (None, SCHEDULER):
            raise UnsupportedVllm(
                f"specpilot: --scheduler-cls {self.scheduler_cls} is another scheduler; leave it out, the "
                "plugin brings its own"
            )
        self.scheduler_cls = SCHEDULER
        self.worker_extension_cls = self.worker_extension_cls or WORKER
        vllm_config = create(self, *args, **kwargs)
        check_setup(vllm_config)
        return vllm_config

    return create_engine_config
