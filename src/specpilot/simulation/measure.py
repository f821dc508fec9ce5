"""Measuring an engine: what a draft step, a target pass and a prefill take on this machine, now.

Interleaved medians: every shape is run once per round, so that a slow second of the machine hits all
shapes alike, and the median over rounds drops what a single preemption did.

Shapes come in the order in which a cycle runs them, a block of draft steps and then a target pass: the first
step after a pass finds its weights pushed out of the processor's caches and takes up to twice a later one's
time, and a pass after drafting takes more than passes in a row do.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from specpilot.models.base import CausalLM, ForwardItem
from specpilot.simulation.costs import EngineCosts, Table
from specpilot.trace.cycles import CycleRecord

BLOCKS = (1, 2, 4, 8, 16)
"""Widths of a pass that verifies a block behind a cached context, and of a tree's draft step."""
PREFILLS = (32, 64, 128, 256, 384)
"""Widths of a pass that carries a prompt."""
CONTEXTS = (0, 128, 384)
"""Cached tokens behind which block-sized passes are measured."""
STEPS = 8
"""Draft steps in a row before each target pass."""

Times = dict[tuple[str, int, int], float]
"""Milliseconds by ("step", place in its block, cached context) or ("draft" or "target", width, context)."""


def measure_costs(
    target: CausalLM,
    draft: CausalLM,
    *,
    rounds: int = 5,
    engine: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> EngineCosts:
    """Time both models over the shapes above.

    Args:
        target: the target model.
        draft: the draft model.
        rounds: runs of each shape, ≥ 1; one more is run first and dropped (warm-up).
        engine: what is measured, for the record.
        clock: seconds, monotonic.

    Raises:
        ValueError: if ``rounds`` is below 1 or a context is too short for the smallest shapes.
    """
    if rounds < 1:
        raise ValueError(f"rounds: {rounds} is not ≥ 1; 5 is typical")
    limit = min(target.context_limit, draft.context_limit)
    if limit < 1:
        raise ValueError(f"context_limit: {limit} is not ≥ 1; the models cannot hold a token")
    times: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    timers = {"target": _Timer(target, clock), "draft": _Timer(draft, clock)}
    for round_index in range(rounds + 1):
        for cycle in _cycles(limit):
            for name, width, context in cycle:
                # A step goes on where the one before it ended.
                place = (width, context) if name != "step" else (1, context + width - 1)
                taken = timers["target" if name == "target" else "draft"](*place)
                if round_index:
                    times[name, width, context].append(taken)
    return _costs({shape: statistics.median(values) for shape, values in times.items()}, engine)


def fitted(bare: EngineCosts, cycles: Sequence[CycleRecord]) -> EngineCosts:
    """Costs of bare forward passes, scaled to what cycles took that really ran (median ratios).

    A cycle's draft step also computes a distribution, its pass finds colder caches than a benchmark's.
    """
    drafts = [
        cycle.draft_ms / bare.draft_ms(cycle.drafted, cycle.prompt_tokens)
        for cycle in cycles
        if cycle.drafted and cycle.draft_ms > 0.0
    ]
    passes = [
        cycle.verify_ms / bare.verify_ms(cycle.verified_tokens, cycle.context_tokens)
        for cycle in cycles
        if cycle.verify_ms > 0.0
    ]
    return bare.scaled(
        draft=statistics.median(drafts) if drafts else 1.0,
        verify=statistics.median(passes) if passes else 1.0,
        host=statistics.median(cycle.host_ms for cycle in cycles) if cycles else 0.0,
    )


class _Timer:
    """Times one model's passes."""

    def __init__(self, model: CausalLM, clock: Callable[[], float]) -> None:
        self._model = model
        self._clock = clock
        self._cache = model.new_cache()

    def __call__(self, width: int, context: int) -> float:
        """A pass over ``width`` tokens behind ``context`` cached ones, in ms; what is missing of these is
        computed before.
        """
        cache, held = self._cache, len(self._cache.token_ids)
        if held < context:
            self._forward(held, context - held)
        cache.truncate(context)
        start = self._clock()
        self._forward(context, width)
        return (self._clock() - start) * 1000.0

    def _forward(self, start: int, width: int) -> None:
        # Any tokens will do: the time does not depend on them.
        tokens = [(7 * place + 11) % self._model.vocab_size for place in range(start, start + width)]
        # A cycle wants logits for the block only, at most 17 rows.
        self._model.forward([ForwardItem(self._cache, tokens, logits_from=max(0, width - 17))])


def _cycles(limit: int) -> list[list[tuple[str, int, int]]]:
    """The shapes of a round, cycle by cycle, as far as they fit: (name, width or place, cached context)."""
    cycles = []
    for context in CONTEXTS:
        room = limit - context
        steps = [("step", place, context) for place in range(1, min(STEPS, room) + 1)]
        for width in (*BLOCKS, *(PREFILLS if context == 0 else PREFILLS[:2])):
            if width > room:
                continue
            # The draft reads a prompt before its first step; a tree's wider steps come after that.
            order = (
                [("draft", width, context), *steps]
                if width in PREFILLS
                else [*steps, ("draft", width, context)]
            )
            cycles.append([*order, ("target", width, context)])
    return cycles


def _costs(medians: Times, engine: str) -> EngineCosts:
    def table(name: str, width: int) -> Table:
        points = [(context, ms) for (n, w, context), ms in medians.items() if n == name and w == width]
        return _rising(sorted(points))

    starts, steps = [], []
    for context in sorted({c for name, _, c in medians if name == "step"}):
        first, *later = [
            ms for (name, place, c), ms in sorted(medians.items()) if name == "step" and c == context
        ]
        steps.append((context, statistics.mean(later or [first])))
        starts.append(first - steps[-1][1])
    widths = sorted({width for name, width, _ in medians if name == "target"})
    forward = [(width, ms) for (name, width, c), ms in medians.items() if name == "draft" and c == 0]
    return EngineCosts(
        draft_step=_rising(steps),
        draft_start=max(0.0, statistics.median(starts)),
        draft_forward=_rising(sorted(forward)),
        verify=tuple((float(width), table("target", width)) for width in widths),
        engine=engine,
    )


def _rising(points: Sequence[tuple[int, float]]) -> Table:
    """A table that never falls: more work does not take less time, so a dip is noise, and points that are
    out of order get their mean (isotonic regression).

    Extended by its last slope, a dip would make a long context free.
    """
    runs: list[tuple[float, int]] = []  # (mean, points)
    for _, ms in points:
        mean, count = ms, 1
        while runs and runs[-1][0] > mean:
            before, many = runs.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        runs.append((mean, count))
    return Table(
        tuple(float(at) for at, _ in points), tuple(mean for mean, count in runs for _ in range(count))
    )
