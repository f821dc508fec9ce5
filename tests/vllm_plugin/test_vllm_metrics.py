"""The plugin's metrics between the scheduler's process and that of ``/metrics``; no vLLM needed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from specpilot.control import Controller, ControllerConfig, RequestInfo, StopCause
from specpilot.vllm import metrics
from specpilot.vllm.metrics import Exported, Reporter
from specpilot.vllm.pilot import Pass, Pilot, StepTimes


def served(budget: float = 2.0) -> Pilot:
    """A pilot after one request's prompt pass; the request is not over."""
    pilot = Pilot(Controller(ControllerConfig(pass_budget=budget, slo_p95_ms=60_000.0, max_draft=6)))
    info = RequestInfo("a", prompt_tokens=40, max_tokens=24, prefill_drafts=False)
    assert pilot.admit(info, now=0.0) == ""
    pilot.begin(["a"], now=0.0)
    done = Pass("a", width=40, context=0, proposed=0, accepted=0, emitted=1, prefill=True, drafting=True)
    pilot.observe([done], StepTimes(10.0, 7.0, 2.0), 3, now=0.01)
    return pilot


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """A sample of engine 0."""
    return registry.get_sample_value(name, {"model_name": "m", "engine": "0", **labels})


def test_changes_add_up_to_the_totals() -> None:
    pilot, reporter, registry = served(), Reporter(), CollectorRegistry()
    exported = Exported(registry)
    first = reporter.report(pilot, 0.25)
    assert first["changes"]["specpilot_target_passes"] == 1.0
    exported.take(first, "m", 0)
    pilot.finish("a", StopCause.CANCELLED, now=0.02)
    second = reporter.report(pilot, 0.5)
    assert second["changes"] == {"specpilot_stops/cancelled": 1.0, "specpilot_overhead_seconds": 0.25}
    exported.take(second, "m", 0)
    assert value(registry, "specpilot_target_passes_total") == 1.0
    assert value(registry, "specpilot_charged_requests") == 1.0
    assert value(registry, "specpilot_stops_total", cause="cancelled") == 1.0
    assert value(registry, "specpilot_overhead_seconds_total") == 0.5
    assert value(registry, "specpilot_pass_budget") == 2.0
    assert value(registry, "specpilot_slo_seconds") == 60.0


def test_a_request_that_ends_without_a_pass_is_not_charged() -> None:
    pilot, reporter, registry = served(), Reporter(), CollectorRegistry()
    exported = Exported(registry)
    info = RequestInfo("b", prompt_tokens=40, max_tokens=24, prefill_drafts=False)
    assert pilot.admit(info, now=0.03) == ""
    exported.take(reporter.report(pilot, 0.0), "m", 0)
    assert value(registry, "specpilot_charged_requests") == 2.0
    pilot.finish("b", StopCause.CANCELLED, now=0.04)
    exported.take(reporter.report(pilot, 0.0), "m", 0)
    assert value(registry, "specpilot_charged_requests") == 1.0
    assert value(registry, "specpilot_admitted_requests_total") == 2.0


def test_without_a_budget_there_is_no_budget_to_show() -> None:
    report = Reporter().report(served(math.inf), 0.0)
    assert "specpilot_pass_budget" not in report["gauges"]
    assert all(math.isfinite(number) for part in report.values() for number in part.values())


def test_every_metric_has_changes_and_a_description() -> None:
    totals = metrics.totals(served(), 0.0)
    assert {name for name in totals if "/" not in name} == set(metrics.COUNTERS)


def test_the_report_is_taken_out_before_vllm_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Manager:
        def record(self, scheduler_stats: Any, iteration_stats: Any, engine_idx: int | None = None) -> None:
            seen.append((scheduler_stats.kv_connector_stats if scheduler_stats else None, engine_idx))

    registry = CollectorRegistry()
    monkeypatch.setattr(metrics, "Exported", lambda: Exported(registry))
    metrics.install(Manager)
    metrics.install(Manager)  # once only
    manager = Manager()
    report = {metrics.KEY: Reporter().report(served(), 0.0), metrics.MODEL: "m"}
    manager.record(
        scheduler_stats=SimpleNamespace(kv_connector_stats=report), iteration_stats=None, engine_idx=0
    )
    assert value(registry, "specpilot_target_passes_total") == 1.0
    manager.record(SimpleNamespace(kv_connector_stats={"other": 1}), None)
    manager.record(None, None)
    assert seen == [(None, 0), ({"other": 1}, None), (None, None)]
