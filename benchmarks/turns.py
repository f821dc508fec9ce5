"""Live comparisons on the bundled pair: policies that answer the same prompts, one at a time, in turn."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from specpilot.control import ControllerConfig
from specpilot.control.types import CycleOutcome, CyclePlan
from specpilot.demo.workload import Prompt, bundled_prompts
from specpilot.models.base import CausalLM, FloatArray, ForwardItem
from specpilot.pair import Completion, Pair
from specpilot.simulation.drive import PausableClock
from specpilot.trace.agreement import NEAR_TIE_MARGIN


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer: whose, to what, and whether it only warmed up."""

    policy: str
    prompt: Prompt
    ids: Sequence[int]
    answer: Completion
    warm_up: bool


def take_turns(
    loaded: Pair,
    policies: Sequence[str],
    prompts: Sequence[Prompt],
    rounds: int,
    ask: Callable[[str, Sequence[int]], Completion],
) -> Iterator[Turn]:
    """Every policy answers every prompt, ``rounds`` times; who begins changes from prompt to prompt.

    Args:
        loaded: encodes the prompts.
        policies: their names.
        prompts: in this order in each round; the first round is warm-up.
        rounds: how often each prompt is asked.
        ask: lets a policy answer token ids.
    """
    for turn, prompt in enumerate([*prompts] * rounds):
        ids = loaded.encode(prompt.text)
        for place in range(len(policies)):
            name = policies[(turn + place) % len(policies)]
            yield Turn(name, prompt, ids, ask(name, ids), turn < len(prompts))


def make_pair(loaded: Pair, config: ControllerConfig, drafter: str, *, closed: bool) -> Pair:
    """The loaded models with a controller and a clock of their own.

    The clock runs on while others have their turn, as on an idle engine, or stands still (``closed``), as on
    a saturated one.
    """
    clock = PausableClock()
    pair = Pair(loaded.target, loaded.draft, loaded.tokenizer, config=config, drafter=drafter, clock=clock)
    if closed:
        saturate(pair, clock)
    return pair


def saturate(pair: Pair, clock: PausableClock) -> None:
    """Let the pair's clock run during its cycles only, as if the next request always waited for the engine.

    With the moments between two requests in it an engine would look a tenth idle, and its time cheap.
    """
    run = pair._executor.run

    def timed(plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
        clock.resume()
        try:
            return run(plans)
        finally:
            clock.pause()

    clock.pause()
    # A pair has no seam for this: what a benchmark times is nothing that a pair's user needs.
    pair._executor.run = timed  # type: ignore[method-assign]


def along(model: CausalLM, prompt: Sequence[int], output: Sequence[int]) -> FloatArray:
    """The model's logits before each token of ``output``."""
    item = ForwardItem(model.new_cache(), [*prompt, *output[:-1]], logits_from=len(prompt) - 1)
    return model.forward([item])[0]


def exact(model: CausalLM, prompt: Sequence[int], output: Sequence[int]) -> bool:
    """Whether one teacher-forced pass over the output prefers each of its tokens (or nearly)."""
    if not output:
        return True
    rows = along(model, prompt, output)
    chosen = rows[np.arange(len(output)), list(output)]
    return bool((rows.max(axis=1) - chosen < NEAR_TIE_MARGIN).all())


def take(per_class: int, seed: int, prompts: Sequence[Prompt] | None = None) -> list[Prompt]:
    """So many prompts of each class, mixed; the bundled ones by default."""
    by_class: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in bundled_prompts() if prompts is None else prompts:
        by_class[prompt.label].append(prompt)
    rng = random.Random(seed)
    taken = [
        prompt for found in by_class.values() for prompt in rng.sample(found, min(per_class, len(found)))
    ]
    rng.shuffle(taken)
    return taken
