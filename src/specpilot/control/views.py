"""What a planner is shown of a request: the constraints that bound τ, and the state it may look at."""

from __future__ import annotations

import math

from specpilot.control.budget import PassLedger
from specpilot.control.config import ControllerConfig
from specpilot.control.estimates import Estimates
from specpilot.control.planning import CycleView
from specpilot.control.requests import OpenRequest
from specpilot.control.timing import fitting_draft


class Views:
    """Makes the views of one controller.

    Args:
        config: the promises.
        ledger: the passes that are left.
        estimates: costs, the price of a pass, breakers.
    """

    def __init__(self, config: ControllerConfig, ledger: PassLedger, estimates: Estimates) -> None:
        self._config = config
        self._ledger = ledger
        self._cost = estimates.cost
        self._pass_price = estimates.pass_price
        self._breakers = estimates.breakers

    def of(
        self,
        request: OpenRequest,
        waiting: int,
        left_ms: float,
        plain_ms: float | None,
        sharing: int,
        beside: int,
        spare_ms: float = math.inf,
        emitting: int = 0,
    ) -> CycleView:
        """The view of a request's next cycle, or of the one after it.

        Args:
            request: whose cycle it is.
            waiting: other requests that have a cycle to run now.
            left_ms: time to its internal deadline.
            plain_ms: time of the pass with nothing drafted, where it is known.
            sharing: requests that are planned for the same pass, this one included.
            beside: the others' context tokens that are not cached.
            spare_ms: how long the cycle may take for the sake of others.
            emitting: tokens of a running pass, which count as emitted. With them nothing is changed; without
                them an open breaker counts the cycle.
        """
        info, ledger, config = request.info, self._ledger, self._config
        request_id, drafter, own = info.request_id, info.drafter, ledger.own_passes(info.request_id)
        emitted = request.emitted + emitting
        remaining = info.max_tokens - emitted
        breaker = self._breakers[drafter]
        # A trial would be lost with a pool pass that is not granted: it goes to one with a pass of its own.
        allowed = breaker.allow() if own and not emitting else not breaker.open
        if allowed and request.drafter_failed:
            allowed = False
            if not emitting:
                breaker.unused()
        cap = config.max_draft if config.max_draft < remaining else remaining - 1
        if info.max_draft is not None:
            cap = min(cap, info.max_draft)
        context = info.prompt_tokens + emitted
        if emitting:
            uncached = behind = 1
        else:
            known = context or 1
            uncached, behind = request.uncached, request.behind
            if uncached > known or behind > known:
                uncached, behind = min(uncached, known), min(behind, known)
        nodes = lookup = 0
        if config.max_nodes and cap > 0:
            nodes = config.max_nodes
            lookup = min(config.lookup_depth, remaining - 1)
            if info.max_draft is not None:
                lookup = min(lookup, info.max_draft)
        fit_ms = left_ms if left_ms < spare_ms else spare_ms
        if sharing > 1:
            plain_ms = None  # that of the request alone
        max_draft, times = fitting_draft(
            self._cost, cap, uncached, behind, context, fit_ms, plain_ms, beside, sharing
        )
        # By position: named arguments take three times as long, and one is made for every decision.
        return CycleView(
            request_id,
            drafter,
            info.prompt_tokens,
            context,
            uncached,
            behind,
            emitted,
            remaining,
            fit_ms,
            own,
            own == 0,  # from the pool
            max_draft,
            left_ms,
            waiting,
            self._pass_price.price(ledger.fill),
            allowed,
            int(ledger.pool),
            times,
            nodes,
            lookup,
            sharing,
            beside,
            info.acceptance,
        )
