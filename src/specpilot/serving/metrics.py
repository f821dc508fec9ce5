"""Prometheus metrics: what the loop tells, counted; what the controller knows, read at the scrape.

Whatever stands in the ledger and in the controller's counters is read in one go under the engine's lock, so
that within every scrape passes ≤ budget · admitted, and admitted = finished + cancelled + failed + in flight.
No text and no token of a request is in a metric.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from specpilot.control.config import Mode
from specpilot.control.types import Binding, CycleOutcome, CyclePlan, RequestInfo, RequestSummary, StopCause
from specpilot.decoding.seams import LoopObserver
from specpilot.models.sessions import CacheStore
from specpilot.serving.continuation import ContinuationCache
from specpilot.serving.engine import Engine

LATENCY_S = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.125,
    0.15,
    0.175,
    0.2,
    0.225,
    0.25,
    0.3,
    0.4,
    0.5,
    1.0,
    2.5,
    10.0,
)
LENGTHS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)
POSITIONS = 32
"""Positions of a block that are told apart; none is longer."""


class Metrics(LoopObserver):
    """Counts what the loop tells it. Its methods run under the engine's lock."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)  # resident memory, CPU time, open files; on Linux
        self._drafted = PrometheusCounter(
            "specpilot_draft_tokens",
            "Draft tokens that were sent to verification, a tree's side nodes included",
            registry=registry,
        )
        self._accepted = PrometheusCounter(
            "specpilot_accepted_tokens", "Draft tokens that the target accepted", registry=registry
        )
        self._emitted = PrometheusCounter(
            "specpilot_emitted_tokens",
            "Verified tokens, the recovered or bonus token of each pass included",
            registry=registry,
        )
        self._drafted_at = _by_position(
            "specpilot_draft_tokens_at_position", "The draft's first choices sent to verification", registry
        )
        self._accepted_at = _by_position(
            "specpilot_accepted_tokens_at_position", "The draft's first choices accepted", registry
        )
        self._length = Histogram(
            "specpilot_draft_length",
            "Tokens proposed in a cycle (0: plain decoding)",
            buckets=LENGTHS,
            registry=registry,
        )
        bound = PrometheusCounter(
            "specpilot_cycles", "Cycles by what bound their plan", ["binding"], registry=registry
        )
        self._bound = {binding: bound.labels(binding.value) for binding in Binding}
        self._fallback = PrometheusCounter(
            "specpilot_fallback_cycles", "Cycles planned without a draft (τ = 0)", registry=registry
        )
        self._faults = PrometheusCounter(
            "specpilot_draft_faults", "Cycles in which the drafter failed or hung", registry=registry
        )
        self._physical = PrometheusCounter(
            "specpilot_physical_passes", "Target passes of the engine, shared ones once", registry=registry
        )
        self._e2e = Histogram(
            "specpilot_e2e_seconds",
            "From arrival to the end of a request that the engine served (cancelled ones apart)",
            buckets=LATENCY_S,
            registry=registry,
        )
        slo = PrometheusCounter(
            "specpilot_slo_requests",
            "Requests that the engine served, by whether they met their SLO with some text",
            ["met"],
            registry=registry,
        )
        self._slo = {met: slo.labels("true" if met else "false") for met in (True, False)}
        self._engine_s = PrometheusCounter(
            "specpilot_engine_seconds", "Time in which the engine ran cycles", registry=registry
        )
        continuation = PrometheusCounter(
            "specpilot_continuation_requests",
            "Look-ups in the continuation cache: hit (no target pass), carried (verified start), miss",
            ["outcome"],
            registry=registry,
        )
        self._continuation = {name: continuation.labels(name) for name in ("hit", "carried", "miss")}
        self._continued = PrometheusCounter(
            "specpilot_continuation_tokens", "Tokens served from the continuation cache", registry=registry
        )
        self._turned_away = PrometheusCounter(
            "specpilot_turned_away_requests",
            "Requests refused before the controller was asked",
            ["reason"],
            registry=registry,
        )
        self._responses = PrometheusCounter(
            "specpilot_http_responses", "HTTP responses by status", ["code"], registry=registry
        )
        self._last_start_s = -1.0

    def scrape(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def cycle(
        self, info: RequestInfo, plan: CyclePlan, outcome: CycleOutcome, start_s: float, end_s: float
    ) -> None:
        """Counts one request's cycle."""
        proposed = min(outcome.proposed, POSITIONS)
        self._drafted.inc(outcome.proposed + outcome.side_proposed)
        self._accepted.inc(outcome.accepted + outcome.side_accepted)
        self._emitted.inc(outcome.emitted)
        for child in self._drafted_at[:proposed]:
            child.inc()
        for child in self._accepted_at[: min(outcome.accepted, proposed)]:
            child.inc()
        self._length.observe(outcome.proposed)
        self._bound[plan.reason.binding].inc()
        if not plan.max_draft:
            self._fallback.inc()
        if outcome.draft_fault is not None:
            self._faults.inc()
        if start_s != self._last_start_s:  # cycles of one pass start together
            self._last_start_s = start_s
            self._physical.inc()
            self._engine_s.inc(end_s - start_s)

    def finished(self, info: RequestInfo, summary: RequestSummary, now: float) -> None:
        """Counts a request's end."""
        if summary.cause is StopCause.CANCELLED:
            return
        self._e2e.observe(summary.e2e_ms / 1000.0)
        self._slo[summary.met_slo].inc()

    def continuation(self, outcome: str, tokens: int) -> None:
        """A look-up in the continuation cache."""
        self._continuation[outcome].inc()
        self._continued.inc(tokens)

    def turned_away(self, reason: str) -> None:
        """A request was refused before the controller was asked."""
        self._turned_away.labels(reason).inc()

    def response(self, code: int) -> None:
        """An HTTP response was started."""
        self._responses.labels(str(code)).inc()


class EngineState(Collector):
    """Reads the controller under the engine's lock, at the scrape.

    Args:
        engine: is read.
        stores: the models' KV stores, by name.
        continuations: the continuation cache.
    """

    def __init__(
        self, engine: Engine, stores: Mapping[str, CacheStore], continuations: ContinuationCache
    ) -> None:
        self._engine = engine
        self._stores = stores
        self._continuations = continuations

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are not checked against other collectors'."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One consistent reading."""
        engine, controller = self._engine, self._engine.controller
        with engine.lock:
            ledger, counters = controller.ledger, controller.counters
            arrivals, refused, ends = counters.arrivals, counters.refused, Counter(counters.finished)
            charged, passes, pool, burnt = (
                ledger.admitted,
                ledger.passes_started,
                ledger.pool,
                ledger.burnt / 1000.0,
            )
            outstanding, mode = engine.outstanding, controller.mode
            share, theta = controller.deadlines.share, controller.time_price.busy_rate
        config = controller.config
        yield _counter("specpilot_arrivals", "Requests offered to the controller", arrivals)
        yield _counter("specpilot_admitted_requests", "Requests admitted", arrivals - refused)
        yield _gauge(
            "specpilot_charged_requests",
            "Admitted requests less those that ended without a target pass: what the budget is held against",
            charged,
        )
        yield _counter("specpilot_target_passes", "Target passes started, one for each request in it", passes)
        cancelled, failed = ends[StopCause.CANCELLED], ends[StopCause.ERROR]
        outcomes = CounterMetricFamily(
            "specpilot_requests", "Requests by outcome (refused: by the controller)", labels=["outcome"]
        )
        outcomes.add_metric(["finished"], sum(ends.values()) - cancelled - failed)
        outcomes.add_metric(["cancelled"], cancelled)
        outcomes.add_metric(["failed"], failed)
        outcomes.add_metric(["refused"], refused)
        yield outcomes
        stops = CounterMetricFamily("specpilot_stops", "Ended requests by stop cause", labels=["cause"])
        for cause in StopCause:
            stops.add_metric([cause.value], ends[cause])
        yield stops
        yield _gauge("specpilot_queue_depth", "Requests admitted and not ended", outstanding)
        yield _gauge("specpilot_pass_pool", "Target passes in the shared pool", pool)
        yield _counter("specpilot_burnt_passes", "Passes that flowed into a full pool", burnt)
        yield _gauge("specpilot_pass_budget", "Target passes per request, promised", config.pass_budget)
        yield _gauge("specpilot_slo_seconds", "End-to-end latency at p95, promised", config.slo_p95_ms / 1e3)
        yield _gauge("specpilot_deadline_share", "Share of the SLO that requests are planned for", share)
        yield _gauge(
            "specpilot_busy_tokens_per_second", "Verified tokens per second of engine time", theta * 1e3
        )
        modes = GaugeMetricFamily("specpilot_mode", "Who chooses the draft length", labels=["mode"])
        for one in Mode:
            modes.add_metric([one.value], float(one is mode))
        yield modes
        kept = self._continuations
        yield _gauge("specpilot_continuation_cache_tokens", "Tokens in the continuation cache", kept.tokens)
        yield _gauge("specpilot_continuation_cache_entries", "Outputs in the continuation cache", len(kept))
        yield from self._caches()

    def _caches(self) -> Iterator[Metric]:
        found = CounterMetricFamily(
            "specpilot_kv_lookups", "Look-ups of a session's KV cache", labels=["model", "outcome"]
        )
        gone = CounterMetricFamily("specpilot_kv_evictions", "KV caches dropped", labels=["model"])
        size = GaugeMetricFamily("specpilot_kv_bytes", "Bytes in kept KV caches", labels=["model"])
        kept = GaugeMetricFamily("specpilot_kv_caches", "KV caches kept for sessions", labels=["model"])
        for name, store in self._stores.items():
            stats = store.stats
            found.add_metric([name, "hit"], stats.hits)
            found.add_metric([name, "miss"], stats.misses)
            gone.add_metric([name], stats.evictions)
            size.add_metric([name], stats.bytes)
            kept.add_metric([name], stats.caches)
        yield from (found, gone, size, kept)


def _by_position(name: str, text: str, registry: CollectorRegistry) -> list[PrometheusCounter]:
    family = PrometheusCounter(name, f"{text}, by position in the block", ["position"], registry=registry)
    return [family.labels(str(position)) for position in range(1, POSITIONS + 1)]


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
