"""What the controller itself has learned: costs, the two prices, the internal deadline, breakers.

Acceptance is the planner's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specpilot.control.budget import PassPrice
from specpilot.control.config import ControllerConfig
from specpilot.control.cost import CostModel, CostProfile
from specpilot.control.health import Breakers
from specpilot.control.latency import GIVING_WAY, PRESSING, DeadlineTracker, TimePrice
from specpilot.control.requests import OpenCycle
from specpilot.control.snapshot import adopt
from specpilot.control.types import CycleOutcome

LEARNED = ("cost", "time_price", "pass_price", "deadlines")
"""What a snapshot holds, by attribute; the breakers come on top."""


class Estimates:
    """The controller's estimators.

    Args:
        config: its constants.
        profile: first guess of the engine's costs.
    """

    def __init__(self, config: ControllerConfig, profile: CostProfile | None) -> None:
        self.cost = CostModel(profile)
        self.time_price = TimePrice(pressing=GIVING_WAY if config.give_way else PRESSING)
        self.pass_price = PassPrice()
        self.deadlines = DeadlineTracker(config.miss_target)
        self.breakers = Breakers(config.breaker_faults, config.probe_first, config.probe_max)

    def learn(
        self,
        cycle: OpenCycle,
        outcome: CycleOutcome,
        pool_fill: float,
        now: float,
        drafting_ms: float,
        learnt: set[str],
    ) -> None:
        """Learn from a finished cycle.

        Args:
            cycle: as it was planned.
            outcome: what it did.
            pool_fill: how full the pool was, 0…1.
            now: in seconds.
            drafting_ms: what the longest block of its pass took to draft: all of them wait for that one.
            learnt: which costs of its pass were learnt from other requests' cycles; this one's are added.
        """
        plan, drafter = cycle.plan, cycle.request.info.drafter
        asked = outcome.drafter in (None, drafter)
        if plan.max_draft:
            fault = outcome.draft_fault is not None
            if fault or (outcome.drafted and asked):
                self.breakers[drafter].observe(fault)
            else:
                self.breakers[drafter].unused()
        width = outcome.batch_tokens or outcome.verified_tokens
        share = outcome.verified_tokens / max(1, width)
        if outcome.verify_ms > 0.0 and "pass" not in learnt:
            learnt.add("pass")
            self.cost.observe_verify(width, outcome.context_tokens, outcome.verify_ms)
        # What a tree costs is learnt apart from what a chain does, each once of a shared pass.
        sides = outcome.side_proposed * max(1, outcome.batch_size) if outcome.side_worth is not None else None
        kind = "chain" if sides is None else "tree"
        if asked and not outcome.draft_fault:
            steps = 0 if kind in learnt else outcome.drafted
            if steps:
                learnt.add(kind)
            self.cost.observe_draft(
                steps,
                outcome.draft_ms,
                outcome.draft_prefill_tokens,
                outcome.draft_prefill_ms,
                sides=sides,
            )
        host = f"{kind}'s host"
        if host not in learnt:
            learnt.add(host)
            self.cost.observe_host(outcome.host_ms, tree=sides is not None)
        together_ms = (drafting_ms + outcome.host_ms) / max(1, outcome.batch_size)
        engine_ms = together_ms + outcome.draft_prefill_ms + outcome.verify_ms * share
        price = self.pass_price.price(pool_fill) if plan.from_pool else 0.0
        self.time_price.cycle(outcome.emitted - price, engine_ms, now)

    def learned(self) -> dict[str, object]:
        """What a snapshot holds, by name."""
        parts = {name: getattr(self, name) for name in LEARNED}
        return {**parts, "breakers": dict(self.breakers)}

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Take up another process's; those who hold a reference to an estimator see it."""
        for name in LEARNED:
            adopt(getattr(self, name), parts[name])
        self.breakers.clear()
        self.breakers.update(parts["breakers"])
