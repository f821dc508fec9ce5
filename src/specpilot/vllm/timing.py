"""Measures, in vLLM's worker, how long the target and the drafter take, and hands it to the scheduler.

The times travel as an attribute of the ``ModelRunnerOutput``, so they reach the scheduler's process too. They
are wall-clock times around the calls; on an accelerator, where kernels run behind the calls, the drafter's
is closed by a synchronisation.
"""

from __future__ import annotations

import functools
import time
from typing import Any

ATTRIBUTE = "specpilot_times"
"""On a ``ModelRunnerOutput``: (target_ms, draft_ms) of the step."""


def install(runner: type[Any]) -> None:
    """Wrap the model runner's methods; once."""
    if getattr(runner, "_specpilot_timed", False):
        return
    runner._specpilot_timed = True
    execute, sample, propose = runner.execute_model, runner.sample_tokens, runner.propose_draft_token_ids

    @functools.wraps(execute)
    def execute_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return execute(self, *args, **kwargs)
        finally:
            self._specpilot_target_s = time.perf_counter() - start

    @functools.wraps(propose)
    def propose_draft_token_ids(self: Any, *args: Any, **kwargs: Any) -> Any:
        _synchronise(self)
        start = time.perf_counter()
        try:
            return propose(self, *args, **kwargs)
        finally:
            _synchronise(self)
            self._specpilot_draft_s = time.perf_counter() - start

    @functools.wraps(sample)
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        self._specpilot_draft_s = 0.0
        output = sample(self, *args, **kwargs)
        # An output without requests is one shared object.
        if getattr(output, "req_ids", None):
            draft_s = self._specpilot_draft_s
            target_s = self._specpilot_target_s + time.perf_counter() - start - draft_s
            setattr(output, ATTRIBUTE, (target_s * 1000.0, draft_s * 1000.0))
        return output

    runner.execute_model = execute_model
    runner.propose_draft_token_ids = propose_draft_token_ids
    runner.sample_tokens = sample_tokens


def of(output: Any) -> tuple[float, float] | None:
    """(target_ms, draft_ms) of a step, where the worker has measured them."""
    times: tuple[float, float] | None = getattr(output, ATTRIBUTE, None)
    return times


def _synchronise(runner: Any) -> None:
    if runner.device.type != "cpu":
        import torch

        torch.accelerator.synchronize(runner.device)
