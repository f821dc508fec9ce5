"""What time and budget leave possible: which requests are refused on arrival, which end at their deadline.

Both compare what a target pass takes, by the measured costs, with the time that is left. Before the costs
are calibrated nothing is refused, and only what can show something when its time is over is ended.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from specpilot.control.config import ControllerConfig
from specpilot.control.cost import CostModel
from specpilot.control.health import Backoff
from specpilot.control.latency import Lost
from specpilot.control.requests import OpenRequest
from specpilot.control.timing import shared_cost
from specpilot.control.types import Binding, PlannedStop, Reason, StopCause

HOPELESS_FIRST, HOPELESS_MAX = 8, 512
"""Prompts that could not be served in time even alone and at once are let in now and then where no pass runs
and nobody waits for a first one, and get their first pass, so that a wrong cost estimate cannot refuse for
ever: the first of a width that no pass was measured at; later after so many in a row of those as long, then
after twice as many, up to the maximum, for prompts that are too long in fact would cost arrivals after them
much. Refusals because of others do not count: their passes are measured."""


@dataclass(slots=True)
class Measuring:
    """When the next hopeless prompt of about one length is let in."""

    first: Backoff = field(default_factory=lambda: Backoff(1, HOPELESS_MAX))
    """Of widths that no pass was measured at: at once, but after one that was given up, which taught nothing,
    as seldom as the others.
    """
    again: Backoff = field(default_factory=lambda: Backoff(HOPELESS_FIRST, HOPELESS_MAX))


@dataclass(slots=True)
class Drafted:
    """When the last cycle ended, and how long its drafting took."""

    end_s: float = -math.inf
    took_ms: float = 0.0

    def since(self, arrival_s: float, now: float) -> float:
        """What of it an arrival has waited for, at most, in ms."""
        return min(self.took_ms, (now - arrival_s) * 1000.0) if self.end_s >= arrival_s else 0.0


class Verdict(NamedTuple):
    """On an arrival: why it is refused, empty if it is not; what it was lost to; and how long it could have
    waited for its first pass to begin, ``None`` where that is not known.
    """

    reason: str
    lost: Lost | None = None
    slack_ms: float | None = None


def judge(
    cost: CostModel,
    config: ControllerConfig,
    request: OpenRequest,
    others: Collection[OpenRequest],
    measuring: Measuring,
    drafted: Drafted,
    now: float,
) -> Verdict:
    """Whether an arrival can be served as promised.

    Args:
        cost: the engine's costs.
        config: the promises.
        request: the arrival.
        others: the requests in flight.
        measuring: when to let in one of the prompts as long although it is hopeless.
        drafted: the last cycle's drafting.
        now: in seconds.
    """
    own = int(min(config.pass_budget, 1e9))
    passes = request.info.prefill_passes + 1
    if passes > own:
        return Verdict(
            f"budget: the prompt needs {passes} target passes, a request owns {own}; "
            "shorten the prompt, enlarge the prefill chunk or raise pass_budget"
        )
    if not cost.calibrated:
        return Verdict("")
    first = request.first_ms(cost)
    left = request.left_ms(now)
    slack = request.window_ms - first
    hopeless = slack < 0.0
    backlog = backlog_ms(cost, others, config.max_batch, now)
    if hopeless and not backlog:
        # A prompt in chunks makes no pass of its width, which would stay unmeasured.
        known = request.info.prefill_passes or cost.measured(request.uncached)
        when = measuring.again if known else measuring.first
        request.measures = when.due()
        if request.measures:
            return Verdict("", None, slack)
    if backlog + first <= left:
        measuring.again.reset()
        return Verdict("", None, slack)
    running = max([other.drafting_ms for other in others if other.began_s is not None], default=0.0)
    drafting = drafted.since(request.arrival_s, now) + running
    lost = Lost.ALONE if hopeless else Lost.DRAFTING if backlog + first <= left + drafting else Lost.CROWD
    reason = (
        f"deadline: {left:.0f} ms are left, the first target pass needs about {first:.0f} ms and the "
        f"work before it {backlog:.0f} ms; retry later, shorten the prompt or raise slo_ms"
    )
    return Verdict(reason, lost, slack)


def backlog_ms(cost: CostModel, requests: Iterable[OpenRequest], max_batch: int, now: float) -> float:
    """Engine time until a new arrival's first pass: first passes go before later ones, by expectation.

    Of those that have something to show only what is left of the pass that runs now is in the way. Passes
    that have not begun count with nothing drafted: where it matters nothing will be
    (:func:`~specpilot.control.queueing.spare_ms`). Passes are shared where they can be, by ``max_batch``
    requests at most.
    """
    before = [
        request
        for request in requests
        if request.ended is None and (not request.emitted or request.cycle_id is not None)
    ]
    work = sum(
        [
            request.plain_ms(cost) if request.cycle_id is None else request.rest_ms(cost, now)
            for request in before
        ]
    )
    return work * shared_cost(cost, min(max_batch, len(before)))


def must_stop(
    cost: CostModel, request: OpenRequest, plain_ms: float, ahead_ms: float, now: float
) -> PlannedStop | None:
    """Deadline check: is there time for one more plain pass, which takes ``plain_ms`` and what the host does
    beside it, ``ahead_ms`` from now?

    A request whose output has ended stops too. The pass of one that was let in to measure it is made.
    """
    request_id = request.info.request_id
    if request.ended is not None:
        return PlannedStop(request_id, request.ended, Reason(Binding.LENGTH))
    if not cost.calibrated and not (request.emitted and request.left_ms(now) <= 0.0):
        return None
    if request.emitted:
        # Something can be shown: do not risk it for more.
        need, left = plain_ms * cost.verify_upper.ratio, request.left_ms(now)
    elif request.measures:
        return None
    else:
        # Nothing yet: an empty answer is a miss too, so only a hopeless pass is spared.
        need, left = plain_ms, (request.arrival_s - now) * 1000.0 + request.slo_ms
    need += cost.host_ms + ahead_ms
    if need <= left:
        return None
    numbers = {"need_ms": need, "left_ms": left}
    if ahead_ms:
        numbers["ahead_ms"] = ahead_ms
    return PlannedStop(request_id, StopCause.DEADLINE, Reason(Binding.DEADLINE, numbers))
