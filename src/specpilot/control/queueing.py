"""Whose pass runs next where several requests wait for the engine.

Earliest deadline first, with one exception. A request's first pass gives it something to show; without it
the arrival is a miss. Later passes only make the answer longer. So a request that has something to show lets
those pass who have nothing, from the moment that one of these would be late by its pass: mandatory parts
before optional ones, as in the scheduling of imprecise computations (Liu et al., IEEE Computer 24(5), 1991).
It keeps its passes and takes them when there is time again before its deadline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)  # not frozen: as CycleView
class Waiter:
    """A request that waits: time to its deadline, its next cycle's expected time, and whether anything is
    emitted; not to be changed.
    """

    left_ms: float
    cycle_ms: float
    shown: bool


def next_up(waiters: Sequence[Waiter]) -> int:
    """Index of the one to run next.

    Args:
        waiters: most urgent first, at least one.
    """
    urgent = waiters[0]
    if not urgent.shown:
        return 0
    first, ahead_ms = 0, urgent.cycle_ms
    for index, waiter in enumerate(waiters):
        if waiter.shown:
            continue
        first = first or index
        ahead_ms += waiter.cycle_ms
        if ahead_ms > waiter.left_ms:
            return first
    return 0
