"""Policies by name, and their exact replay on one stream of requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from specpilot.control import ControllerConfig, RequestInfo, StopCause
from specpilot.control.planning import Planner
from specpilot.simulation.baselines import RULES, STATIC_NAMES, make_rule
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.observed import ObservedController
from specpilot.simulation.oracle import Oracle
from specpilot.simulation.replay import ReplayRequest, TraceExecutor
from specpilot.simulation.results import PolicyResult, RequestRecord, summarise

POLICY_NAMES = ("specpilot", *STATIC_NAMES, *RULES, "oracle")


@dataclass(frozen=True, slots=True)
class ReplayRun:
    """A policy's replay: its result, every arrival's record, and the controller that ran it."""

    result: PolicyResult
    records: Sequence[RequestRecord]
    controller: ObservedController


def check_policy(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: if there is no such policy.
    """
    if name not in POLICY_NAMES:
        known = ("specpilot", "static-0…static-16", *RULES, "oracle")
        raise ValueError(f"policy: {name!r} is not known; choose one of {', '.join(known)}")
    return name


def make_planner(name: str, requests: Sequence[ReplayRequest]) -> Planner | None:
    """A fresh planner; ``None`` stands for the controller's own (``specpilot``).

    Raises:
        ValueError: if there is no such policy.
    """
    check_policy(name)
    if name == "specpilot":
        return None
    if name == "oracle":
        return Oracle(
            {request.request_id: [int(bit or 0) for bit in request.trace.agree] for request in requests}
        )
    return make_rule(name)


def replay_policy(
    name: str,
    requests: Sequence[ReplayRequest],
    costs: EngineCosts,
    config: ControllerConfig | None = None,
    *,
    closed_loop: bool = False,
    keep_cycles: bool = False,
) -> ReplayRun:
    """Replay one policy over requests in order of arrival.

    Args:
        name: the policy.
        requests: with traces that have no unknown bits.
        costs: the engine's times.
        config: the promises; default as everywhere.
        closed_loop: each request arrives when the one before has ended, whatever its ``arrival_s``:
            one client that never waits, which measures capacity.
        keep_cycles: keep a record per cycle.

    Raises:
        ValueError: for an unknown policy or no requests.
    """
    if not requests:
        raise ValueError("requests: there are none; give at least one trace")
    config = config or ControllerConfig()
    controller = ObservedController(config, make_planner(name, requests), keep_cycles=keep_cycles)
    executor = TraceExecutor({request.request_id: request for request in requests}, costs)
    arrivals = serve(controller, executor, requests, closed_loop=closed_loop)
    records = [_record(request, arrivals[request.request_id], controller) for request in requests]
    result = summarise(
        name, "replay", records, controller.totals, budget_violations=controller.budget_violations
    )
    extra = {"off_path_confidences": executor.off_path_confidences}
    return ReplayRun(replace(result, extra=extra), records, controller)


def serve(
    controller: ObservedController,
    executor: TraceExecutor,
    requests: Sequence[ReplayRequest],
    *,
    closed_loop: bool = False,
) -> dict[str, float]:
    """Run requests on one engine in virtual time, first come, first served; returns their arrivals.

    A request that arrives during a pass is admitted when the pass has ended, as on a real engine.
    """
    coming = deque(requests)
    active: deque[str] = deque()
    arrivals: dict[str, float] = {}
    now = 0.0
    while coming or active:
        if not active and not closed_loop:
            now = max(now, coming[0].arrival_s)
        while coming and (not active if closed_loop else coming[0].arrival_s <= now):
            request = coming.popleft()
            arrivals[request.request_id] = now if closed_loop else request.arrival_s
            info = RequestInfo(
                request_id=request.request_id,
                prompt_tokens=request.trace.prompt_tokens,
                max_tokens=request.length,
                arrival_s=arrivals[request.request_id],
                cached_tokens=executor.open(request.request_id),
            )
            if controller.admit(info, now=now).admitted:
                active.append(request.request_id)
            else:
                executor.close(request.request_id, StopCause.POLICY)
        if not active:
            continue
        request_id = active[0]
        batch = controller.plan([request_id], now=now)
        if batch.cycles:
            plan = batch.cycles[0]
            controller.begin([plan.cycle_id], now=now)
            outcome = executor.run([plan])[0]
            busy = outcome.draft_prefill_ms + outcome.draft_ms + outcome.verify_ms + outcome.host_ms
            now += busy / 1000.0
            controller.observe([outcome], now=now)
            cause = outcome.ended
        else:
            cause = batch.stops[0].cause
        if cause is not None:
            active.popleft()
            executor.close(request_id, cause)
            controller.finish(request_id, cause, now=now)
    return arrivals


def replay_all(
    names: Iterable[str],
    requests: Sequence[ReplayRequest],
    costs: EngineCosts,
    config: ControllerConfig | None = None,
    *,
    closed_loop: bool = False,
) -> list[PolicyResult]:
    """Replay several policies on the same requests; see :func:`replay_policy`."""
    return [replay_policy(name, requests, costs, config, closed_loop=closed_loop).result for name in names]


def _record(request: ReplayRequest, arrival_s: float, controller: ObservedController) -> RequestRecord:
    """The request's record for the result, from the controller's account and the trace."""
    return request_record(request, arrival_s, controller, request.request_id)


def request_record(
    request: ReplayRequest, arrival_s: float, controller: ObservedController, request_id: str
) -> RequestRecord:
    """One arrival's record; refused requests have no cause and end when they arrive."""
    summary = controller.summaries.get(request_id)
    slo_ms = controller.config.slo_p95_ms
    trace = request.trace
    if summary is None:
        return RequestRecord(request_id, arrival_s, arrival_s, slo_ms, None, trace.prompt_tokens)
    return RequestRecord(
        request_id=request_id,
        arrival_s=arrival_s,
        end_s=arrival_s + summary.e2e_ms / 1000.0,
        slo_ms=slo_ms,
        cause=summary.cause,
        prompt_tokens=trace.prompt_tokens,
        emitted_tokens=summary.emitted_tokens,
        loop_tokens=trace.loop_tokens(summary.emitted_tokens),
        near_ties=trace.near_ties(summary.emitted_tokens),
        target_passes=summary.target_passes,
        label=trace.label or "",
    )
