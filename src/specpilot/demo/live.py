"""Live runs of the demonstration: its requests on the models, and what is checked about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from specpilot.control import ControllerConfig, CyclePlan, StopRule
from specpilot.control.config import NO_SLO_MS
from specpilot.control.types import Reason
from specpilot.demo.engine import Engine, LiveExecutor, LiveRequest
from specpilot.demo.workload import Arrival
from specpilot.drafters.lookup import LookupDrafter
from specpilot.models.base import common_prefix
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.drive import PausableClock, request_record, serve
from specpilot.simulation.measure import fitted
from specpilot.simulation.observed import ObservedController
from specpilot.simulation.policies import make_planner
from specpilot.simulation.record import Recording
from specpilot.simulation.replay import ReplayRequest, TraceExecutor
from specpilot.simulation.results import PolicyResult, RequestRecord, summarise
from specpilot.simulation.stream import first_guess
from specpilot.trace.agreement import NEAR_TIE_MARGIN, AgreementTrace
from specpilot.trace.cycles import CycleRecord


@dataclass(slots=True)
class Material:
    """Prompts as tokens and their recordings, by the prompt's key."""

    tokens: Mapping[str, tuple[int, ...]]
    recordings: dict[str, Recording]

    def requests(self, arrivals: Sequence[Arrival], max_tokens: int, rate: float) -> list[ReplayRequest]:
        """Arrivals as replay requests; session steps find what the step before left in the caches."""
        last: dict[str, tuple[int, ...]] = {}
        requests = []
        for arrival in arrivals:
            prompt = self.tokens[arrival.prompt.key]
            cached = 0
            if arrival.session_id is not None:
                cached = common_prefix(prompt, last.get(arrival.session_id, ()))
                last[arrival.session_id] = prompt
            trace = self.recordings[arrival.prompt.key].trace
            requests.append(
                ReplayRequest(arrival.request_id, trace, max_tokens, arrival.at / rate, cached_tokens=cached)
            )
        return requests

    def live(
        self, arrivals: Sequence[Arrival], requests: Sequence[ReplayRequest], policy: str
    ) -> dict[str, LiveRequest]:
        """Arrivals for the models; each policy types in sessions of its own."""
        return {
            arrival.request_id: LiveRequest(
                self.tokens[arrival.prompt.key],
                request.length,  # what the policy is told; an engine that differs may not go on beyond it
                None if arrival.session_id is None else f"{policy}:{arrival.session_id}",
            )
            for arrival, request in zip(arrivals, requests, strict=True)
        }


