"""Measuring an engine: what a draft step, a target pass and a prefill take on this machine, now.

Interleaved medians: every shape is run once per round, so that a slow second of the machine hits all
shapes alike, and the median over rounds drops what a single preemption did.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import accumulate

from specpilot.models.base import CausalLM, ForwardItem
from specpilot.simulation.costs import EngineCosts, Table

BLOCKS = (1, 2, 4, 8, 16)
"""Widths of a pass that verifies a block behind a cached context."""
PREFILLS = (32, 64, 128, 256, 384)
"""Widths of a pass that carries a prompt."""
CONTEXTS = (0, 128, 384)
"""Cached tokens behind which block-sized passes are measured."""


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
    shapes = _shapes(target, draft)
    times: dict[tuple[str, int, int], list[float]] = {shape: [] for shape in shapes}
    models = {"target": target, "draft": draft}
    caches = {name: model.new_cache() for name, model in models.items()}
    for round_index in range(rounds + 1):
        for shape in shapes:
            name, width, context = shape
            model, cache = models[name], caches[name]
            held = len(cache.token_ids)
            if held < context:
                model.forward(
                    [ForwardItem(cache, _tokens(model, held, context), logits_from=context - held - 1)]
                )
            cache.truncate(context)
            # A cycle wants logits for the block only, at most 17 rows.
            item = ForwardItem(
                cache, _tokens(model, context, context + width), logits_from=max(0, width - 17)
            )
            start = clock()
            model.forward([item])
            if round_index:
                times[shape].append((clock() - start) * 1000.0)
    medians = {shape: statistics.median(values) for shape, values in times.items()}
    return _costs(medians, engine)


def _shapes(target: CausalLM, draft: CausalLM) -> list[tuple[str, int, int]]:
    """(model, width, cached context), contexts ascending so that the cache grows only once a round."""
    limit = min(target.context_limit, draft.context_limit)
    shapes: list[tuple[str, int, int]] = []
    for context in CONTEXTS:
        widths: Sequence[int] = (*BLOCKS, *PREFILLS) if context == 0 else (*BLOCKS, *PREFILLS[:2])
        shapes += [("target", width, context) for width in widths if context + width <= limit]
        shapes += [("draft", width, context) for width in widths if context + width <= limit]
    if not shapes:
        raise ValueError(f"context_limit: {limit} is not ≥ 1; the models cannot hold a token")
    return shapes


def _tokens(model: CausalLM, start: int, end: int) -> list[int]:
    """Any tokens will do: the time does not depend on them."""
    return [(7 * position + 11) % model.vocab_size for position in range(start, end)]


def _costs(medians: dict[tuple[str, int, int], float], engine: str) -> EngineCosts:
    def table(name: str, width: int) -> Table:
        points = [(context, ms) for (n, w, context), ms in medians.items() if n == name and w == width]
        contexts, times = zip(*sorted(points), strict=True)
        return _rising(contexts, times)

    widths = sorted({width for name, width, _ in medians if name == "target"})
    prefill = [
        (width, medians["draft", width, 0]) for name, width, c in medians if name == "draft" and c == 0
    ]
    at, ms = zip(*sorted(prefill), strict=True)
    return EngineCosts(
        draft_step=table("draft", 1),
        draft_forward=_rising(at, ms),
        verify=tuple((float(width), table("target", width)) for width in widths),
        engine=engine,
    )


def _rising(at: Sequence[float], ms: Sequence[float]) -> Table:
    """A table that never falls: more work does not take less time, so a dip is noise.

    Extended by its last slope, a dip would make a long context free.
    """
    return Table(tuple(float(point) for point in at), tuple(accumulate(ms, max)))
