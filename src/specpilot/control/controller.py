"""The controller: one pure object that every driver calls — live engine, replay, simulator, plugin.

A request's life: ``admit`` → (``plan`` → ``begin`` → ``observe``)* → ``finish``. A plan may instead say
that the request ends now. ``abort`` takes back a plan that will not run (or gives up one that is
running). The controller enforces the promises — the pass ledger, deadlines, the drafter's breaker — and
leaves the choice of τ to a :class:`~specpilot.control.planning.Planner`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from specpilot.control.admission import Drafted, Measuring, judge, must_stop
from specpilot.control.budget import PassLedger
from specpilot.control.config import ControllerConfig, Mode
from specpilot.control.contexts import BUCKET_EDGES, bucket_of
from specpilot.control.cost import CostProfile
from specpilot.control.estimates import Estimates
from specpilot.control.planner import OptimalPlanner
from specpilot.control.planning import Choice, CycleView, Planner, static_choice
from specpilot.control.queueing import ahead_ms, schedule, spare_ms
from specpilot.control.requests import Cycles, OpenCycle, OpenRequest, Requests
from specpilot.control.sharing import Forecast, joint_draft
from specpilot.control.snapshot import check_kinds, dump, load
from specpilot.control.stop import StopRule
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
from specpilot.control.views import Views


@dataclass(slots=True)
class _Counters:
    arrivals: int = 0
    refused: int = 0
    finished: dict[StopCause, int] = field(default_factory=dict)


class Controller:
    """Plans cycles so that both promises hold, and learns from what they did.

    Args:
        config: promises and constants.
        planner: how τ is chosen; default is specpilot's own. A planner plays under the same ledger,
            deadlines and breaker.
        profile: first guess of the engine's costs.

    Time is an argument: ``now`` in seconds on the caller's monotonic clock. The same calls give the
    same answers, bit for bit (I7).
    """

    def __init__(
        self,
        config: ControllerConfig | None = None,
        planner: Planner | None = None,
        profile: CostProfile | None = None,
    ) -> None:
        self.config = config or ControllerConfig()
        self.ledger = PassLedger(self.config.pass_budget, self.config.burst, self.config.tenant_pool_cap)
        self._estimates = estimates = Estimates(self.config, profile)
        self.cost, self.time_price = estimates.cost, estimates.time_price
        self.pass_price, self.deadlines = estimates.pass_price, estimates.deadlines
        self.planner: Planner = planner or OptimalPlanner(self.config, self.cost, self.time_price)
        self.counters = _Counters()
        # By the bucket of the prompt's uncached tokens: short prompts do not vouch for what long ones cost.
        buckets = len(BUCKET_EDGES) + 1
        self._measuring = [Measuring() for _ in range(buckets)]
        self._views = Views(self.config, self.ledger, estimates)
        self._requests = Requests()
        self._cycles = Cycles()
        self._next_cycle = 1
        self._mode = Mode(self.config.mode)
        self._ready = 0  # requests that have neither ended nor a cycle open
        self._drafted = Drafted()

    # --- a request's life -------------------------------------------------------------------------

    def admit(self, request: RequestInfo, *, now: float) -> Admission:
        """Take a request up, or refuse it because its promises could not be kept.

        Raises:
            ValueError: for an id that is in use.
        """
        request_id = request.request_id
        if request_id in self._requests:
            raise ValueError(f"request_id: {request_id!r} is in flight; ids are used once at a time")
        arrival = now if request.arrival_s is None else request.arrival_s
        slo_ms = request.slo_ms or self.config.slo_p95_ms
        deadline = arrival + slo_ms * self.deadlines.share / 1000.0
        uncached = max(1, request.prompt_tokens - request.cached_tokens)
        record = OpenRequest(request, arrival, slo_ms, deadline, uncached, behind=uncached)
        counters = self.counters
        counters.arrivals += 1
        measuring = self._measuring[bucket_of(uncached)]
        others = self._requests.values()
        verdict = judge(self.cost, self.config, record, others, measuring, self._drafted, now)
        if verdict.slack_ms is not None:
            self.time_price.arrived(verdict.slack_ms)
        if verdict.reason:
            if verdict.lost:
                self.time_price.refused(verdict.lost)
            counters.refused += 1
            return Admission(False, deadline, verdict.reason)
        self.ledger.admit(request_id, request.tenant)
        self._requests[request_id] = record
        self._ready += 1
        self.planner.admitted(request_id, request.prompt_tokens, now=now)
        return Admission(True, deadline)

    def plan(self, request_ids: Sequence[str], *, now: float) -> BatchPlan:
        """Plan one cycle for each request, or its end; passes are granted all together.

        Raises:
            ValueError: for an unknown request, one with a cycle planned or running already, or one that is
                named twice. Nothing is changed then.
        """
        stops: list[PlannedStop] = []
        wanting: list[tuple[OpenRequest, CycleView, Choice]] = []
        cost, known = self.cost, self._requests
        sharing = len(request_ids)
        waiting = self._ready - sharing if self._ready > sharing else 0
        requests = [known[request_id] for request_id in request_ids]
        tokens = sum([request.uncached for request in requests]) if sharing > 1 else 0
        spare = math.inf
        if waiting:
            spare = spare_ms(cost, known.values(), request_ids, self.config.max_batch, now)
        if sharing != 1 or requests[0].cycle_id is not None:
            self._check_free(requests)
        for request in requests:
            plain_ms = cost.verify_ms(request.uncached, request.cached)
            left_ms = (request.deadline_s - now) * 1000.0
            before_ms = 0.0
            if waiting and sharing == 1 and request.emitted:
                before_ms = ahead_ms(cost, request, known.values(), now)
            # Who has time for its upper quantile has it by any rule.
            need_ms = before_ms + plain_ms * cost.verify_upper.ratio + cost.host_ms
            if need_ms > left_ms or request.ended is not None:
                stop = must_stop(cost, request, plain_ms, before_ms, now)
                if stop:
                    stops.append(stop)
                    continue
            beside = tokens - request.uncached if sharing > 1 else 0
            view = self._views.of(request, waiting, left_ms, plain_ms, sharing, beside, spare)
            if self._mode is Mode.ON and (request.emitted or request.info.prefill_drafts):
                choice = self.planner.choose(view, now=now)
            else:
                choice = self._fixed(request, view, now)
            if not choice.max_draft and view.speculation_allowed:
                self._estimates.breakers[view.drafter].unused()
            if choice.end:
                stops.append(PlannedStop(view.request_id, StopCause.POLICY, choice.reason))
            else:
                wanting.append((request, view, choice))
        if sharing == 1 and wanting:
            # Most plans are for one request that has a pass of its own: no bids, no price.
            request, view, choice = wanting[0]
            if self.ledger.reserve_own(view.request_id):
                return BatchPlan((self._open_cycle(request, view, choice, False),), ())
        grants = self._grant(wanting)
        cycles = []
        for request, view, choice in wanting:
            source = grants.get(view.request_id)
            if source is None:
                stops.append(self._out_of_passes(request, choice))
            else:
                cycles.append(self._open_cycle(request, view, choice, source == "pool"))
        return BatchPlan(tuple(cycles), tuple(stops))

    def schedule(self, request_ids: Sequence[str], limit: int, *, now: float) -> list[str]:
        """Which of the waiting requests to plan and run now: together, ``limit`` at most.

        The order is that of :func:`~specpilot.control.queueing.next_up`. One that cannot wait for those who
        come first is named alone: :meth:`plan` ends it. Changes no plan; :meth:`plan` takes any list.

        Args:
            request_ids: those that wait, most urgent first.
            limit: most requests in a target pass, ≥ 1.
            now: in seconds.

        Raises:
            ValueError: for an unknown request.
        """
        requests = [self._requests[request_id] for request_id in request_ids]
        if len(requests) == 1:
            return list(request_ids)
        return [request_ids[index] for index in schedule(self.cost, requests, limit, now)]

    def begin(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """The target passes of these cycles start: the ledger withdraws them.

        Raises:
            ValueError: for an unknown cycle or one that has begun.
        """
        for cycle_id in cycle_ids:
            cycle = self._cycles[cycle_id]
            if cycle.begun:
                raise ValueError(f"cycle_ids: {cycle_id} has begun already; begin a cycle once")
            self.ledger.start(cycle.request.info.request_id)
            cycle.begun = True
            cycle.request.begin(self.cost, cycle.plan.max_draft, now)

    def observe(self, outcomes: Sequence[CycleOutcome], *, now: float) -> None:
        """Learn from finished cycles; those that say that they shared a pass shared one and the same.

        Raises:
            ValueError: for an unknown cycle, one that has not begun, or impossible counts.
        """
        shared: set[str] = set()
        drafting_ms = max([outcome.draft_ms for outcome in outcomes if outcome.batch_size > 1], default=0.0)
        for index, outcome in enumerate(outcomes):
            cycle = self._cycles[outcome.cycle_id]
            cycle.check(outcome, index)
            del self._cycles[outcome.cycle_id]
            cycle.close(outcome)
            self._ready += outcome.ended is None
            together = (drafting_ms, shared) if outcome.batch_size > 1 else (outcome.draft_ms, set[str]())
            self._estimates.learn(cycle, outcome, self.ledger.fill, now, *together)
            view = cycle.view
            first = not view.emitted_tokens
            if cycle.request.measures and first and outcome.verify_ms > 0.0:
                measuring = self._measuring[bucket_of(view.new_context_tokens)]
                measuring.first.reset()
                if outcome.verify_ms <= cycle.request.window_ms:
                    # Not hopeless after all: the estimate needs a few more like this one.
                    measuring.again.hurry()
            if cycle.learns:
                self.planner.observe(view, outcome, now=now)
        if outcomes:
            self._drafted.end_s = now
            self._drafted.took_ms = max([outcome.draft_ms + outcome.draft_prefill_ms for outcome in outcomes])

    def abort(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Give cycles up: a pass that has not begun costs nothing, one that has stays spent.

        Raises:
            ValueError: for an unknown cycle.
        """
        for cycle_id in cycle_ids:
            cycle = self._cycles[cycle_id]
            if not cycle.begun:
                self.ledger.release(cycle.request.info.request_id)
            if cycle.plan.max_draft:
                self._estimates.breakers[cycle.view.drafter].unused()
            cycle.request.cycle_id = cycle.request.began_s = None
            self._ready += 1
            del self._cycles[cycle_id]

    def expected_draft(self, request_ids: Sequence[str], *, now: float) -> int:
        """The draft length to make for the plans *after* the running cycles of these requests.

        For engines that draft a cycle's block before the cycle before it is observed, and equally many tokens
        for all requests of a batch (vLLM). For one request it is the τ that its plan is likely to ask for at
        most; of several, a length that only a few want is drafted if they gain more by it than the time
        is worth. Reads only: asked or not, the plans are the same. A running pass is taken to emit one token.

        Raises:
            ValueError: for an unknown request.
        """
        sharing = len(request_ids)
        forecasts = []
        for request_id in request_ids:
            request = self._requests[request_id]
            if request.ended is not None or not self.ledger.may_start_pass(request_id):
                continue
            left_ms = request.left_ms(now)
            view = self._views.of(request, 0, left_ms, None, sharing, sharing - 1, emitting=1)
            forecasts.append(self._forecast(view))
        return joint_draft(self.cost, forecasts) if forecasts else 0

    def _forecast(self, view: CycleView) -> Forecast:
        if self._mode is Mode.ON and isinstance(self.planner, OptimalPlanner):
            return self.planner.forecast(view)
        fixed = view.max_draft if self._mode is Mode.ON else min(self.config.static_draft, view.max_draft)
        return Forecast(fixed, 0.0, fixed)

    def finish(self, request_id: str, cause: StopCause, *, now: float) -> RequestSummary:
        """The request has ended; settles its account and returns it.

        Raises:
            ValueError: for an unknown request.
        """
        request = self._requests[request_id]
        if request.cycle_id is not None:
            self.abort([request.cycle_id], now=now)
        passes, drawn = self.ledger.passes(request_id)
        self.ledger.finish(request_id)
        del self._requests[request_id]
        self._ready -= request.ended is None
        self.planner.finished(request_id, now=now)
        e2e_ms = (now - request.arrival_s) * 1000.0
        met = request.emitted > 0 and e2e_ms <= request.slo_ms
        if cause is not StopCause.CANCELLED:
            self.deadlines.observe(e2e_ms <= request.slo_ms)
            self.time_price.arrival(e2e_ms <= request.slo_ms)
        self.counters.finished[cause] = self.counters.finished.get(cause, 0) + 1
        return RequestSummary(request_id, cause, request.emitted, passes, drawn, request.cycles, e2e_ms, met)

    # --- operation --------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """Who chooses τ; may be set at any time, the next plan follows it."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        try:
            self._mode = Mode(mode)
        except ValueError:
            raise ValueError(f"mode: {mode!r} is not off, shadow or on; use one of them") from None

    def snapshot(self) -> bytes:
        """The learned state, for :meth:`restore` in another process; no request, clock or credit is in it."""
        return dump(self._learned(), self.config.constants(self.planner.name))

    def restore(self, data: bytes) -> None:
        """Take up what another process has learned. The ledger starts empty: I1 holds on its own.

        Raises:
            ValueError: for a snapshot that is malformed, of another version or learned under other
                constants, or if requests are in flight. Nothing is changed then.
        """
        if self._requests:
            raise ValueError(
                f"restore: {len(self._requests)} requests are in flight; restore before the first"
            )
        parts = load(data, self.config.constants(self.planner.name))
        check_kinds(self._learned(), parts)
        self._estimates.restore(parts)
        if isinstance(self.planner, OptimalPlanner):
            self.planner.restore(parts)

    def _learned(self) -> dict[str, object]:
        of_planner = self.planner.learned() if isinstance(self.planner, OptimalPlanner) else {}
        return self._estimates.learned() | of_planner

    # --- cycles -----------------------------------------------------------------------------------

    def _check_free(self, requests: Sequence[OpenRequest]) -> None:
        for request in requests:
            if request.cycle_id is not None:
                raise ValueError(
                    f"request_ids: {request.info.request_id!r} has cycle {request.cycle_id} open; "
                    "observe or abort it"
                )
        if len(requests) > 1:
            ids = [request.info.request_id for request in requests]
            if len(set(ids)) < len(ids):
                raise ValueError(f"request_ids: {ids} name a request twice; plan one cycle for each")

    def _fixed(self, request: OpenRequest, view: CycleView, now: float) -> Choice:
        """A static τ, in shadow mode with the planner's beside it; 0 for a prompt that carries no block."""
        if view.emitted_tokens == 0 and not request.info.prefill_drafts:
            return Choice(0, StopRule(), Reason(Binding.MAX, note="prefill"))
        shadow = None
        if self._mode is Mode.SHADOW:
            shadow = self.planner.choose(view, now=now)
            self.planner.discarded(view.request_id)
        return static_choice(view, self.config.static_draft, shadow)

    def _grant(self, wanting: Sequence[tuple[OpenRequest, CycleView, Choice]]) -> dict[str, str]:
        bids = {}
        price = 0.0
        for _, view, choice in wanting:
            bids[view.request_id] = choice.bid_tokens
            if view.from_pool:
                self.pass_price.bid(choice.bid_tokens, self.ledger.inflow)
                price = self.pass_price.price(self.ledger.fill)
        return self.ledger.reserve(bids, price)

    def _open_cycle(
        self, request: OpenRequest, view: CycleView, choice: Choice, from_pool: bool
    ) -> CyclePlan:
        draft = choice.max_draft
        if draft > view.max_draft:
            draft = min(draft, max(view.max_draft, view.max_lookup))
        cycle_id, tree = self._next_cycle, choice.tree
        plan = CyclePlan(
            cycle_id,
            view.request_id,
            draft,
            draft if tree is None else choice.max_nodes,
            choice.stop,
            request.deadline_s,
            from_pool,
            choice.reason,
            choice.shadow_draft,
            tree,
            choice.coupled,
        )
        self._cycles[cycle_id] = OpenCycle(request, view, plan, self._mode is not Mode.OFF)
        request.cycle_id = cycle_id
        self._ready -= 1
        self._next_cycle = cycle_id + 1
        return plan

    def _out_of_passes(self, request: OpenRequest, choice: Choice) -> PlannedStop:
        numbers = {
            "bid": choice.bid_tokens,
            "lambda": self.pass_price.price(self.ledger.fill),
            "pool": self.ledger.pool,
            "missing_tokens": float(request.info.max_tokens - request.emitted),
        }
        return PlannedStop(request.info.request_id, StopCause.BUDGET, Reason(Binding.BUDGET, numbers))
