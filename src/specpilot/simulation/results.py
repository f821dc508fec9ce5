"""The result object of a policy: the same fields for a live run, a replay and a simulation.

Words: *verified tokens* are tokens appended to an output (each one confirmed or produced by the
target); *goodput* counts those of requests that met the SLO, tokens inside a degenerate loop left out.
A refused, empty or failed request is a miss of the SLO, so that no policy looks better by serving less;
cancelled requests are reported apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specpilot.binomial import binomial
from specpilot.control.types import StopCause

KEPT = 0.95
"""Share of all arrivals that must meet the SLO: the promise."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One arrival and what became of it.

    ``arrival_s`` is the scheduled arrival, ``end_s`` when the answer was complete, both on the run's
    clock; ``cause`` is ``None`` for a refused request. ``loop_tokens`` of the ``emitted_tokens`` lie in
    a loop; ``near_ties`` counts output positions at which the target's choice was nearly a tie.
    """

    request_id: str
    arrival_s: float
    end_s: float
    slo_ms: float
    cause: StopCause | None
    emitted_tokens: int = 0
    loop_tokens: int = 0
    near_ties: int = 0
    target_passes: int = 0

    @property
    def e2e_ms(self) -> float:
        """Latency from the scheduled arrival, queueing included."""
        return (self.end_s - self.arrival_s) * 1000.0

    @property
    def met_slo(self) -> bool:
        """Whether there was an answer, and in time."""
        failed = self.cause is None or self.cause in (StopCause.ERROR, StopCause.CANCELLED)
        return not failed and self.emitted_tokens > 0 and self.e2e_ms <= self.slo_ms


@dataclass(slots=True)
class CycleTotals:
    """Sums over all cycles of a run."""

    cycles: int = 0
    plain_cycles: int = 0
    drafted: int = 0
    proposed: int = 0
    accepted: int = 0

    def add(self, drafted: int, proposed: int, accepted: int) -> None:
        """Count one cycle."""
        self.cycles += 1
        self.plain_cycles += proposed == 0
        self.drafted += drafted
        self.proposed += proposed
        self.accepted += accepted


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """What a policy did on a workload. Names and units are the command line's (``--json``)."""

    name: str
    source: str
    """``live``, ``replay`` or ``simulation``."""
    duration_s: float
    requests: int
    arrivals: int
    refused: int
    empty: int
    finished_requests: int
    stop_causes: dict[str, int]
    verified_tokens: int
    verified_tokens_per_s: float
    goodput_tokens_per_s: float
    target_passes: int
    target_passes_per_request: float
    budget_violations: int
    tokens_per_pass: float
    drafted_tokens: int
    accepted_draft_tokens: int
    discarded_draft_tokens: int
    e2e_p50_ms: float | None
    e2e_p95_ms: float | None
    e2e_p95_ci_ms: tuple[float, float] | None
    slo_attainment: float
    fallback_share: float
    mean_draft_length: float
    completion_share: float
    tokens_per_arrival: float
    loop_share: float
    near_ties: int
    cancelled: int
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object of the command line's ``policies``."""
        record: dict[str, Any] = {
            name: getattr(self, name) for name in self.__slots__ if name not in ("name", "extra")
        }
        if self.e2e_p95_ci_ms is not None:
            record["e2e_p95_ci_ms"] = list(self.e2e_p95_ci_ms)
        return record | self.extra


