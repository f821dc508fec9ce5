"""A run's account in bounded memory: sums and a histogram instead of a record per request.

For runs of millions of requests and for fleets, whose replicas' accounts are added up. Latency quantiles are
read from a histogram with bins of half a per cent.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, fields

from specpilot.control.types import Admission, RequestInfo, RequestSummary, StopCause
from specpilot.simulation.results import CycleTotals, PolicyResult, quantile_interval_of

BIN = math.log(1.005)


@dataclass(slots=True)
class Histogram:
    """Counts of positive values in geometric bins; what is read from it is within 0.25 %."""

    bins: Counter[int] = field(default_factory=Counter)
    count: int = 0

    def add(self, value: float) -> None:
        """Count one value; 0 and below count as 10⁻⁶."""
        self.bins[round(math.log(max(value, 1e-6)) / BIN)] += 1
        self.count += 1

    def merge(self, other: Histogram) -> None:
        """Add another's counts."""
        self.bins.update(other.bins)
        self.count += other.count

    def at_rank(self, rank: int) -> float:
        """The middle of the bin that holds the value of this rank (from 1).

        Raises:
            ValueError: if fewer values were counted.
        """
        seen = 0
        for place in sorted(self.bins):
            seen += self.bins[place]
            if seen >= rank:
                return math.exp(place * BIN)
        raise ValueError(f"rank: {rank} is not in 1…{self.count}; there are no more values")

    def quantile(self, share: float) -> float | None:
        """The order statistic ⌈share · n⌉; ``None`` where nothing was counted."""
        return self.at_rank(max(1, math.ceil(share * self.count))) if self.count else None


@dataclass(slots=True)
class Account:
    """Sums over the requests of a run; fill it through :meth:`finish` and :meth:`refuse`."""

    slo_ms: float
    arrivals: int = 0
    refused: int = 0
    requests: int = 0
    empty: int = 0
    finished_requests: int = 0
    with_pass: int = 0
    met: int = 0
    tokens: int = 0
    useful_tokens: int = 0
    passes: int = 0
    violations: int = 0
    off_path_confidences: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    latencies: Histogram = field(default_factory=Histogram)
    totals: CycleTotals = field(default_factory=CycleTotals)
    first_s: float = math.inf
    last_s: float = -math.inf

    def refuse(self, info: RequestInfo, admission: Admission) -> None:
        """An arrival that was not taken up: a miss."""
        self.arrivals += 1
        self.refused += 1
        self._span(info, info.arrival_s or 0.0)

    def finish(self, info: RequestInfo, summary: RequestSummary, now: float) -> None:
        """An arrival that ended."""
        self.arrivals += 1
        self.requests += 1
        self.causes[summary.cause.value] += 1
        self.empty += summary.emitted_tokens == 0
        self.finished_requests += summary.cause.complete
        self.with_pass += summary.target_passes > 0
        self.tokens += summary.emitted_tokens
        self.passes += summary.target_passes
        self.latencies.add(summary.e2e_ms)
        if summary.met_slo and summary.cause is not StopCause.ERROR:
            self.met += 1
            self.useful_tokens += summary.emitted_tokens
        self._span(info, now)

    def merge(self, other: Account) -> None:
        """Add another replica's account; the run then lasts from the first arrival to the last end of all."""
        for item in fields(self):
            own, more = getattr(self, item.name), getattr(other, item.name)
            if isinstance(own, Counter):
                own.update(more)
            elif isinstance(own, Histogram):
                own.merge(more)
            elif isinstance(own, CycleTotals):
                for part in fields(own):
                    setattr(own, part.name, getattr(own, part.name) + getattr(more, part.name))
            elif item.name == "first_s":
                self.first_s = min(own, more)
            elif item.name == "last_s":
                self.last_s = max(own, more)
            elif item.name != "slo_ms":
                setattr(self, item.name, own + more)

    def result(self, name: str) -> PolicyResult:
        """The same object as from a record per request.

        Raises:
            ValueError: if nothing arrived.
        """
        if not self.arrivals:
            raise ValueError("arrivals: there are none; a result needs at least one")
        duration_s = max(self.last_s - self.first_s, 1e-9)
        totals, latencies = self.totals, self.latencies
        return PolicyResult(
            name=name,
            source="simulation",
            duration_s=duration_s,
            requests=self.requests,
            arrivals=self.arrivals,
            refused=self.refused,
            empty=self.empty,
            finished_requests=self.finished_requests,
            stop_causes=dict(sorted(self.causes.items())),
            verified_tokens=self.tokens,
            verified_tokens_per_s=self.tokens / duration_s,
            goodput_tokens_per_s=self.useful_tokens / duration_s,
            target_passes=self.passes,
            target_passes_per_request=self.passes / max(1, self.with_pass),
            budget_violations=self.violations,
            tokens_per_pass=self.tokens / max(1, self.passes),
            drafted_tokens=totals.drafted,
            accepted_draft_tokens=totals.accepted,
            discarded_draft_tokens=totals.drafted - totals.accepted,
            e2e_p50_ms=latencies.quantile(0.5),
            e2e_p95_ms=latencies.quantile(0.95),
            e2e_p95_ci_ms=quantile_interval_of(latencies.at_rank, latencies.count, 0.95),
            slo_attainment=self.met / self.arrivals,
            fallback_share=totals.plain_cycles / max(1, totals.cycles),
            mean_draft_length=totals.proposed / max(1, totals.cycles - totals.plain_cycles),
            completion_share=self.finished_requests / self.arrivals,
            tokens_per_arrival=self.tokens / self.arrivals,
            loop_share=0.0,
            near_ties=0,
            cancelled=0,
            extra={"off_path_confidences": self.off_path_confidences},
        )

    def _span(self, info: RequestInfo, end_s: float) -> None:
        self.first_s = min(self.first_s, end_s if info.arrival_s is None else info.arrival_s)
        self.last_s = max(self.last_s, end_s)
