"""What requests share: a target pass, and where the engine drafts for all alike, the length of the drafts.

Which waiting requests share the next target pass: as many as gain more than the others lose by it.

A pass over several blocks costs less than one pass each, but whoever is in it waits for all of it. With the
most urgent request set, another one joins if the sum of completion times falls: its own cycle, alone, would
take ``alone`` ms and the joint pass takes ``more`` ms longer with it, so it gains ``alone − more`` and those
already in the pass lose ``more`` each. Short blocks share on an engine that is bound by reading weights; a
cold prompt does not join a block that could be done at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specpilot.control.cost import CostModel
from specpilot.control.planning import TYPICAL_DRAFT


@dataclass(frozen=True, slots=True)
class Work:
    """A request's next cycle: tokens that the target and the draft have not cached, time to its deadline."""

    uncached: int
    behind: int
    cached: int
    left_ms: float


def share_pass(cost: CostModel, works: Sequence[Work], limit: int) -> list[int]:
    """Indices of the works that run together, the first one among them.

    A work does not join where a deadline that can be met would be missed by it, by the upper quantile.

    Args:
        cost: the engine's costs.
        works: most urgent first, at least one.
        limit: most works in a pass, ≥ 1.
    """
    chosen = [0]
    total = _cycle_ms(cost, works[:1])
    for index in range(1, len(works)):
        if len(chosen) >= limit:
            break
        candidate = works[index]
        joint = [*(works[one] for one in chosen), candidate]
        together = _cycle_ms(cost, joint)
        more = together - total
        gain = _cycle_ms(cost, [candidate]) - more
        upper = cost.verify_upper.ratio
        late = any(total * upper <= work.left_ms < together * upper for work in joint)
        if gain > more * len(chosen) and not late:
            chosen.append(index)
            total = together
    return chosen


@dataclass(slots=True)
class Forecast:
    """What a request's next plan is likely to ask for; not to be changed.

    ``wanted`` is τ at most, of which ``needed`` tokens are for learning (a cold start, a probe that is due)
    and to be drafted whatever they cost. ``gains`` are the tokens that positions 1, 2 … earn, the cost of
    drafting them not taken off, ``price`` is θ in tokens per ms. ``explores``: the block is to go one
    position further than pays.
    """

    wanted: int
    price: float
    needed: int = 0
    gains: tuple[float, ...] = ()
    explores: bool = False


def joint_draft(cost: CostModel, forecasts: Sequence[Forecast]) -> int:
    """The one draft length for requests whose drafts grow in step, however few want them long.

    A draft step takes its time from all of them. So position k is drafted as long as those that want k
    positions earn more by them, all in all, than the time is worth.

    Args:
        cost: the engine's costs.
        forecasts: one for each request that the drafter runs for, at least one.
    """
    needed = max(forecast.needed for forecast in forecasts)
    longest = max(forecast.wanted for forecast in forecasts)
    if len(forecasts) == 1:
        return longest
    price = sum(forecast.price for forecast in forecasts) / len(forecasts)
    step = price * cost.draft_step_ms
    best, total, length = 0.0, -price * cost.draft_start_ms, 0
    for place in range(longest):
        total -= step
        for forecast in forecasts:
            if forecast.wanted > place and place < len(forecast.gains):
                total += forecast.gains[place]
        if total > best:
            best, length = total, place + 1
    if any(forecast.explores for forecast in forecasts):
        length = min(length + 1, longest)
    return max(needed, length)


def _cycle_ms(cost: CostModel, works: Sequence[Work]) -> float:
    """Expected time of one cycle for all of them; drafts grow in step, so the steps are paid once."""
    width = sum(work.uncached for work in works) + TYPICAL_DRAFT * len(works)
    behind = sum(work.behind - 1 for work in works)
    return (
        cost.drafting_ms(behind, TYPICAL_DRAFT)
        + cost.verify_ms(width, max(work.cached for work in works))
        + cost.host_ms
    )