def summarise(
    name: str,
    source: str,
    records: Sequence[RequestRecord],
    totals: CycleTotals,
    *,
    budget_violations: int,
    duration_s: float | None = None,
) -> PolicyResult:
    """Fold the records of one run into its result.

    Args:
        name: the policy's name.
        source: ``live`` or ``replay``.
        records: every arrival, refused ones included.
        totals: sums over the cycles.
        budget_violations: pass starts at which passes exceeded B × admitted.
        duration_s: the time the rates refer to; default is from the first arrival to the last end.

    Raises:
        ValueError: if there are no records.
    """
    if not records:
        raise ValueError("records: there are none; a result needs at least one arrival")
    duration_s = max(span_s(records) if duration_s is None else duration_s, 1e-9)
    served = [r for r in records if r.cause is not None]
    cancelled = sum(r.cause is StopCause.CANCELLED for r in served)
    latencies = sorted(r.e2e_ms for r in served if r.cause is not StopCause.CANCELLED)
    tokens = sum(r.emitted_tokens for r in served)
    loops = sum(r.loop_tokens for r in served)
    passes = sum(r.target_passes for r in served)
    with_pass = sum(r.target_passes > 0 for r in served)
    finished = sum(r.cause is not None and r.cause.complete for r in served)
    judged = max(1, len(records) - cancelled)
    speculated = totals.cycles - totals.plain_cycles
    return PolicyResult(
        name=name,
        source=source,
        duration_s=duration_s,
        requests=len(served),
        arrivals=len(records),
        refused=len(records) - len(served),
        empty=sum(r.emitted_tokens == 0 and r.cause is not StopCause.CANCELLED for r in served),
        finished_requests=finished,
        stop_causes=dict(sorted(Counter(r.cause.value for r in served if r.cause is not None).items())),
        verified_tokens=tokens,
        verified_tokens_per_s=tokens / duration_s,
        goodput_tokens_per_s=goodput(records, duration_s),
        target_passes=passes,
        target_passes_per_request=passes / max(1, with_pass),
        budget_violations=budget_violations,
        tokens_per_pass=tokens / max(1, passes),
        drafted_tokens=totals.drafted,
        accepted_draft_tokens=totals.accepted,
        discarded_draft_tokens=totals.drafted - totals.accepted,
        e2e_p50_ms=quantile(latencies, 0.5),
        e2e_p95_ms=quantile(latencies, 0.95),
        e2e_p95_ci_ms=quantile_interval(latencies, 0.95),
        slo_attainment=sum(r.met_slo for r in records) / judged,
        fallback_share=totals.plain_cycles / max(1, totals.cycles),
        mean_draft_length=totals.proposed / max(1, speculated),
        completion_share=finished / len(records),
        tokens_per_arrival=tokens / len(records),
        loop_share=loops / max(1, tokens),
        near_ties=sum(r.near_ties for r in served),
        cancelled=cancelled,
    )


def span_s(records: Sequence[RequestRecord]) -> float:
    """From the first arrival to the last end."""
    return max(r.end_s for r in records) - min(r.arrival_s for r in records)


def goodput(records: Sequence[RequestRecord], duration_s: float | None = None) -> float:
    """Tokens per second of requests that met the SLO, those in a loop left out."""
    useful = sum(r.emitted_tokens - r.loop_tokens for r in records if r.met_slo)
    return useful / max(span_s(records) if duration_s is None else duration_s, 1e-9)


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The order statistic ⌈share · n⌉ of an ascending sequence; ``None`` for an empty one."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def quantile_interval(
    ordered: Sequence[float], share: float, level: float = 0.95
) -> tuple[float, float] | None:
    """A distribution-free interval for a quantile of an ascending sequence, from order statistics."""
    return quantile_interval_of(lambda rank: ordered[rank - 1], len(ordered), share, level)


def quantile_interval_of(
    at_rank: Callable[[int], float], count: int, share: float, level: float = 0.95
) -> tuple[float, float] | None:
    """The same where ``at_rank(k)`` gives the k-th smallest of ``count`` values.

    The number of samples below the true quantile is Binomial(n, share), so x_(l) … x_(u) covers it with
    probability P(l ≤ K < u). The two tails get at most (1 − level)/2 each; where n is too small for
    that, the interval ends at the least or largest sample.
    """
    if count == 0:
        return None
    tail = (1.0 - level) / 2.0
    # Below mean − 10 sd the binomial has no mass worth summing; this keeps it O(√n).
    spread = 10.0 * math.sqrt(count * share * (1.0 - share)) + 10.0
    start = max(0, math.floor(count * share - spread))
    low, high = 0, count
    cumulated = 0.0
    for k in range(start, min(count, math.ceil(count * share + spread)) + 1):
        if cumulated <= tail:
            low = k  # P(K < k) ≤ tail: the k-th smallest is low enough
        cumulated += binomial(k, count, share)
        if cumulated >= 1.0 - tail:
            high = k + 1
            break
    return at_rank(max(1, low)), at_rank(min(count, high))


def best_of(results: Iterable[PolicyResult]) -> PolicyResult:
    """The one with the most goodput among those that kept their SLO best; for picking in hindsight.

    A policy is eligible if 95 % of its arrivals met the SLO; if none is, all are.

    Raises:
        ValueError: if there are none.
    """
    candidates = list(results)
    if not candidates:
        raise ValueError("results: there are none to choose from; run at least one policy")
    eligible = [result for result in candidates if result.slo_attainment >= KEPT] or candidates
    return max(eligible, key=lambda result: result.goodput_tokens_per_s)
