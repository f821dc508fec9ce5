"""A real vLLM engine in this process; its controller can be exchanged, its passes are counted again.

Importing this module sets what vLLM reads from the environment, so it comes before vLLM.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

# One thread, on whatever core is free: vLLM binds a thread to every core, and where another process keeps one
# busy all wait for that one at every operator. Models this small gain nothing by a second thread. The n-gram
# drafter's numba sets the number of OpenMP's threads for the whole process.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from specpilot.control import Controller, ControllerConfig
from specpilot.control.planning import Planner
from specpilot.demo.workload import bundled_prompts
from specpilot.trace import EndRecord, TracedController, TraceRecord
from specpilot.vllm.config import PROFILE
from specpilot.vllm.pilot import Pilot

MAX_DRAFT = 6
MAX_TOKENS = 24
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
"""Every output has ``MAX_TOKENS`` tokens, whatever the weights are."""
NO_LIMIT = {"pass_budget": None, "slo_p95_ms": 1e9}
"""Neither budget nor deadline: what is left is the choice of τ."""


def bundled(role: str) -> str:
    """The folder of a bundled model in Hugging Face format."""
    return str(resources.files("specpilot").joinpath("bundled", role))


def prompts(count: int = 56) -> list[str]:
    """The shortest prompts of the bundled workload."""
    return sorted((prompt.text for prompt in bundled_prompts()), key=len)[:count]


ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 320,
    "enforce_eager": True,
    "block_size": 32,
    "enable_prefix_caching": False,
    "seed": 0,
}


def speculative(method: str, draft: str) -> dict[str, Any]:
    """The speculative configuration for a method."""
    config: dict[str, Any] = {"method": method, "num_speculative_tokens": MAX_DRAFT}
    if method == "ngram":
        return {**config, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    return {**config, "model": draft}


@dataclass(frozen=True, slots=True)
class Output:
    """One request's output. ``passes`` is what the hook on the target's forward has counted."""

    token_ids: tuple[int, ...]
    finish_reason: str | None
    stop_reason: str | int | None
    passes: int
    ledger_passes: int


@dataclass(slots=True)
class Count:
    """What the hook sees: forwards of the target, and which requests were in each."""

    budget: float = float("inf")
    forwards: int = 0
    passes: Counter[str] = field(default_factory=Counter)
    widths: list[int] = field(default_factory=list)
    violations: int = 0

    def forward(self, request_ids: Sequence[str], width: int) -> None:
        """One forward of the target; the budget is checked over the requests that have been in one."""
        self.forwards += 1
        self.widths.append(width)
        self.passes.update(request_ids)
        self.violations += self.passes.total() > self.budget * len(self.passes)


class SteeredEngine:
    """An in-process engine with the plugin."""

    def __init__(self, method: str, target: str, draft: str, **changes: Any) -> None:
        from vllm import LLM

        self.llm = LLM(
            model=target,
            speculative_config=speculative(method, draft),
            additional_config={"specpilot": NO_LIMIT},
            **{**ENGINE, **changes},
        )
        core: Any = self.llm.llm_engine.engine_core
        self.scheduler: Any = core.engine_core.scheduler
        self.runner: Any = core.engine_core.model_executor.driver_worker.worker.model_runner
        self.count = Count()
        self.slow_s = 0.0
        """By how much every target pass is made slower."""
        self.records: list[TraceRecord] = []
        self.controller: Controller = self.scheduler.pilot.controller
        self.runner.model.register_forward_pre_hook(self._forward, with_kwargs=True)

    def _forward(self, _: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        width = len(ids if ids is not None else args[0])
        time.sleep(self.slow_s)
        self.count.forward(list(self.runner.input_batch.req_ids), width)

    def steer(self, planner: Planner | None = None, **config: Any) -> None:
        """A fresh controller, for an idle engine."""
        values: dict[str, Any] = {"slo_p95_ms": 1e9, "max_draft": MAX_DRAFT, **config}
        self.controller = Controller(ControllerConfig(**values), planner, PROFILE)
        self.records = []
        self.scheduler.pilot = Pilot(self.controller, TracedController(self.controller, self.records.append))
        self.count = Count(self.controller.config.pass_budget)

    def generate(
        self,
        texts: Sequence[Any],
        extra: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> list[Output]:
        """Serve all of them, greedily; ``extra``: the ``extra_args``, one for each request or one for all."""
        from vllm import SamplingParams

        each = [extra] * len(texts) if extra is None or isinstance(extra, Mapping) else list(extra)
        fields = {**GREEDY, **sampling}
        params = [SamplingParams(**fields, extra_args=None if own is None else dict(own)) for own in each]
        answers = self.llm.generate(list(texts), params, use_tqdm=False)
        ledger = {_public(r.request): r.target_passes for r in self.records if isinstance(r, EndRecord)}
        seen = {_public(name): passes for name, passes in self.count.passes.items()}
        return [
            Output(
                tuple(answer.outputs[0].token_ids),
                answer.outputs[0].finish_reason,
                answer.outputs[0].stop_reason,
                seen.get(answer.request_id, 0),
                ledger.get(answer.request_id, 0),
            )
            for answer in answers
        ]

    def close(self) -> None:
        """Free the models, so that another engine can be made in this process."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm, self.scheduler, self.runner
        gc.collect()
        cleanup_dist_env_and_memory()


def _public(request_id: str) -> str:
    """A request's id without the suffix that vLLM adds."""
    return request_id.split("-")[0]


def plain_greedy(target: str, texts: Sequence[str], **changes: Any) -> list[list[int]]:
    """The target's own greedy output, from vLLM without speculation and without the plugin."""
    from vllm import LLM, SamplingParams

    llm = LLM(model=target, **{**ENGINE, **changes})
    assert type(llm.llm_engine.engine_core.engine_core.scheduler).__module__.startswith("vllm.")
    params = SamplingParams(**GREEDY)
    answers = llm.generate(list(texts), params, use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


if __name__ == "__main__":
    import sys

    outputs = plain_greedy(sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    Path(sys.argv[3]).write_text(json.dumps(outputs), encoding="utf-8")
