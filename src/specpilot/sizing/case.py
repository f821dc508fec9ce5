"""One question to plan for: requests, costs, promises and arrivals; and its exact replays under static τ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from specpilot.control import ControllerConfig
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.policies import replay_policy
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.results import PolicyResult
from specpilot.simulation.stream import stream
from specpilot.trace.agreement import AgreementTrace

LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16)
"""The static τ that are replayed."""
FEW_LENGTHS = (0, 2, 4, 8, 16)
"""And those of the sensitivity's rows."""


def check_rate(rate_per_s: float) -> None:
    """Refuse what is no arrival rate.

    Raises:
        ValueError: unless it is > 0 and finite.
    """
    if not 0.0 < rate_per_s < math.inf:
        raise ValueError(f"rate: {rate_per_s} is not > 0 and finite; give requests a second")


@dataclass(frozen=True, slots=True)
class Case:
    """The requests, costs and promises of one question."""

    traces: Sequence[AgreementTrace]
    costs: EngineCosts
    config: ControllerConfig
    max_tokens: int
    count: int
    seed: int
    rate: float
    """Arrivals a second; infinite for a closed loop."""

    def requests(self) -> list[ReplayRequest]:
        """The stream; unknown bits are drawn."""
        return stream(
            self.traces, count=self.count, max_tokens=self.max_tokens, rate=self.rate, seed=self.seed
        )[0]

    def static(self, lengths: Sequence[int], requests: Sequence[ReplayRequest]) -> list[PolicyResult]:
        """Every static τ of ``lengths``."""
        closed = math.isinf(self.rate)
        return [
            replay_policy(f"static-{tau}", requests, self.costs, self.config, closed_loop=closed).result
            for tau in lengths
        ]
