"""The simplest controller there is: a given τ and no promises. For tests, docs and baselines by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specpilot.control.stop import StopRule
from specpilot.control.tree import TreeRule
from specpilot.control.types import (
    Admission,
    BatchPlan,
    Binding,
    CycleOutcome,
    CyclePlan,
    PlannedStop,
    Reason,
    RequestInfo,
    RequestSummary,
    StopCause,
)


@dataclass(slots=True)
class _Account:
    info: RequestInfo
    arrival_s: float
    emitted: int = 0
    cycles: int = 0
    passes: int = 0
    planned: bool = False
    ended: StopCause | None = None


class StaticController:
    """A controller without promises: everything is admitted, τ is given, nothing is learnt.

    Args:
        depth: τ, or a function of (request id, cycle index from 0).
        stop: makes each cycle's stop rule; default: one that never stops.
        nodes: most nodes of a block, which is then a token tree; None: chains.

    Raises:
        ValueError: if ``nodes`` is below 1.
    """

    def __init__(
        self,
        depth: int | Callable[[str, int], int],
        stop: Callable[[str, int], StopRule] | None = None,
        *,
        nodes: int | None = None,
    ) -> None:
        if nodes is not None and nodes < 1:
            raise ValueError(f"nodes: {nodes} is not ≥ 1; use None for chains")
        self._depth = depth
        self._stop = stop
        self._nodes = nodes
        self._requests: dict[str, _Account] = {}
        self._cycles: dict[int, str] = {}
        self._next = 1

    def admit(self, request: RequestInfo, *, now: float) -> Admission:
        """Everything is admitted; the deadline is the arrival, so that the first come is served first.

        Raises:
            ValueError: if the id is in flight.
        """
        if request.request_id in self._requests:
            raise ValueError(f"request_id: {request.request_id!r} is in flight; ids are used once at a time")
        arrival = now if request.arrival_s is None else request.arrival_s
        self._requests[request.request_id] = _Account(request, arrival)
        return Admission(True, arrival)

    def plan(self, request_ids: Sequence[str], *, now: float) -> BatchPlan:
        """A cycle for every request that has not ended.

        Raises:
            ValueError: for a request that was not admitted, or that has a cycle open.
        """
        cycles: list[CyclePlan] = []
        stops: list[PlannedStop] = []
        for request_id in request_ids:
            account = self._account(request_id)
            if account.ended is not None:
                stops.append(PlannedStop(request_id, account.ended, Reason(Binding.LENGTH)))
                continue
            if account.planned:
                raise ValueError(f"request_ids: {request_id!r} has a cycle open; observe or abort it")
            depth = self._depth if isinstance(self._depth, int) else self._depth(request_id, account.cycles)
            stop = StopRule() if self._stop is None else self._stop(request_id, account.cycles)
            reason = Reason(Binding.MAX, {"tau": float(depth)})
            tree = None if self._nodes is None or not depth else TreeRule()
            nodes = depth if tree is None or self._nodes is None else self._nodes
            cycles.append(
                CyclePlan(
                    self._next,
                    request_id,
                    depth,
                    nodes,
                    stop,
                    now + 3600.0,
                    False,
                    reason,
                    tree=tree,
                    coupled=tree is not None,
                )
            )
            self._cycles[self._next] = request_id
            account.planned = True
            self._next += 1
        return BatchPlan(tuple(cycles), tuple(stops))

    def begin(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Count the passes."""
        for cycle_id in cycle_ids:
            self._account(self._cycles[cycle_id]).passes += 1

    def observe(self, outcomes: Sequence[CycleOutcome], *, now: float) -> None:
        """Count cycles and tokens."""
        for outcome in outcomes:
            account = self._account(self._cycles.pop(outcome.cycle_id))
            account.cycles += 1
            account.emitted += outcome.emitted
            account.ended = outcome.ended
            account.planned = False

    def abort(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Give cycles up."""
        for cycle_id in cycle_ids:
            self._account(self._cycles.pop(cycle_id)).planned = False

    def finish(self, request_id: str, cause: StopCause, *, now: float) -> RequestSummary:
        """The request's account."""
        account = self._account(request_id)
        del self._requests[request_id]
        e2e_ms = (now - account.arrival_s) * 1000.0
        met = account.info.slo_ms is None or e2e_ms <= account.info.slo_ms
        return RequestSummary(
            request_id, cause, account.emitted, account.passes, 0, account.cycles, e2e_ms, met
        )

    def _account(self, request_id: str) -> _Account:
        try:
            return self._requests[request_id]
        except KeyError:
            raise ValueError(f"request_id: {request_id!r} is not in flight; admit it first") from None
