"""Policies by name, and their exact replay on one stream of requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from specpilot.control import ControllerConfig
from specpilot.control.planning import Planner
from specpilot.decoding.clock import VirtualClock
from specpilot.simulation.baselines import RULES, STATIC_NAMES, make_rule
from specpilot.simulation.bayes import Bayes, Population
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.drive import request_record, serve
from specpilot.simulation.observed import ObservedController
from specpilot.simulation.oracle import Oracle
from specpilot.simulation.replay import ReplayRequest, TraceExecutor
from specpilot.simulation.results import PolicyResult, RequestRecord, summarise

POLICY_NAMES = ("specpilot", *STATIC_NAMES, *RULES, "oracle")
"""Policies that need nothing but a trace."""
SIMULATED_NAMES = (*POLICY_NAMES, "bayes")
"""And the one that needs to know what the requests were drawn from."""


@dataclass(frozen=True, slots=True)
class ReplayRun:
    """A policy's replay: its result, every arrival's record, and the controller that ran it."""

    result: PolicyResult
    records: Sequence[RequestRecord]
    controller: ObservedController


def check_policy(name: str, names: Sequence[str] = POLICY_NAMES) -> str:
    """The name itself, if it is one of ``names``.

    Raises:
        ValueError: if there is no such policy.
    """
    if name not in names:
        known = ("specpilot", "static-0…static-16", *(n for n in names if n in (*RULES, "oracle", "bayes")))
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
    population: Population | None = None,
    planner: Planner | None = None,
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
        population: what the requests were drawn from; for ``bayes`` alone.
        planner: a fresh planner of the caller's own, under any name.

    Raises:
        ValueError: for an unknown policy or no requests.
    """
    if not requests:
        raise ValueError("requests: there are none; give at least one trace")
    config = config or ControllerConfig()
    if name == "bayes" and population is not None:
        controller = ObservedController(config, keep_cycles=keep_cycles)
        # The same θ: the planner needs the controller's, which has one only when it is made.
        controller.planner = Bayes(population, costs, controller.time_price, config.finish_bonus_tokens)
    else:
        planner = planner or make_planner(name, requests)
        controller = ObservedController(config, planner, keep_cycles=keep_cycles)
    executor = TraceExecutor({request.request_id: request for request in requests}, costs)
    serve(controller, executor, requests, VirtualClock(), closed_loop=closed_loop)
    records = [request_record(request, controller) for request in requests]
    result = summarise(
        name, "replay", records, controller.totals, budget_violations=controller.budget_violations
    )
    extra = {"off_path_confidences": executor.off_path_confidences}
    return ReplayRun(replace(result, extra=extra), records, controller)


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
