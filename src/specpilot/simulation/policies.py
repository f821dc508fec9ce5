"""Policies by name, and their exact replay on one stream of requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from specpilot.control import ControllerConfig
from specpilot.control.planning import Planner
from specpilot.control.tree import RANKS
from specpilot.decoding.clock import VirtualClock
from specpilot.simulation.baselines import RULES, STATIC_NAMES, make_rule
from specpilot.simulation.bayes import Bayes, Population
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.drive import request_record, serve
from specpilot.simulation.observed import ObservedController
from specpilot.simulation.oracle import Oracle
from specpilot.simulation.replay import ReplayRequest, TraceExecutor
from specpilot.simulation.results import PolicyResult, RequestRecord, summarise
from specpilot.trace.agreement import AgreementTrace

POLICY_NAMES = ("specpilot", *STATIC_NAMES, *RULES, "oracle")
"""Policies that need nothing but a trace."""
TREE_NAMES = ("specpilot-chain", "oracle-tree")
"""Beside them where token trees are on: specpilot without, and the clairvoyant of trees."""
GIVING_WAY = "specpilot-giving-way"
"""specpilot with ``give_way`` on, beside itself with its promises as they are."""
SIMULATED_NAMES = (*POLICY_NAMES, GIVING_WAY, "bayes")
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
        others = (*RULES, "oracle", "bayes", *TREE_NAMES, GIVING_WAY)
        known = ("specpilot", "static-0…static-16", *(other for other in others if other in names))
        raise ValueError(f"policy: {name!r} is not known; choose one of {', '.join(known)}")
    return name


def policy_config(name: str, config: ControllerConfig) -> ControllerConfig:
    """The promises that a policy runs under: some policies are specpilot itself with another setting."""
    if name == "specpilot-chain":
        return replace(config, max_nodes=0, lookup_depth=0)
    if name == GIVING_WAY:
        return replace(config, give_way=True)
    return config


def make_planner(name: str, requests: Sequence[ReplayRequest]) -> Planner | None:
    """A fresh planner; ``None`` stands for the controller's own (``specpilot``).

    Raises:
        ValueError: if there is no such policy.
    """
    check_policy(name, (*POLICY_NAMES, *TREE_NAMES, GIVING_WAY))
    if name in ("specpilot", "specpilot-chain", GIVING_WAY):
        return None
    if name in ("oracle", "oracle-tree"):
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
    config = policy_config(name, config or ControllerConfig())
    if name == "oracle-tree":
        requests = [replace(request, trace=_any_choice(request.trace)) for request in requests]
    if name in ("specpilot", GIVING_WAY) and config.max_nodes:
        for request in requests:
            if request.trace.shares is None:
                raise ValueError(
                    f"shares: request {request.trace.request!r} has none, which token trees need; record the "
                    "trace with this version, or set max_nodes to 0"
                )
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


def _any_choice(trace: AgreementTrace) -> AgreementTrace:
    """The trace of a draft whose first choice is right wherever any choice that a tree can hold is."""
    ranks, looked_up = trace.rank or (), trace.lookup or ()
    agree = [
        1 if bit == 1 or (ranks and ranks[at] < RANKS) or (looked_up and looked_up[at][1]) else 0
        for at, bit in enumerate(trace.agree)
    ]
    return replace(trace, agree=tuple(agree))


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
