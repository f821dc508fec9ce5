"""Running the scenario suite: one job is one scenario, load and seed, on which every policy is replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from specpilot.control import ControllerConfig
from specpilot.simulation.policies import SIMULATED_NAMES, replay_policy
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.results import PolicyResult, goodput
from specpilot.simulation.scenarios import Scenario, scenario

LOADS = (0.0, 0.4, 0.7)
"""Arrival rate ÷ specpilot's closed-loop capacity; 0 is the closed loop (saturation). Two versions of
specpilot so get different arrivals: their ratios to other policies compare, their goodput does not."""
WARM_UP = 200
"""Requests left out of ``warm_goodput_tokens_per_s``: every policy has learnt what it will by then."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Job:
    """One replay of some policies; of plain names and numbers, so that another process can run it.

    Without ``ledger`` a request may take as many passes as it wants: as the published systems really run.
    """

    scenario: str
    load: float
    seed: int
    requests: int
    policies: tuple[str, ...] = SIMULATED_NAMES
    ledger: bool = True


def offered(one: Scenario, load: float, seed: int, count: int) -> list[ReplayRequest]:
    """The scenario's requests as they arrive; in a closed loop the times are not looked at."""
    requests = one.requests(count, seed)
    if not load:
        return requests
    closed = replay_policy("specpilot", requests, one.costs, one.config, closed_loop=True)
    return one.arriving(requests, load * count / max(record.end_s for record in closed.records), seed)


def run(job: Job) -> dict[str, PolicyResult]:
    """Replay the job's policies; results by name."""
    one = scenario(job.scenario)
    requests = offered(one, job.load, job.seed, job.requests)
    config = one.config if job.ledger else unlimited(one)
    population = one.population(requests)
    results = {}
    for name in job.policies:
        done = replay_policy(
            name, requests, one.costs, config, closed_loop=job.load == 0.0, population=population
        )
        # A short run (a test) has no warm part: all of it counts then.
        warm = done.records[WARM_UP:] if len(done.records) >= 2 * WARM_UP else done.records
        extra = done.result.extra | {"warm_goodput_tokens_per_s": goodput(warm)}
        results[name] = replace(done.result, extra=extra)
    return results


def unlimited(one: Scenario) -> ControllerConfig:
    """The scenario's promises without a pass budget: each pass yields a token, so max_tokens never bind."""
    return replace(one.config, pass_budget=float(one.max_tokens))


def run_all(jobs: Sequence[Job], processes: int = 2) -> Iterator[dict[str, PolicyResult]]:
    """Results in the order of the jobs, computed ``processes`` at a time."""
    return spread(run, jobs, processes)


def spread(work: Callable[[T], R], parts: Sequence[T], processes: int) -> Iterator[R]:
    """``work`` of each part, in their order, ``processes`` at a time (up to 1: in this one)."""
    if processes <= 1:
        yield from map(work, parts)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(work, parts)


def label(name: str, load: float) -> str:
    """How a table calls a scenario at a load."""
    return f"{name}, {f'{load:g}' if load else 'closed'}"
