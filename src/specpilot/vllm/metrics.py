"""The plugin's Prometheus metrics, in vLLM's own ``/metrics``.

The scheduler counts in the engine's process, ``/metrics`` is another's. What has changed since the last step
travels in the ``kv_connector_stats`` of vLLM's ``SchedulerStats``, which is free, because the plugin refuses
KV connectors; it is taken out again before vLLM looks at it. Changes, not totals: with several API servers
each step's statistics go to one of them, and vLLM adds theirs up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from specpilot.vllm.pilot import Pilot

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge

KEY, MODEL = "specpilot", "model_name"
COUNTERS = {
    "specpilot_admitted_requests": "Requests admitted",
    "specpilot_turned_away_requests": "Requests refused by the controller",
    "specpilot_charged_requests": (
        "Admitted requests less those that ended without a target pass: what the budget is held against"
    ),
    "specpilot_target_passes": "Target passes started, one for each request in it",
    "specpilot_prefill_passes": "Target passes with prompt tokens in them",
    "specpilot_fallback_cycles": "Decode passes without a draft (τ = 0)",
    "specpilot_unpaid_passes": (
        "Target passes that vLLM ran for requests without one left, beyond the budget; not in target_passes"
    ),
    "specpilot_physical_passes": "Target passes of the engine, shared ones once",
    "specpilot_drafted_tokens": "Tokens drafted, those trimmed before verification included",
    "specpilot_draft_tokens": "Draft tokens that were sent to verification",
    "specpilot_accepted_tokens": "Draft tokens that the target accepted",
    "specpilot_emitted_tokens": "Verified tokens, the recovered or bonus token of each pass included",
    "specpilot_overhead_seconds": "Time spent in the plugin's part of the scheduler",
}
"""Names without ``_total``. ``charged_requests`` can fall, so it is a gauge in vLLM's process."""
STOPS = "specpilot_stops"
GAUGES = {
    "specpilot_pass_budget": "Target passes per request, promised",
    "specpilot_pass_pool": "Target passes in the shared pool",
    "specpilot_slo_seconds": "End-to-end latency at p95, promised",
}
FALLING = "specpilot_charged_requests"


def totals(pilot: Pilot, own_s: float) -> dict[str, float]:
    """What has been counted since the start; a stop cause is in the name as ``specpilot_stops/cause``."""
    counters, ledger = pilot.counters, pilot.controller.ledger
    found: dict[str, float] = {
        "specpilot_admitted_requests": counters.admitted,
        "specpilot_turned_away_requests": counters.refused,
        "specpilot_charged_requests": ledger.admitted,
        "specpilot_target_passes": ledger.passes_started,
        "specpilot_prefill_passes": counters.prefill_passes,
        "specpilot_fallback_cycles": counters.plain_passes,
        "specpilot_unpaid_passes": counters.unpaid,
        "specpilot_physical_passes": counters.physical_passes,
        "specpilot_drafted_tokens": counters.drafted,
        "specpilot_draft_tokens": counters.proposed,
        "specpilot_accepted_tokens": counters.accepted,
        "specpilot_emitted_tokens": counters.emitted,
        "specpilot_overhead_seconds": own_s,
    }
    return found | {f"{STOPS}/{cause}": count for cause, count in counters.ended.items()}


class Reporter:
    """In the scheduler: what changed since it was last asked."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}
        self._pilot: Pilot | None = None

    def report(self, pilot: Pilot, own_s: float) -> dict[str, dict[str, float]]:
        """Changes of the counters, values of the gauges."""
        if pilot is not self._pilot:
            self._pilot, self._told = pilot, {}
        now = totals(pilot, own_s)
        changes = {name: value - self._told.get(name, 0.0) for name, value in now.items()}
        self._told = now
        config = pilot.controller.config
        gauges = {
            "specpilot_pass_budget": config.pass_budget,
            "specpilot_pass_pool": pilot.controller.ledger.pool,
            "specpilot_slo_seconds": config.slo_p95_ms / 1000.0,
        }
        return {
            "changes": {name: change for name, change in changes.items() if change},
            # Neither JSON nor every decoder knows an infinity: no budget is no value.
            "gauges": {name: value for name, value in gauges.items() if math.isfinite(value)},
        }


class Exported:
    """In the process that serves ``/metrics``: the metrics, labelled as vLLM labels its own."""

    LABELS = ("model_name", "engine")

    def __init__(self, registry: Any = None) -> None:
        from prometheus_client import REGISTRY, Counter, Gauge

        registry = REGISTRY if registry is None else registry
        self._counters: dict[str, Counter] = {
            name: Counter(name, text, self.LABELS, registry=registry)
            for name, text in COUNTERS.items()
            if name != FALLING
        }
        self._stops = Counter(
            STOPS, "Ended requests by stop cause", (*self.LABELS, "cause"), registry=registry
        )
        self._falling: Gauge = Gauge(
            FALLING, COUNTERS[FALLING], self.LABELS, registry=registry, multiprocess_mode="sum"
        )
        self._gauges: dict[str, Gauge] = {
            name: Gauge(name, text, self.LABELS, registry=registry, multiprocess_mode="mostrecent")
            for name, text in GAUGES.items()
        }

    def take(self, report: Mapping[str, Mapping[str, float]], model_name: str, engine: int) -> None:
        """Add a step's report."""
        labels = (model_name, str(engine))
        for name, change in report["changes"].items():
            kind, _, cause = name.partition("/")
            if kind == STOPS:
                self._stops.labels(*labels, cause).inc(change)
            elif kind == FALLING:
                self._falling.labels(*labels).inc(change)
            else:
                self._counters[kind].labels(*labels).inc(change)
        for name, value in report["gauges"].items():
            self._gauges[name].labels(*labels).set(value)


def install(manager: type[Any]) -> None:
    """Wrap ``StatLoggerManager.record``; once in a process."""
    if getattr(manager, "_specpilot", False):
        return
    manager._specpilot = True
    record = manager.record
    exported: list[Exported] = []

    @functools.wraps(record)
    def record_and_export(
        self: Any, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any
    ) -> Any:
        carried = getattr(scheduler_stats, "kv_connector_stats", None)
        if isinstance(carried, dict) and KEY in carried:
            scheduler_stats.kv_connector_stats = None
            if not exported:
                exported.append(Exported())
            exported[0].take(carried[KEY], carried[MODEL], kwargs.get("engine_idx") or 0)
        return record(self, scheduler_stats, iteration_stats, *args, **kwargs)

    manager.record = record_and_export
