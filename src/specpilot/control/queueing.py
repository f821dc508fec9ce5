"""Whose pass runs next where several requests wait for the engine.

Earliest deadline first, with one exception. A request's first pass gives it something to show; without it
the arrival is a miss. Later passes only make the answer longer. So a request that has something to show lets
those pass who have nothing, from the moment that one of these would be late by its pass: mandatory parts
before optional ones, as in the scheduling of imprecise computations (Liu et al., IEEE Computer 24(5), 1991).
It keeps its passes and takes them when there is time again before its deadline.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from specpilot.control.admission import must_stop
from specpilot.control.cost import CostModel
from specpilot.control.requests import OpenRequest
from specpilot.control.sharing import Work, share_pass
from specpilot.control.timing import shared_cost


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


def schedule(cost: CostModel, requests: Sequence[OpenRequest], limit: int, now: float) -> list[int]:
    """Indices of the waiting requests to run now: together, or one alone that cannot wait for those.

    Args:
        cost: the engine's costs.
        requests: most urgent first, at least one.
        limit: most requests in a target pass, ≥ 1.
        now: in seconds.
    """
    first = next_up([_waiter(cost, request, now) for request in requests])
    order = [first, *(index for index in range(len(requests)) if index != first)]
    if limit > 1:
        works = [_work(requests[index], now) for index in order]
        chosen = [order[index] for index in share_pass(cost, works, limit)]
    else:
        chosen = [first]
    ahead = requests[first].cycle_ms(cost)
    for index, request in enumerate(requests):
        if request.emitted and index not in chosen:
            plain_ms = cost.verify_ms(request.uncached, request.cached)
            if must_stop(cost, request, plain_ms, ahead, now):
                return [index]
    return chosen


def ahead_ms(cost: CostModel, request: OpenRequest, requests: Iterable[OpenRequest], now: float) -> float:
    """Time of the cycle that runs before this request's, if another one's of ``requests`` is next.

    Engines that queue prompts themselves (vLLM) have nobody wait for a request that runs already.
    """
    if not request.info.prefill_drafts:
        return 0.0
    waiting = [
        other
        for other in requests
        if other.cycle_id is None and other.ended is None and other.info.prefill_drafts
    ]
    if len(waiting) < 2:
        return 0.0
    waiting.sort(key=_deadline)  # stable: in the order of their admission where they are equal
    ahead = waiting[next_up([_waiter(cost, other, now) for other in waiting])]
    return 0.0 if ahead is request else ahead.cycle_ms(cost)


def spare_ms(
    cost: CostModel, requests: Iterable[OpenRequest], planned: Collection[str], max_batch: int, now: float
) -> float:
    """How long a cycle may take that runs now, so that those who have nothing to show still get a first pass
    in time: one after the other by their deadlines, with nothing drafted, each at the upper quantile of its
    time. Infinite if nobody has to be waited for.

    Args:
        cost: the engine's costs.
        requests: those in flight.
        planned: ids of those that the cycle is for.
        max_batch: most requests in a target pass.
        now: in seconds.
    """
    waiting = [
        other
        for other in requests
        if not other.emitted
        and other.cycle_id is None
        and other.ended is None
        and other.info.prefill_drafts
        and other.info.request_id not in planned
    ]
    if not waiting:
        return math.inf
    waiting.sort(key=_deadline)
    share = shared_cost(cost, min(max_batch, len(waiting))) * cost.verify_upper.ratio
    spare, before = math.inf, 0.0
    for other in waiting:
        before += share * other.plain_ms(cost)
        spare = min(spare, other.left_ms(now) - before)
    return spare


def _waiter(cost: CostModel, request: OpenRequest, now: float) -> Waiter:
    return Waiter(request.left_ms(now), request.cycle_ms(cost), request.emitted > 0)


def _work(request: OpenRequest, now: float) -> Work:
    return Work(request.uncached, request.behind, request.cached, request.left_ms(now))


def _deadline(request: OpenRequest) -> float:
    return request.deadline_s
