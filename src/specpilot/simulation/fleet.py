"""The simulator: a scenario served by one or many replicas, streamed, in bounded memory.

Each replica is an engine of its own with a controller of its own: the very object that serves live, in the
same serving loop, on a virtual clock. Requests are spread over the replicas at random (a Poisson stream
stays one), and because the pass budget holds on each replica by itself it holds for the fleet. Replicas
do not talk to each other, so they are simulated one after the other, several processes at a time, and only
one replica's requests in flight are held in memory.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from specpilot.control import Admission, ControllerConfig, RequestInfo, RequestSummary
from specpilot.decoding.clock import VirtualClock
from specpilot.decoding.loop import ServeLoop
from specpilot.decoding.seams import LoopObserver
from specpilot.simulation.account import Account
from specpilot.simulation.arrivals import read_arrivals
from specpilot.simulation.bayes import Bayes, LogOdds, Population
from specpilot.simulation.belief import Spread
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.drive import request_info
from specpilot.simulation.observed import ObservedController
from specpilot.simulation.oracle import Oracle
from specpilot.simulation.policies import make_planner, policy_config, replay_policy
from specpilot.simulation.replay import ReplayRequest, TraceExecutor
from specpilot.simulation.scenarios import Scenario, flat, scenario

CALIBRATION_REQUESTS = 400
"""Requests of the closed loop that measures a replica's capacity."""
BATCH = 25
"""Replicas that a process takes at a time."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """What is simulated: a scenario by name, what is changed in it, and how many requests come how fast.

    ``requests`` and ``rate`` (per second) are the whole fleet's. ``arrivals`` is a CSV file (see
    :mod:`specpilot.simulation.arrivals`) that gives times and lengths instead of ``rate`` and the
    scenario's prompts; ``speed`` makes it go faster. ``drift`` replaces the agreement by one for each of
    equal parts of the run. ``None`` leaves what the scenario has.

    Raises:
        ValueError: naming the field, its value, the allowed range and the remedy.
    """

    scenario: str = "steady"
    requests: int = 2000
    rate: float = 10.0
    replicas: int = 1
    seed: int = 1
    arrivals: Path | None = None
    speed: float = 1.0
    config: ControllerConfig | None = None
    costs: EngineCosts | None = None
    drift: tuple[float, ...] = ()
    prompts: tuple[int, ...] = ()
    max_tokens: int = 24
    burst: float | None = None
    outage: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        scenario(self.scenario)
        self._require("requests", self.requests >= 1, "≥ 1", "give a count")
        self._require("rate", 0.0 < self.rate < math.inf, "> 0 and finite", "give arrivals per second")
        self._require(
            "replicas",
            1 <= self.replicas <= self.requests,
            "in 1…requests",
            "give a count, at most one for each request",
        )
        self._require("speed", 0.0 < self.speed < math.inf, "> 0 and finite", "1 is the recorded pace")
        self._require("max_tokens", 1 <= self.max_tokens <= 256, "in 1…256", "24 is typical")
        self._require("drift", all(0.0 < a < 1.0 for a in self.drift), "in (0, 1) each", "0.7 is typical")
        self._require("prompts", all(p >= 1 for p in self.prompts), "≥ 1 each", "give token counts")
        self._require(
            "burst", self.burst is None or 1.0 <= self.burst < math.inf, "≥ 1 and finite", "1 is no burst"
        )
        if self.outage is not None:
            ordered = 0.0 <= self.outage[0] <= self.outage[1] <= 1.0
            self._require("outage", ordered, "two shares of the run, rising, in 0…1", "0.4-0.5 is a tenth")

    def _require(self, name: str, ok: bool, allowed: str, remedy: str) -> None:
        if not ok:
            raise ValueError(f"{name}: {getattr(self, name)!r} is not {allowed}; {remedy}")

    def build(self) -> Scenario:
        """The scenario with its changes."""
        one = replace(scenario(self.scenario), max_tokens=self.max_tokens)
        if self.config is not None:
            one = replace(one, config=self.config, choices=self.config.max_nodes > 0)
        if self.costs is not None:
            one = replace(one, costs=self.costs)
        if self.drift:
            one = replace(one, phases=tuple([flat(alpha) for alpha in self.drift]))
        if self.prompts:
            one = replace(one, prompts=self.prompts)
        if self.burst is not None:
            one = replace(one, burst=self.burst)
        if self.outage is not None:
            one = replace(one, outage=self.outage)
        return one

    def share(self, replica: int) -> int:
        """How many of the requests a replica gets."""
        return self.requests // self.replicas + (replica < self.requests % self.replicas)

    def capacity(self) -> float:
        """Requests per second that one replica serves under specpilot when there is always one to serve."""
        one = self.build()
        requests = one.requests(CALIBRATION_REQUESTS, self.seed)
        done = replay_policy("specpilot", requests, one.costs, one.config, closed_loop=True)
        return CALIBRATION_REQUESTS / max(record.end_s for record in done.records)

    def stream(self, replica: int, one: Scenario) -> Iterator[ReplayRequest]:
        """The replica's requests in order of arrival, drawn as they are asked for."""
        rng = random.Random(f"{self.seed}-{replica}")
        if self.arrivals is None:
            count, now = self.share(replica), 0.0
            for index in range(count):
                now += rng.expovariate(self.rate / self.replicas) * one.gap(index)
                yield replace(one.request(index, count, rng), arrival_s=now)
            return
        # Every replica reads the file and takes the lines that the same seeded draw gives it.
        routing = random.Random(self.seed)
        for index, arrival in enumerate(read_arrivals(self.arrivals)):
            if index >= self.requests:
                return
            if routing.randrange(self.replicas) == replica:
                made = one.request(index, self.requests, rng, arrival)
                yield replace(made, arrival_s=arrival.at_s / self.speed)


