"""From a trace file to a stream of requests: how many, in which order, how fast."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from specpilot.control import ControllerConfig, CostProfile
from specpilot.control.curves import KNOTS
from specpilot.simulation.costs import EngineCosts, Table, read_costs
from specpilot.simulation.policies import replay_policy
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.unknown import fill_unknown
from specpilot.trace.agreement import AgreementTrace


def stream(
    traces: Sequence[AgreementTrace], *, count: int | None, max_tokens: int, rate: float, seed: int
) -> tuple[list[ReplayRequest], int]:
    """Requests with Poisson arrivals, in shuffled rounds over the traces; and the unknown bits drawn.

    Args:
        traces: at least one.
        count: how many requests; ``None`` for each trace once.
        max_tokens: most output tokens per request.
        rate: arrivals per second; ``math.inf`` for all at once (a closed loop ignores the times).
        seed: of order, arrivals and unknown bits.

    Raises:
        ValueError: for a count or max_tokens below 1.
    """
    for name, value in (("requests", count), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: {value} is not ≥ 1; give a count")
    filled, drawn = fill_unknown(traces, seed)
    rng = random.Random(seed)
    order: list[AgreementTrace] = []
    wanted = len(filled) if count is None else count
    while len(order) < wanted:
        # Whole rounds: every trace occurs equally often, give or take one.
        order += rng.sample(filled, len(filled))
    at = 0.0
    requests = []
    for index, trace in enumerate(order[:wanted]):
        at += rng.expovariate(1.0) / rate
        requests.append(ReplayRequest(f"{index}:{trace.request}", trace, max_tokens, at))
    return requests, drawn


def capacity(requests: Sequence[ReplayRequest], costs: EngineCosts, config: ControllerConfig) -> float:
    """Requests per second that specpilot serves when there is always one to serve (closed loop)."""
    result = replay_policy("specpilot", requests, costs, config, closed_loop=True).result
    return max(1, result.requests) / result.duration_s


def at_load(
    traces: Sequence[AgreementTrace],
    costs: EngineCosts,
    config: ControllerConfig,
    load: float,
    *,
    count: int | None,
    max_tokens: int,
    seed: int,
) -> tuple[list[ReplayRequest], int]:
    """:func:`stream` at ``load`` times the capacity; 0: all at once, for a closed loop.

    Raises:
        ValueError: for a load that is not ≥ 0 and finite, a count or max_tokens below 1.
    """
    if not 0.0 <= load < math.inf:
        raise ValueError(f"load: {load} is not ≥ 0 and finite; 0.4 is typical, 0 is closed loop")
    closed, drawn = stream(traces, count=count, max_tokens=max_tokens, rate=math.inf, seed=seed)
    if not load:
        return closed, drawn
    rate = load * capacity(closed, costs, config)
    return stream(traces, count=count, max_tokens=max_tokens, rate=rate, seed=seed)


def costs_from(
    path: Path | None, draft_ms: float | None, verify_ms: float | None, verify_token_ms: float | None
) -> EngineCosts:
    """The costs that the command line names: a file, or three numbers, or the built-in first guess.

    Raises:
        ValueError: if a file and numbers are both given, or only a part of the numbers.
    """
    numbers = (draft_ms, verify_ms, verify_token_ms)
    if path is not None:
        if any(value is not None for value in numbers):
            raise ValueError(
                "cost: given together with --draft-ms or --verify-ms; give the file or the numbers"
            )
        return read_costs(path)
    if draft_ms is not None and verify_ms is not None:
        return EngineCosts.from_numbers(
            draft_ms=draft_ms, verify_ms=verify_ms, verify_token_ms=verify_token_ms or 0.0
        )
    if any(value is not None for value in numbers):
        raise ValueError("draft_ms, verify_ms: one of the two is missing; give both, or --cost FILE")
    return first_guess()


def first_guess() -> EngineCosts:
    """The controller's own first guess of an engine's costs, where nothing was measured."""
    profile = CostProfile()
    return EngineCosts(
        draft_step=Table((0.0,), (profile.draft_step_ms,)),
        draft_forward=Table(tuple(float(knot) for knot in KNOTS), profile.draft_prefill_ms),
        verify=tuple(
            (float(knot), Table((0.0,), (ms,))) for knot, ms in zip(KNOTS, profile.verify_ms, strict=True)
        ),
        engine="built-in guess (give --cost FILE for measured ones)",
    )