class LiveRun:
    """One policy on the models, on a clock that stands still while another policy runs."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        promises: ControllerConfig,
        live: Mapping[str, LiveRequest],
        requests: Sequence[ReplayRequest],
    ) -> None:
        self.controller = ObservedController(promises, make_planner(name, requests), keep_cycles=True)
        self.executor: LiveExecutor = engine.executor(live)
        self.clock = PausableClock()
        self.clock.pause()
        self.served: list[ReplayRequest] = []
        self._shift = 0.0

    def serve(self, block: Sequence[ReplayRequest], *, closed_loop: bool = False) -> None:
        """Serve a block of requests and wait until the last has ended.

        If the block before ran over its time, this one's arrivals are moved back by as much: no request
        is late because of where blocks end.
        """
        self.clock.resume()
        self._shift = max(self._shift, self.clock.now() - block[0].arrival_s)
        moved = [replace(request, arrival_s=request.arrival_s + self._shift) for request in block]
        serve(self.controller, self.executor, moved, self.clock, closed_loop=closed_loop)
        self.served += block
        self.clock.pause()

    def records(self) -> list[RequestRecord]:
        """What became of each request."""
        return [request_record(request, self.controller) for request in self.served]

    def result(self, name: str) -> PolicyResult:
        """The live result."""
        return summarise(
            name,
            "live",
            self.records(),
            self.controller.totals,
            budget_violations=self.controller.budget_violations,
            duration_s=self.clock.now(),
        )

    def latencies_ms(self) -> list[float]:
        """Latencies of all answers."""
        return [record.e2e_ms for record in self.records() if record.cause is not None]


def service_costs(
    engine: Engine,
    prompts: Mapping[str, Sequence[int]],
    recordings: Mapping[str, Recording],
    bare: EngineCosts,
) -> EngineCosts:
    """Costs of bare passes, scaled to the cycles of requests that are served one after another.

    With neither a budget nor a deadline: a machine that is too slow for its promises can be measured too.
    """
    free = ControllerConfig(pass_budget=math.inf, slo_p95_ms=NO_SLO_MS)
    requests = [
        ReplayRequest(name, recording.trace, len(recording.trace.agree), 0.0)
        for name, recording in recordings.items()
    ]
    live = {
        request.request_id: LiveRequest(tuple(prompts[request.request_id]), request.length, None)
        for request in requests
    }
    run = LiveRun("specpilot", engine, free, live, requests)
    run.serve(requests, closed_loop=True)
    return fitted(bare, run.controller.cycle_records)


def lossless(runs: Mapping[str, LiveRun], material: Material, arrivals: Sequence[Arrival]) -> tuple[int, int]:
    """(outputs that differ from plain greedy decoding cut at their length, of these at a near-tie).

    A difference that begins at a near-tie (top-2 logits closer than 1e-3) is reported apart: another
    kernel may choose either way.
    """
    mismatches = ties = 0
    for run in runs.values():
        for arrival in arrivals:
            recording = material.recordings[arrival.prompt.key]
            output = tuple(run.executor.output(arrival.request_id))
            same = common_prefix(output, recording.token_ids)
            if same == len(output):
                continue
            margins = recording.trace.margin_target or ()
            near = same < len(margins) and margins[same] < NEAR_TIE_MARGIN
            ties += near
            mismatches += not near
    return mismatches, ties


def live_equals_replay(controller: ObservedController, requests: Sequence[ReplayRequest]) -> tuple[int, int]:
    """(cycles compared, cycles whose accepted or emitted length differs from the replay's).

    The plans that were executed are replayed over the agreement bits, cycle by cycle. A request is left
    out from its first near-tie on (of either model): there the bits themselves may fall either way. Of a tree
    the main chain is replayed so, and a side branch that was followed must begin with the choice of the draft
    that was recorded as the right one; looked-up text must be right as far as it was recorded to be.
    """
    by_id = {request.request_id: request for request in requests}
    executor = TraceExecutor(by_id, first_guess())
    position: dict[str, int] = {}
    compared = differences = 0
    for cycle in controller.cycle_records:
        trace = by_id[cycle.request].trace
        if cycle.request not in position:
            executor.open(cycle.request)
        start = position.get(cycle.request, 0)
        position[cycle.request] = start + cycle.emitted
        executor.seek(cycle.request, start)
        depth = cycle.proposed
        reason = Reason(cycle.binding)
        plan = CyclePlan(0, cycle.request, depth, depth, StopRule(), math.inf, cycle.from_pool, reason)
        replayed = executor.run([plan])[0]
        if _near_tie(trace, start + depth + cycle.side_accepted + 1) or cycle.draft_fault is not None:
            continue
        compared += 1
        if cycle.drafter == LookupDrafter.name or cycle.side_proposed:
            differences += not _as_recorded(cycle, trace, start, replayed.accepted)
        else:
            differences += (replayed.accepted, replayed.emitted, replayed.ended) != (
                cycle.accepted,
                cycle.emitted,
                cycle.ended,
            )
    return compared, differences


def _as_recorded(cycle: CycleRecord, trace: AgreementTrace, start: int, on_chain: int) -> bool:
    """Whether a tree's cycle is what the recorded choices say; ``on_chain``: the main chain's accepted
    length.
    """
    path = cycle.accepted + cycle.side_accepted
    if cycle.emitted != min(path + 1, len(trace.agree) - start):
        return False
    looked_up = 0 if trace.lookup is None else trace.lookup[start][1]
    if cycle.drafter == LookupDrafter.name:
        return cycle.accepted == min(looked_up, cycle.proposed)
    if cycle.accepted != on_chain:
        return False
    # The first choice off the main chain that was right; looked-up text has no rank.
    judged = zip(cycle.side_judged[::3], cycle.side_judged[1::3], cycle.side_judged[2::3], strict=True)
    right = next(((int(rank), share) for rank, share, hit in judged if hit), None)
    if right is None or not cycle.side_accepted or trace.rank is None or looked_up > cycle.accepted:
        return True
    (rank, share), at = right, start + cycle.accepted
    if trace.shares is not None and abs(trace.shares[at][rank - 2] - share) > NEAR_TIE_MARGIN:
        return False
    return rank - 1 >= trace.rank[at]  # of choices that are tied any may come first


def _near_tie(trace: AgreementTrace, reach: int) -> bool:
    """Whether either model's choice was nearly a tie at one of the first ``reach`` output positions."""
    margins = (*(trace.margin_target or ())[:reach], *(trace.margin_draft or ())[:reach])
    return any(margin < NEAR_TIE_MARGIN for margin in margins)
