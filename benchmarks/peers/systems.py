"""The systems that are compared: each completes a prompt of token ids greedily and says what it took.

Prompts go in as token ids and answers come out as token ids everywhere, so that no tokenizer is timed. No
system keeps anything of a prompt for the next one. One thread each, float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from specpilot.control import Controller, ControllerConfig
from specpilot.control.config import NO_SLO_MS
from specpilot.pair import Pair, load_pair
from specpilot.simulation.baselines import make_rule

STATIC = (1, 2, 3, 4, 6, 8, 12, 16)
CONSTANTS = (2, 3, 4, 5, 8)
THRESHOLDS = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion: its tokens (EOS included) and how many passes of the target it took."""

    tokens: tuple[int, ...]
    passes: int


class System(Protocol):
    """Completes prompts."""

    def __call__(self, prompt: Sequence[int], max_tokens: int) -> Answer:
        """Greedily, at most ``max_tokens``."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A system with its name; of the statics of one ``contest`` the best is picked in hindsight."""

    name: str
    family: str
    run: System
    contest: str = ""


# --- specpilot ----------------------------------------------------------------------------------------


class Specpilot:
    """A pair under a controller that lives as long as the run."""

    def __init__(self, pair: Pair, budget: float, rule: str | None = None, *, drafter: str = "model") -> None:
        config = ControllerConfig(pass_budget=budget, slo_p95_ms=NO_SLO_MS)
        self._pair = Pair(pair.target, pair.draft, pair.tokenizer, config=config, drafter=drafter)
        if rule is not None:
            self._pair.controller = Controller(config, make_rule(rule))

    def __call__(self, prompt: Sequence[int], max_tokens: int) -> Answer:
        """With its policy, or with a published rule in its place."""
        done = self._pair.complete(prompt, max_tokens)
        return Answer(done.token_ids, done.target_passes)


def specpilot_entries(engine: str) -> list[Entry]:
    """The policy without a budget and with B = 2, with chains and with trees that hold looked-up text too;
    plain decoding and static τ on the same engine.
    """
    pair = load_pair(engine=engine)
    family = f"specpilot {engine}"
    entries = [
        Entry(f"{family}, B=inf", family, Specpilot(pair, math.inf)),
        Entry(f"{family}, B=inf with trees", family, Specpilot(pair, math.inf, drafter="both")),
        Entry(f"{family}, B=2", family, Specpilot(pair, 2.0)),
        Entry(f"{family}, B=2 with trees", family, Specpilot(pair, 2.0, drafter="both")),
        Entry(f"{family}, plain", family, Specpilot(pair, math.inf, "static-0")),
    ]
    return entries + [
        Entry(f"{family}, static-{tau}", family, Specpilot(pair, math.inf, f"static-{tau}"), family)
        for tau in STATIC
    ]


# --- transformers' assisted generation ----------------------------------------------------------------


class Transformers:
    """``generate`` of transformers, alone or with an assistant that keeps its schedule's state.

    Target passes are counted by a forward hook: ``generate`` does not report them.
    """

    def __init__(self, target: Any, assistant: Any = None, **schedule: Any) -> None:
        self._target = target
        self._assistant = assistant
        self._passes = 0
        self._running = False
        for name, value in schedule.items():
            setattr(assistant.generation_config, name, value)
        target.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self._passes += self._running

    def __call__(self, prompt: Sequence[int], max_tokens: int) -> Answer:
        """One call of ``generate``."""
        import torch

        ids = torch.tensor([list(prompt)])
        self._passes, self._running = 0, True
        output = self._target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            assistant_model=self._assistant,
        )
        self._running = False
        return Answer(tuple(output[0, len(prompt) :].tolist()), self._passes)