class _Live(LoopObserver):
    """What is known of the requests in flight, and where their ends are counted."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.requests: dict[str, ReplayRequest] = {}
        self.agree: dict[str, list[int]] = {}
        self.odds: dict[str, LogOdds] = {}

    def refused(self, info: RequestInfo, admission: Admission, now: float) -> None:
        """Count a refusal and forget the request."""
        self.account.refuse(info, admission)
        self._forget(info.request_id)

    def finished(self, info: RequestInfo, summary: RequestSummary, now: float) -> None:
        """Count an end and forget the request."""
        self.account.finish(info, summary, now)
        self._forget(info.request_id)

    def _forget(self, request_id: str) -> None:
        del self.requests[request_id], self.agree[request_id], self.odds[request_id]


def run_replica(simulation: Simulation, policy: str, replica: int) -> Account:
    """Simulate one replica under one policy."""
    one = simulation.build()
    one = replace(one, config=policy_config(policy, one.config))
    account = Account(one.config.slo_p95_ms)
    live = _Live(account)
    controller = ObservedController(one.config, keep_requests=False)
    if policy == "bayes":
        population = Population(live.odds, Spread(one.spread, one.noise, one.blur))
        bonus = one.config.finish_bonus_tokens
        controller.planner = Bayes(population, one.costs, controller.time_price, bonus)
    elif policy == "oracle":
        controller.planner = Oracle(live.agree)
    else:
        controller.planner = make_planner(policy, ()) or controller.planner
    executor = TraceExecutor(live.requests, one.costs)
    clock = VirtualClock()
    loop = ServeLoop(controller, executor, clock, observer=live)
    feed = simulation.stream(replica, one)
    count = simulation.requests if simulation.arrivals else simulation.share(replica)
    upcoming = next(feed, None)
    while upcoming is not None or loop.outstanding:
        while upcoming is not None and upcoming.arrival_s <= clock.now():
            name = upcoming.request_id
            live.requests[name] = upcoming
            live.agree[name] = [int(bit or 0) for bit in upcoming.trace.agree]
            live.odds[name] = one.log_odds(int(name.rsplit("-", 1)[1]), count)
            loop.submit(request_info(upcoming))
            upcoming = next(feed, None)
        if not loop.step() and upcoming is not None:
            clock.wait_until(upcoming.arrival_s)
    account.totals = controller.totals
    account.violations = controller.budget_violations
    account.off_path_confidences = executor.off_path_confidences
    return account


def run_replicas(simulation: Simulation, policy: str, replicas: Sequence[int]) -> Account:
    """Simulate several replicas one after the other; their accounts added up."""
    total = Account(simulation.build().config.slo_p95_ms)
    for replica in replicas:
        total.merge(run_replica(simulation, policy, replica))
    return total


def run_fleet(simulation: Simulation, policy: str, processes: int = 1) -> Iterator[Account]:
    """Accounts of batches of replicas as they come, ``processes`` at a time; add them up."""
    numbers = range(simulation.replicas)
    batches = [numbers[start : start + BATCH] for start in range(0, simulation.replicas, BATCH)]
    work = partial(run_replicas, simulation, policy)
    if processes <= 1 or len(batches) == 1:
        yield from map(work, batches)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(work, batches)
