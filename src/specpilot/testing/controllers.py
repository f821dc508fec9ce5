"""Conformance of controllers: what every policy must keep, whatever it plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from specpilot.control.calls import ControllerLike
from specpilot.control.types import (
    Admission,
    BatchPlan,
    CycleOutcome,
    CyclePlan,
    RequestInfo,
    RequestSummary,
    StopCause,
)
from specpilot.decoding.clock import VirtualClock
from specpilot.decoding.loop import ServeLoop
from specpilot.decoding.seams import LoopObserver
from specpilot.testing.check import Check, equal, raises, true


def controller_checks(make: Callable[[], ControllerLike], *, pass_budget: float | None = None) -> list[Check]:
    """Checks for a controller.

    Args:
        make: gives a fresh controller.
        pass_budget: B, where it promises one: passes started ≤ B · requests admitted is then checked at
            every instant.
    """

    def promises() -> None:
        for seed in range(4):
            log = _drive(make(), seed, pass_budget)
            true(bool(log.taken), "nothing was admitted")
            equal(sorted(log.ended), sorted(log.taken), "not every admitted request has ended exactly once")

    def replayable() -> None:
        first, second = _drive(make(), 1, None), _drive(make(), 1, None)
        equal(first.decisions, second.decisions, "the same events gave other decisions")

    def batches() -> None:
        controller = make()
        names = ["a", "b", "c"]
        for name in names:
            controller.admit(RequestInfo(name, 8, 12, arrival_s=0.0), now=0.0)
        plan = controller.plan(names, now=0.0)
        answered = [cycle.request_id for cycle in plan.cycles] + [stop.request_id for stop in plan.stops]
        equal(sorted(answered), names, "each request asked about must be in exactly one of cycles and stops")
        ids = [cycle.cycle_id for cycle in plan.cycles]
        equal(len(set(ids)), len(ids), f"cycle ids {ids} are not unique")
        controller.abort(ids, now=0.001)
        for name in names:
            summary = controller.finish(name, StopCause.CANCELLED, now=0.002)
            equal(summary.target_passes, 0, "an aborted cycle that had not begun was counted as a pass")

    def misuse() -> None:
        controller = make()
        raises(lambda: controller.plan(["nobody"], now=0.0), "planning for an unknown request")
        raises(lambda: controller.finish("nobody", StopCause.EOS, now=0.0), "finishing an unknown request")
        controller.admit(RequestInfo("a", 8, 12, arrival_s=0.0), now=0.0)
        again = RequestInfo("a", 8, 12, arrival_s=0.0)
        raises(lambda: controller.admit(again, now=0.0), "admitting an id that is in flight")
        controller.plan(["a"], now=0.0)
        raises(lambda: controller.plan(["a"], now=0.0), "planning a request whose cycle is open")

    named = (("promises", promises), ("replayable", replayable), ("batches", batches), ("misuse", misuse))
    return [Check(f"controller:{name}", run) for name, run in named]


class _Toy:
    """An executor without models: seeded acceptance, times that depend on the work, rare draft faults."""

    def __init__(self, infos: Sequence[RequestInfo], seed: int) -> None:
        self._left = {info.request_id: info.max_tokens for info in infos}
        self._rng = np.random.default_rng(seed)

    def open(self, request_id: str) -> int:
        return 0

    def close(self, request_id: str, cause: StopCause) -> None:
        self._left.pop(request_id, None)

    def run(self, plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
        return [self._cycle(plan) for plan in plans]

    def _cycle(self, plan: CyclePlan) -> CycleOutcome:
        fault = plan.max_draft > 0 and self._rng.random() < 0.05
        depth = 0 if fault else plan.max_draft
        confidences = tuple(float(value) for value in self._rng.uniform(0.2, 1.0, depth))
        plan.stop.start()
        proposed = 0
        while proposed < depth and plan.stop.draft_on(proposed + 1, 0.5 * proposed):
            if not plan.stop.keep(proposed + 1, confidences[proposed]):
                break
            proposed += 1
        accepted = 0
        while accepted < proposed and self._rng.random() < confidences[accepted]:
            accepted += 1
        emitted = min(accepted + 1, self._left[plan.request_id])
        self._left[plan.request_id] -= emitted
        drafted = min(depth, proposed + 1)
        return CycleOutcome(
            cycle_id=plan.cycle_id,
            drafted=drafted,
            proposed=proposed,
            accepted=min(accepted, emitted),
            emitted=emitted,
            confidences=confidences[:drafted],
            draft_ms=0.4 * drafted,
            verify_ms=6.0 + 0.2 * proposed,
            verified_tokens=proposed + 1,
            host_ms=0.2,
            ended=None if self._left[plan.request_id] else StopCause.MAX_TOKENS,
            draft_fault="exception: planted" if fault else None,
        )


class _Log(LoopObserver):
    """Decisions and the ledger seen from outside."""

    def __init__(self, pass_budget: float | None) -> None:
        self.pass_budget = pass_budget
        self.taken: list[str] = []
        self.ended: list[str] = []
        self.decisions: list[str] = []
        self.started = 0
        self.passes: dict[str, int] = {}

    def admitted(self, info: RequestInfo, admission: Admission, now: float) -> None:
        self.taken.append(info.request_id)

    def planned(self, plan: BatchPlan, now: float) -> None:
        self.decisions.append(f"{now!r} {plan!r}")
        self.started += len(plan.cycles)
        if self.pass_budget is not None:
            allowed = self.pass_budget * len(self.taken)
            true(
                self.started <= allowed + 1e-9,
                f"I1: {self.started} passes started with {len(self.taken)} requests admitted, "
                f"allowed {allowed:g}",
            )

    def cycle(
        self, info: RequestInfo, plan: CyclePlan, outcome: CycleOutcome, start_s: float, end_s: float
    ) -> None:
        self.passes[info.request_id] = self.passes.get(info.request_id, 0) + 1

    def finished(self, info: RequestInfo, summary: RequestSummary, now: float) -> None:
        self.ended.append(info.request_id)
        passes = self.passes.get(info.request_id, 0)
        equal(
            summary.target_passes, passes, f"{info.request_id}: the account's passes are not those that ran"
        )


def _drive(controller: ControllerLike, seed: int, pass_budget: float | None) -> _Log:
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(0.03, 60))
    infos = [
        RequestInfo(f"r{index}", int(rng.integers(1, 60)), int(rng.integers(1, 25)), arrival_s=float(arrival))
        for index, arrival in enumerate(at)
    ]
    log = _Log(pass_budget)
    clock = VirtualClock()
    loop = ServeLoop(controller, _Toy(infos, seed), clock, max_batch=1 + seed % 3, observer=log)
    for info in infos:
        clock.wait_until(info.arrival_s or 0.0)
        loop.submit(info)
        while loop.outstanding and rng.random() < 0.7:
            if rng.random() < 0.03:
                loop.cancel(next(name for name in log.taken if name not in log.ended))
            loop.step()
    while loop.step():
        pass
    return log