def transformers_entries(target: Path, draft: Path) -> list[Entry]:
    """Plain, as it comes, its schedules, and constant lengths."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    family = "transformers"
    model = load(target)
    off = {"assistant_confidence_threshold": 0.0}
    schedules: dict[str, dict[str, Any]] = {
        "default (constant 20, threshold 0.4 that moves)": {},
        "heuristic (from 20, threshold 0.4 that moves)": {"num_assistant_tokens_schedule": "heuristic"},
        "heuristic (from 5, no threshold)": {
            "num_assistant_tokens_schedule": "heuristic",
            "num_assistant_tokens": 5,
            **off,
        },
        "constant 20, no threshold": off,
    }
    entries = [Entry(f"{family}, plain", family, Transformers(model))]
    entries += [
        Entry(f"{family}, {name}", family, Transformers(model, load(draft), **settings))
        for name, settings in schedules.items()
    ]
    return entries + [
        Entry(
            f"{family}, constant {count}, no threshold",
            family,
            Transformers(model, load(draft), num_assistant_tokens=count, **off),
            family,
        )
        for count in CONSTANTS
    ]


# --- OpenVINO GenAI -----------------------------------------------------------------------------------


class OpenVino:
    """An ``LLMPipeline``; it reports the target's passes itself."""

    def __init__(self, pipeline: Any, **settings: Any) -> None:
        self._pipeline = pipeline
        self._settings = settings

    def __call__(self, prompt: Sequence[int], max_tokens: int) -> Answer:
        """One call of ``generate`` on token ids."""
        import numpy as np
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.do_sample = False
        config.apply_chat_template = False
        config.set_eos_token_id(0)
        for name, value in self._settings.items():
            setattr(config, name, value)
        ids = openvino.Tensor(np.asarray([list(prompt)], dtype=np.int64))
        result = self._pipeline.generate(ids, config)
        metrics = result.extended_perf_metrics
        if metrics is None:
            passes = len(result.perf_metrics.raw_metrics.token_infer_durations)
        else:
            passes = len(metrics.main_model_metrics.raw_metrics.m_durations)
        return Answer(tuple(result.tokens[0]), passes)


def openvino_entries(folder: Path) -> list[Entry]:
    """Plain, static lengths, and confidence thresholds, on the pair converted into ``folder``.

    Raises:
        ValueError: if the converted pair is not there.
    """
    import openvino_genai

    for role in ("target", "draft"):
        if not (folder / role / "openvino_model.xml").exists():
            raise ValueError(
                f"openvino: {folder / role} holds no openvino_model.xml; convert the pair first (README.md)"
            )
    # Arithmetic as in the other engines; the defaults may take bfloat16 and an 8-bit cache.
    properties = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}

    def pipeline(**draft: Any) -> Any:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 1
        scheduler.max_num_seqs = 1
        scheduler.max_num_batched_tokens = 1024  # a prompt in one pass
        scheduler.enable_prefix_caching = False
        return openvino_genai.LLMPipeline(
            str(folder / "target"), "CPU", scheduler_config=scheduler, **properties, **draft
        )

    family = "OpenVINO"
    plain = pipeline()
    pair = pipeline(draft_model=openvino_genai.draft_model(str(folder / "draft"), "CPU", **properties))
    return [
        Entry(f"{family}, plain", family, OpenVino(plain)),
        *(
            Entry(f"{family}, static-{tau}", family, OpenVino(pair, num_assistant_tokens=tau), family)
            for tau in STATIC
        ),
        *(
            Entry(
                f"{family}, threshold {threshold:g}",
                family,
                # Without logprobs a greedy draft reports no probabilities (2026.4.1): any threshold stops
                # every block after one token. With them it works as documented.
                OpenVino(pair, assistant_confidence_threshold=threshold, logprobs=1),
                f"{family} threshold",
            )
            for threshold in THRESHOLDS
        ),
    ]


def shortlisted(entries: Sequence[Entry], rates: dict[str, float]) -> list[Entry]:
    """All that stand alone, and of each contest the best by ``rates`` with its neighbours."""
    chosen: list[Entry] = []
    for contest in dict.fromkeys(entry.contest for entry in entries):
        group = [entry for entry in entries if entry.contest == contest]
        known = [place for place, entry in enumerate(group) if entry.name in rates]
        if not contest or not known:
            chosen += group
            continue
        best = max(known, key=lambda place: rates[group[place].name])
        chosen += group[max(0, best - 1) : best + 2]
    return chosen
