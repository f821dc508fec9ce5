"""The latency promise: an internal deadline tight enough for the SLO, and the price of time."""

from __future__ import annotations

import math


class DeadlineTracker:
    """The share of the SLO that requests may plan to use.

    An online quantile tracker aiming at ``miss_target``: every miss tightens the internal deadline by
    step·(1 − target), every hit relaxes it by step·target, so that it settles where that share misses.
    """

    def __init__(self, miss_target: float = 0.03, step: float = 0.04) -> None:
        self._target = miss_target
        self._step = step
        self.share = 0.95

    def observe(self, met_slo: bool) -> None:
        """A request has ended within its SLO, or not."""
        move = self._target if met_slo else self._target - 1.0
        self.share = min(1.0, max(0.4, self.share + self._step * move))


class TimePrice:
    """θ: what a millisecond of engine time is worth, in tokens.

    θ* = (tokens − λ · pool passes) ÷ engine time, prefill included, over recent cycles: the rate at
    which the busy system earns (Dinkelbach's parametric price). It is charged only as far as somebody
    would wait: θ = θ* · P(a request is waiting when this cycle ends), never below ``floor`` · θ*.
    """

    def __init__(self, floor: float, memory: float = 0.99) -> None:
        self._floor = floor
        self._memory = memory
        self._tokens = 0.0
        self._time_ms = 0.0
        self._arrivals = 0.0
        self._span_s = 0.0
        self._last_arrival_s: float | None = None

    @property
    def busy_rate(self) -> float:
        """θ* in tokens per ms; 0 before the first cycle."""
        return max(0.0, self._tokens / self._time_ms) if self._time_ms > 0.0 else 0.0

    @property
    def arrivals_per_s(self) -> float:
        """Recent arrival rate."""
        return self._arrivals / self._span_s if self._span_s > 0.0 else 0.0

    def arrival(self, now: float) -> None:
        """A request arrived (refused ones included: they show the load)."""
        if self._last_arrival_s is not None:
            self._arrivals = self._arrivals * 0.98 + 1.0
            self._span_s = self._span_s * 0.98 + max(0.0, now - self._last_arrival_s)
        self._last_arrival_s = now

    def cycle(self, tokens: float, engine_ms: float) -> None:
        """A cycle earned ``tokens`` (net of λ for a pool pass) in ``engine_ms`` of engine time."""
        self._tokens = self._tokens * self._memory + tokens
        self._time_ms = self._time_ms * self._memory + engine_ms

    def price(self, waiting: int, cycle_ms: float) -> float:
        """θ in tokens per ms for a cycle of about this length with ``waiting`` requests queued now."""
        if waiting > 0:
            return self.busy_rate
        someone = 1.0 - math.exp(-self.arrivals_per_s * cycle_ms / 1000.0)
        return self.busy_rate * max(self._floor, someone)
