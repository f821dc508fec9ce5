"""The controller: one pure object that every driver calls — live engine, replay, simulator, plugin.

A request's life: ``admit`` → (``plan`` → ``begin`` → ``observe``)* → ``finish``. A plan may instead say
that the request ends now. ``abort`` takes back a plan that will not run (or gives up one that is
running). The controller enforces the promises — the pass ledger, deadlines, the drafter's breaker — and
leaves the choice of τ to a :class:`~specpilot.control.planning.Planner`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from specpilot.control.budget import PassLedger, PassPrice
from specpilot.control.config import PROMISES, ControllerConfig, Mode
from specpilot.control.cost import CostModel, CostProfile
from specpilot.control.health import Breaker
from specpilot.control.latency import GIVING_WAY, PRESSING, DeadlineTracker, TimePrice
from specpilot.control.planner import OptimalPlanner
from specpilot.control.planning import Choice, CycleView, Planner, static_choice
from specpilot.control.queueing import Waiter, next_up
from specpilot.control.sharing import Forecast, Work, joint_draft, share_pass
from specpilot.control.snapshot import adopt, check_kinds, dump, load
from specpilot.control.stop import StopRule
from specpilot.control.timing import cycle_ms, fitting_draft, shared_cost
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

REFUSAL_PROBE = 8
"""Every so many-th refusal in a row is let in, so that a wrong cost estimate cannot refuse for ever."""
LEARNED = ("cost", "time_price", "pass_price", "deadlines")
"""The controller's own estimators, by attribute; the breakers and the planner's come on top."""


@dataclass(slots=True)
class _Request:
    info: RequestInfo
    arrival_s: float
    slo_ms: float
    deadline_s: float
    emitted: int = 0
    cycles: int = 0
    uncached: int = 0  # context tokens that the target has not cached
    behind: int = 0  # context tokens that the draft has not cached
    drafter_failed: bool = False
    cycle_id: int | None = None  # planned or running
    ended: StopCause | None = None

    @property
    def cached(self) -> int:
        """Context tokens that the target has cached."""
        return max(0, self.info.prompt_tokens + self.emitted - self.uncached)


def _deadline(request: _Request) -> float:
    return request.deadline_s


@dataclass(slots=True)
class _Cycle:
    request: _Request
    view: CycleView
    plan: CyclePlan
    learns: bool  # the planner has seen it
    begun: bool = False


@dataclass(slots=True)
class _Counters:
    arrivals: int = 0
    refused: int = 0
    refused_in_a_row: int = 0
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
        self.cost = CostModel(profile)
        pressing = GIVING_WAY if self.config.give_way else PRESSING
        self.time_price = TimePrice(pressing=pressing)
        self.pass_price = PassPrice()
        self.deadlines = DeadlineTracker(self.config.miss_target)
        self.planner: Planner = planner or OptimalPlanner(self.config, self.cost, self.time_price)
        self.counters = _Counters()
        self._breakers: dict[str, Breaker] = {}
        self._requests: dict[str, _Request] = {}
        self._cycles: dict[int, _Cycle] = {}
        self._next_cycle = 1
        self._mode = Mode(self.config.mode)
        self._ready = 0  # requests that have neither ended nor a cycle open

    # --- a request's life -------------------------------------------------------------------------

    def admit(self, request: RequestInfo, *, now: float) -> Admission:
        """Take a request up, or refuse it because its promises could not be kept.

        Raises:
            ValueError: for an id that is in use.
        """
        if request.request_id in self._requests:
            raise ValueError(f"request_id: {request.request_id!r} is in flight; ids are used once at a time")
        arrival = now if request.arrival_s is None else request.arrival_s
        slo_ms = request.slo_ms or self.config.slo_p95_ms
        deadline = arrival + slo_ms * self.deadlines.share / 1000.0
        self.counters.arrivals += 1
        uncached = max(1, request.prompt_tokens - request.cached_tokens)
        refusal, crowded = self._refusal(request, uncached, deadline, now)
        if refusal:
            if crowded:
                self.time_price.arrival(in_time=False)
            self.counters.refused += 1
            self.counters.refused_in_a_row += 1
            return Admission(False, deadline, refusal)
        self.counters.refused_in_a_row = 0
        self.ledger.admit(request.request_id, request.tenant)
        self._requests[request.request_id] = _Request(
            request, arrival, slo_ms, deadline, uncached=uncached, behind=uncached
        )
        self._ready += 1
        self.planner.admitted(request.request_id, request.prompt_tokens, now=now)
        return Admission(True, deadline)

    def plan(self, request_ids: Sequence[str], *, now: float) -> BatchPlan:
        """Plan one cycle for each request, or its end; passes are granted all together.

        Raises:
            ValueError: for an unknown request, or one with a cycle planned or running already.
        """
        stops: list[PlannedStop] = []
        wanting: list[tuple[_Request, CycleView, Choice]] = []
        cost, known = self.cost, self._requests
        sharing = len(request_ids)
        waiting = max(0, self._ready - sharing)
        requests = [known.get(request_id) or self._request(request_id) for request_id in request_ids]
        tokens = sum([request.uncached for request in requests]) if sharing > 1 else 0
        for request in requests:
            if request.cycle_id is not None:
                raise ValueError(
                    f"request_ids: {request.info.request_id!r} has cycle {request.cycle_id} open; "
                    "observe or abort it"
                )
            plain_ms = cost.verify_ms(request.uncached, request.cached)
            ahead_ms = self._ahead_ms(request, now) if waiting and sharing == 1 and request.emitted else 0.0
            left_ms = (request.deadline_s - now) * 1000.0
            # Who has time for its upper quantile has it by any rule.
            if ahead_ms + plain_ms * cost.verify_upper.ratio > left_ms or request.ended is not None:
                stop = self._must_stop(request, plain_ms, ahead_ms, now)
                if stop:
                    stops.append(stop)
                    continue
            beside = tokens - request.uncached if sharing > 1 else 0
            view = self._view(request, waiting, left_ms, plain_ms, sharing, beside)
            if self._mode is Mode.ON and (request.emitted or request.info.prefill_drafts):
                choice = self.planner.choose(view, now=now)
            else:
                choice = self._fixed(request, view, now)
            if not choice.max_draft and view.speculation_allowed:
                self._breaker(view.drafter).unused()
            if choice.end:
                stops.append(PlannedStop(view.request_id, StopCause.POLICY, choice.reason))
            else:
                wanting.append((request, view, choice))
        if sharing == 1 and wanting:
            # Most plans are for one request that has a pass of its own: no bids, no price.
            request, view, choice = wanting[0]
            if not view.from_pool and self.ledger.reserve_own(view.request_id):
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
        requests = [self._request(request_id) for request_id in request_ids]
        if len(requests) == 1:
            return list(request_ids)
        first = next_up([self._waiter(request, now) for request in requests])
        order = [first, *(index for index in range(len(requests)) if index != first)]
        if limit > 1:
            works = []
            for request in (requests[index] for index in order):
                left_ms = (request.deadline_s - now) * 1000.0
                works.append(Work(request.uncached, request.behind, request.cached, left_ms))
            chosen = [order[index] for index in share_pass(self.cost, works, limit)]
        else:
            chosen = [first]
        ahead_ms = self._cycle_ms(requests[first])
        for index, request in enumerate(requests):
            if request.emitted and index not in chosen:
                plain_ms = self.cost.verify_ms(request.uncached, request.cached)
                if self._must_stop(request, plain_ms, ahead_ms, now):
                    return [request_ids[index]]
        return [request_ids[index] for index in chosen]

    def begin(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """The target passes of these cycles start: the ledger withdraws them.

        Raises:
            ValueError: for an unknown cycle or one that has begun.
        """
        for cycle_id in cycle_ids:
            cycle = self._cycle(cycle_id)
            if cycle.begun:
                raise ValueError(f"cycle_ids: {cycle_id} has begun already; begin a cycle once")
            self.ledger.start(cycle.request.info.request_id)
            cycle.begun = True

    def observe(self, outcomes: Sequence[CycleOutcome], *, now: float) -> None:
        """Learn from finished cycles.

        Raises:
            ValueError: for an unknown cycle, one that has not begun, or impossible counts.
        """
        for index, outcome in enumerate(outcomes):
            cycle = self._cycle(outcome.cycle_id)
            if not cycle.begun:
                raise ValueError(
                    f"outcomes[{index}].cycle_id: {outcome.cycle_id} has not begun; call begin first"
                )
            if not 0 <= outcome.accepted <= outcome.proposed:
                raise ValueError(
                    f"outcomes[{index}].accepted: {outcome.accepted} exceeds proposed={outcome.proposed}"
                )
            if not 0 <= outcome.side_accepted <= outcome.side_proposed:
                raise ValueError(
                    f"outcomes[{index}].side_accepted: {outcome.side_accepted} exceeds "
                    f"side_proposed={outcome.side_proposed}"
                )
            del self._cycles[outcome.cycle_id]
            request = cycle.request
            request.cycle_id = None
            request.cycles += 1
            request.emitted += outcome.emitted
            # A pass that emitted nothing was a chunk of the prompt.
            request.uncached = 1 if outcome.emitted else max(1, request.uncached - outcome.verified_tokens)
            left_behind = 0 if outcome.draft_prefill_tokens else request.behind
            stepped = outcome.drafted and outcome.drafter in (None, request.info.drafter)
            request.behind = 1 if stepped else max(1, left_behind + outcome.emitted)
            request.ended = outcome.ended
            self._ready += outcome.ended is None
            self._learn(cycle, outcome, now)
            if cycle.learns:
                self.planner.observe(cycle.view, outcome, now=now)

    def abort(self, cycle_ids: Sequence[int], *, now: float) -> None:
        """Give cycles up: a pass that has not begun costs nothing, one that has stays spent.

        Raises:
            ValueError: for an unknown cycle.
        """
        for cycle_id in cycle_ids:
            cycle = self._cycle(cycle_id)
            if not cycle.begun:
                self.ledger.release(cycle.request.info.request_id)
            cycle.request.cycle_id = None
            self._ready += 1
            del self._cycles[cycle_id]

    def expected_draft(self, request_ids: Sequence[str], *, now: float) -> int:
        """The draft length to make for the plans *after* the running cycles of these requests.

        For engines that draft a cycle's block before the cycle before it is observed, and equally many tokens
        for all requests of a batch (vLLM). For one request it is the τ that its plan is likely to ask for at
        most; of several, a length that only a few want is drafted if they gain more by it than all lose by
        waiting. Reads only: asked or not, the plans are the same. A running pass is taken to emit one token.

        Raises:
            ValueError: for an unknown request.
        """
        sharing = len(request_ids)
        forecasts = []
        for request_id in request_ids:
            request = self._request(request_id)
            if request.ended is not None or not self.ledger.may_start_pass(request_id):
                continue
            left_ms = (request.deadline_s - now) * 1000.0
            view = self._view(request, 0, left_ms, None, sharing, sharing - 1, emitting=1)
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
        request = self._request(request_id)
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
        return dump(self._learned(), self._constants())

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
        parts = load(data, self._constants())
        check_kinds(self._learned(), parts)
        for name in LEARNED:
            adopt(getattr(self, name), parts[name])
        self._breakers = parts["breakers"]
        if isinstance(self.planner, OptimalPlanner):
            self.planner.restore(parts)

    def _learned(self) -> dict[str, object]:
        parts = {name: getattr(self, name) for name in LEARNED} | {"breakers": self._breakers}
        return parts | (self.planner.learned() if isinstance(self.planner, OptimalPlanner) else {})

    def _constants(self) -> dict[str, object]:
        values = {f.name: getattr(self.config, f.name) for f in fields(self.config) if f.name not in PROMISES}
        return {"planner": self.planner.name, **values}

    # --- admission and deadlines ------------------------------------------------------------------

    def _refusal(
        self, request: RequestInfo, uncached: int, deadline_s: float, now: float
    ) -> tuple[str, bool]:
        """Why the request cannot be served as promised (empty if it can), and whether others are why."""
        own = int(min(self.config.pass_budget, 1e9))
        if request.prefill_passes + 1 > own:
            return (
                f"budget: the prompt needs {request.prefill_passes + 1} target passes, a request owns {own}; "
                "shorten the prompt, enlarge the prefill chunk or raise pass_budget"
            ), False
        if not self.cost.calibrated or self.counters.refused_in_a_row % REFUSAL_PROBE == REFUSAL_PROBE - 1:
            return "", False
        first = self.cost.verify_ms(uncached, request.cached_tokens) * self.cost.verify_upper.ratio
        backlog = self._backlog_ms()
        left = (deadline_s - now) * 1000.0
        if backlog + first <= left:
            return "", False
        return (
            f"deadline: {left:.0f} ms are left, the first target pass needs about {first:.0f} ms and the "
            f"work before it {backlog:.0f} ms; retry later, shorten the prompt or raise slo_ms"
        ), first <= left

    def _backlog_ms(self) -> float:
        """Engine time until a new arrival's first pass: first passes go before later ones, by expectation.

        Of those that have something to show only the pass that runs now is in the way. Passes are shared
        where they can be.
        """
        before = [
            request
            for request in self._requests.values()
            if request.ended is None and (not request.emitted or request.cycle_id is not None)
        ]
        work = sum(map(self._cycle_ms, before))
        return work * shared_cost(self.cost, min(self.config.max_batch, len(before)))

    def _cycle_ms(self, request: _Request) -> float:
        """Expected time of the request's next cycle."""
        return cycle_ms(self.cost, request.uncached, request.behind, request.cached)

    def _waiter(self, request: _Request, now: float) -> Waiter:
        left_ms = (request.deadline_s - now) * 1000.0
        return Waiter(left_ms, self._cycle_ms(request), request.emitted > 0)

    def _ahead_ms(self, request: _Request, now: float) -> float:
        """Time of the cycle that runs before this request's, if another one's is next.

        Engines that queue prompts themselves (vLLM) have nobody wait for a request that runs already.
        """
        waiting = [
            other
            for other in self._requests.values()
            if other.cycle_id is None and other.ended is None and other.info.prefill_drafts
        ]
        if not request.info.prefill_drafts or len(waiting) < 2:
            return 0.0
        waiting.sort(key=_deadline)  # stable: in the order of their admission where they are equal
        ahead = waiting[next_up([self._waiter(other, now) for other in waiting])]
        return 0.0 if ahead is request else self._cycle_ms(ahead)

    def _must_stop(
        self, request: _Request, plain_ms: float, ahead_ms: float, now: float
    ) -> PlannedStop | None:
        """Deadline check: is there time for one more plain pass, which takes ``plain_ms``, ``ahead_ms`` from
        now?
        """
        request_id = request.info.request_id
        if request.ended is not None:
            return PlannedStop(request_id, request.ended, Reason(Binding.LENGTH))
        if not self.cost.calibrated:
            return None
        if request.emitted:
            # Something can be shown: do not risk it for more.
            need, left = plain_ms * self.cost.verify_upper.ratio, (request.deadline_s - now) * 1000.0
        else:
            # Nothing yet: an empty answer is a miss too, so only a hopeless pass is spared.
            need, left = plain_ms, (request.arrival_s - now) * 1000.0 + request.slo_ms
        need += ahead_ms
        if need <= left:
            return None
        numbers = {"need_ms": need, "left_ms": left}
        if ahead_ms:
            numbers["ahead_ms"] = ahead_ms
        return PlannedStop(request_id, StopCause.DEADLINE, Reason(Binding.DEADLINE, numbers))

    # --- cycles -----------------------------------------------------------------------------------

    def _view(
        self,
        request: _Request,
        waiting: int,
        left_ms: float,
        plain_ms: float | None,
        sharing: int,
        beside: int,
        emitting: int = 0,
    ) -> CycleView:
        """What the planner may look at; ``emitting`` tokens of a running pass count as emitted.

        ``plain_ms`` is the pass's time with nothing drafted, where it is known; ``sharing`` requests are
        planned for the same pass, the others with ``beside`` context tokens that are not cached.
        """
        info, ledger, config = request.info, self.ledger, self.config
        request_id, drafter, own = info.request_id, info.drafter, ledger.own_passes(info.request_id)
        emitted = request.emitted + emitting
        remaining = info.max_tokens - emitted
        breaker = self._breakers.get(drafter) or self._breaker(drafter)
        # A trial would be lost with a pool pass that is not granted: it goes to one with a pass of its own.
        allowed = breaker.allow() if own and not emitting else not breaker.open
        cap = config.max_draft if config.max_draft < remaining else remaining - 1
        if info.max_draft is not None:
            cap = min(cap, info.max_draft)
        context = info.prompt_tokens + emitted
        if emitting:
            uncached = behind = 1
        else:
            known = context or 1
            uncached, behind = request.uncached, request.behind
            if uncached > known or behind > known:
                uncached, behind = min(uncached, known), min(behind, known)
        nodes = lookup = 0
        if config.max_nodes and cap > 0:
            nodes = config.max_nodes
            lookup = min(config.lookup_depth, remaining - 1)
            if info.max_draft is not None:
                lookup = min(lookup, info.max_draft)
        max_draft, times = fitting_draft(self.cost, cap, uncached, behind, context, left_ms, plain_ms)
        # By position: named arguments take three times as long, and one is made for every decision.
        return CycleView(
            request_id,
            drafter,
            info.prompt_tokens,
            context,
            uncached,
            behind,
            emitted,
            remaining,
            request.cycles,
            own,
            own == 0,  # from the pool
            max_draft,
            left_ms,
            waiting,
            self.pass_price.price(ledger.fill),
            allowed and not request.drafter_failed,
            int(ledger.pool),
            times,
            nodes,
            lookup,
            sharing,
            beside,
        )

    def _fixed(self, request: _Request, view: CycleView, now: float) -> Choice:
        """A static τ, in shadow mode with the planner's beside it; 0 for a prompt that carries no block."""
        if view.emitted_tokens == 0 and not request.info.prefill_drafts:
            return Choice(0, StopRule(), Reason(Binding.MAX, note="prefill"))
        shadow = None
        if self._mode is Mode.SHADOW:
            shadow = self.planner.choose(view, now=now)
            self.planner.discarded(view.request_id)
        return static_choice(view, self.config.static_draft, shadow)

    def _grant(self, wanting: Sequence[tuple[_Request, CycleView, Choice]]) -> dict[str, str]:
        bids = {}
        price = 0.0
        for _, view, choice in wanting:
            bids[view.request_id] = choice.bid_tokens
            if view.from_pool:
                self.pass_price.bid(choice.bid_tokens, self.ledger.inflow)
                price = self.pass_price.price(self.ledger.fill)
        return self.ledger.reserve(bids, price)

    def _open_cycle(self, request: _Request, view: CycleView, choice: Choice, from_pool: bool) -> CyclePlan:
        draft = min(choice.max_draft, max(view.max_draft, view.max_lookup))
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
        )
        self._cycles[cycle_id] = _Cycle(request, view, plan, self._mode is not Mode.OFF)
        request.cycle_id = cycle_id
        self._ready -= 1
        self._next_cycle = cycle_id + 1
        return plan

    def _out_of_passes(self, request: _Request, choice: Choice) -> PlannedStop:
        numbers = {
            "bid": choice.bid_tokens,
            "lambda": self.pass_price.price(self.ledger.fill),
            "pool": self.ledger.pool,
            "missing_tokens": float(request.info.max_tokens - request.emitted),
        }
        return PlannedStop(request.info.request_id, StopCause.BUDGET, Reason(Binding.BUDGET, numbers))

    def _learn(self, cycle: _Cycle, outcome: CycleOutcome, now: float) -> None:
        request, plan = cycle.request, cycle.plan
        if plan.max_draft:
            fault = outcome.draft_fault is not None
            self._breaker(request.info.drafter).observe(fault)
            request.drafter_failed = request.drafter_failed or fault
        width = outcome.batch_tokens or outcome.verified_tokens
        share = outcome.verified_tokens / max(1, width)
        if outcome.verify_ms > 0.0:
            # Each request of a shared pass reports the same pass: learn its cost once, charge by width.
            self.cost.observe_verify(width, outcome.context_tokens, outcome.verify_ms)
        if not outcome.draft_fault and outcome.drafter in (None, request.info.drafter):
            self.cost.observe_draft(
                outcome.drafted,
                outcome.draft_ms,
                outcome.draft_prefill_tokens,
                outcome.draft_prefill_ms,
                branching=plan.tree is not None and plan.tree.branching,
            )
        self.cost.observe_host(outcome.host_ms)
        engine_ms = outcome.draft_ms + outcome.draft_prefill_ms + outcome.verify_ms * share + outcome.host_ms
        price = self.pass_price.price(self.ledger.fill) if plan.from_pool else 0.0
        self.time_price.cycle(outcome.emitted - price, engine_ms, now)

    def _breaker(self, drafter: str) -> Breaker:
        breaker = self._breakers.get(drafter)
        if breaker is None:
            config = self.config
            breaker = Breaker(config.breaker_faults, config.probe_first, config.probe_max)
            self._breakers[drafter] = breaker
        return breaker

    def _request(self, request_id: str) -> _Request:
        try:
            return self._requests[request_id]
        except KeyError:
            raise ValueError(f"request_id: {request_id!r} is not in flight; admit it first") from None

    def _cycle(self, cycle_id: int) -> _Cycle:
        try:
            return self._cycles[cycle_id]
        except KeyError:
            raise ValueError(f"cycle_id: {cycle_id} is not open; plan it first") from None
