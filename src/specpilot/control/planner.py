"""specpilot's own planner: the finite-horizon choice of τ, and the stop rule that refines it.

A decision is solved in :mod:`~specpilot.control.solving`, from what :mod:`~specpilot.control.knowledge` has
learned; this module owns what becomes of it: kept decisions, open blocks, fallback and probes, token trees,
and under which rule of acceptance an unseeded request is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import log
from typing import Any

from specpilot.control.acceptance import survival
from specpilot.control.config import ControllerConfig
from specpilot.control.contexts import Key
from specpilot.control.cost import CostModel
from specpilot.control.horizon import Decision
from specpilot.control.knowledge import LOOKUP, Asked, Knowledge, Place, grid
from specpilot.control.latency import TimePrice
from specpilot.control.planning import Choice, CycleView
from specpilot.control.sharing import Forecast
from specpilot.control.solving import NO_PRICE, Inputs, decide
from specpilot.control.stop import StopRule
from specpilot.control.timing import ample_time, fitting_nodes, shared_draft
from specpilot.control.tree import RANKS, LookupRule, TreeRule
from specpilot.control.types import Binding, CycleOutcome, Reason

PROBE_DRAFT = 4
"""τ of a probe at most, and of a drafter's first blocks."""
COLD_BLOCKS = 8
"""A drafter's first blocks, drafted at a static length without a confidence stop: neither the forecast nor
the calibration nor θ* means anything before."""
GIVE_WAY_TOKENS = 0.5
"""With ``give_way``: what a later pass must earn above its price while others wait."""
_USUAL = Asked()
"""A block that is neither a probe nor open."""


class OptimalPlanner:
    """Chooses τ by the finite-horizon value, from online estimates."""

    name = "specpilot"

    def __init__(self, config: ControllerConfig, cost: CostModel, time_price: TimePrice) -> None:
        self._config = config
        self._cost = cost
        self._time = time_price
        self.knowledge = Knowledge(config)
        self._places: dict[str, Place] = {}
        self._asked: dict[str, Asked] = {}
        self._latest: dict[str, Decision] = {}

    def admitted(self, request_id: str, prompt_tokens: int, *, now: float) -> None:
        """Nothing is kept for a request before its first cycle."""

    def choose(self, view: CycleView, *, now: float) -> Choice:
        """Plan one cycle."""
        if not view.speculation_allowed or view.max_draft == 0:
            return self._plain(view)
        place = self._places.get(view.request_id) or self._place(view)
        theta = self._time.price(view.waiting, view.time_left_ms)
        if view.max_nodes and view.acceptance == "rejection" and not place.coupled:
            place = self._settle(view, place, theta)
        context = place.context
        key = self._key(view, place, theta)
        ceiling = key[0]
        if ceiling == 0:
            return self._plain(view)
        decision = self._decision(place, key)
        self._latest[view.request_id] = decision
        tau, gain = decision.tau, decision.gain
        undone = view.remaining_tokens - (view.own_passes or 1) * decision.expected
        numbers = {
            "tau": float(tau),
            "S1": decision.first,
            "theta": theta,
            "gain": gain,
            "lambda": view.pass_price,
            # Feasibility: what the request's passes are expected to leave undone, whatever τ is.
            "short": undone if undone > 0.0 else 0.0,
        }
        bid = decision.value
        if tau + 1 >= view.remaining_tokens:
            bid += self._config.finish_bonus_tokens * decision.reach
        if self._config.give_way and view.waiting and view.emitted_tokens and bid < GIVE_WAY_TOKENS:
            reason = Reason(Binding.DEADLINE, numbers, "gives way")
            return Choice(0, StopRule(), reason, bid, True)
        # Once the draft has caught up with a request, drafting for it may pay where starting to does not:
        # that says nothing of the context's next request.
        behind = view.draft_behind_tokens > 2
        if (behind or not tau) and context.fallback.decide(gain if tau else min(gain, 0.0)):
            # A request that draws its pass from the pool may not get it, and a probe would be lost with it.
            if view.from_pool or not context.fallback.probe_due():
                return self._fall_back(
                    view, place, decision, Reason(Binding.DRAFT_COST, numbers, "fallback"), bid
                )
            self._asked[view.request_id] = Asked(probe=True)
            rule = self._rule(view, place, (), ())
            probe = min(ceiling, self._probe_length())
            return Choice(probe, rule, Reason(Binding.PROBE, numbers), bid, coupled=place.coupled)
        context.blocks += 1
        if context.calibration.blocks < COLD_BLOCKS:
            rule = self._rule(view, place, (), ())
            reason = Reason(Binding.PROBE, numbers, "cold start")
            choice = Choice(min(ceiling, PROBE_DRAFT), rule, reason, bid)
            if not view.max_nodes:
                return choice
            # Both kinds of blocks in turn: what either costs has to be known.
            branching = context.calibration.blocks % 2 == 0
            return self._branch(view, place, decision, choice, branching=branching)
        is_open = context.blocks % self._config.open_block_every == 0
        if is_open:
            closed = self._rule(view, place, decision.keep_at, decision.draft_at)
            self._asked[view.request_id] = Asked(closed_rule=closed)
            # Exploration is needed only upward: verification scores every shorter length too.
            depth = min(ceiling, max(tau, 1) + 1)
            rule = self._rule(view, place, (), ())
        else:
            depth = decision.depth
            rule = self._rule(view, place, decision.keep_at, decision.draft_at)
        if depth < ceiling:
            binding = Binding.CONFIDENCE if context.has_confidence else Binding.DRAFT_COST
        else:
            binding = _binding(ceiling, view)
        reason = Reason(binding, numbers)
        choice = Choice(depth, rule, reason, bid)
        if not view.max_nodes:
            return choice
        # Open blocks are chains: so a chain's cost stays known while trees are better.
        branching = decision.branching and not is_open
        return self._branch(view, place, decision, choice, branching=branching, is_open=is_open)

    def _branch(
        self,
        view: CycleView,
        place: Place,
        decision: Decision,
        choice: Choice,
        *,
        branching: bool,
        is_open: bool = False,
    ) -> Choice:
        """The same choice with a tree instead of a chain where there may be one, as large as time allows.

        Not ``branching``, a tree holds the draft's first choices and looked-up text only.
        """
        if place.coupled:
            choice.coupled = True
        if not place.trees or not (branching or view.max_lookup):
            return choice
        context, depth = place.context, choice.max_draft
        nodes, verify_ms = fitting_nodes(self._cost, view, depth, branching=branching)
        if not context.ranks:
            calibration = self.knowledge.ranks_of(place.source)
            slope = calibration.slope
            context.ranks = tuple([(at, slope) for at in calibration.intercepts(0)[: RANKS - 1]])
        lookup = None
        if view.max_lookup:
            lookup = context.lookup
            if lookup is None:
                calibration = self.knowledge.lookup()
                lookup = LookupRule(calibration.intercepts(place.bucket), calibration.slope, 0)
                context.lookup = lookup
            lookup = LookupRule(lookup.intercepts, lookup.slope, min(view.max_lookup, nodes))
        tree = TreeRule(
            worth=decision.worth,
            node_price=decision.node_price,
            ranks=context.ranks,
            model_depth=depth,
            first_at=decision.first_at,
            lookup=lookup,
            open=is_open,
            branching=branching,
        )
        if branching:
            choice.stop.step_ms = self._cost.tree_step_ms * self._cost.draft_upper.ratio
        choice.stop.verify_ms = verify_ms
        deepest = depth if lookup is None else max(depth, lookup.depth)
        return replace(choice, max_draft=deepest, tree=tree, max_nodes=nodes)

    def _fall_back(
        self, view: CycleView, place: Place, decision: Decision, reason: Reason, bid: float
    ) -> Choice:
        """The draft model is not asked; text that is looked up costs next to nothing."""
        if not view.max_lookup:
            return Choice(0, StopRule(), reason, bid)
        rule = self._rule(view, place, (), ())
        return self._branch(view, place, decision, Choice(0, rule, reason, bid), branching=False)

    def forecast(self, view: CycleView) -> Forecast:
        """What :meth:`choose` is likely to ask for in this view; nothing is changed by asking.

        The request's last decision stands for its next one: this is asked for every request in every pass.
        """
        theta = self._time.price(view.waiting, view.time_left_ms)
        if not view.speculation_allowed or view.max_draft <= 0:
            return Forecast(0, theta)
        place = self.knowledge.place(view.drafter, view.acceptance, view.prompt_tokens)
        context = place.context
        if context.calibration.blocks < COLD_BLOCKS:
            probe = min(view.max_draft, PROBE_DRAFT)
            return Forecast(probe, theta, probe)
        ceiling = view.max_draft
        decision = self._latest.get(view.request_id)
        if decision is None:
            key = self._key(view, place, theta)
            ceiling = key[0]
            if ceiling == 0:
                return Forecast(0, theta)
            decision = context.decisions.get(key)
            if decision is None or decision.until <= context.age:
                decision = context.forecasts.get(key)
            if decision is None or decision.until <= context.age:
                decision = context.keep(self._decide(place, key))
                context.forecasts[key] = decision
        if context.fallback.active and decision.tau == 0:
            due = not view.from_pool and context.fallback.due_within(view.sharing)
            probe = min(ceiling, self._probe_length()) if due else 0
            return Forecast(probe, theta, probe)
        # Every so many-th block is open. Where others have to wait for a longer draft it is made in every so
        # many-th pass only.
        every = self._config.open_block_every * view.sharing
        is_open = context.blocks % every + view.sharing >= every
        wanted = min(ceiling, max(decision.depth, decision.tau + 1 if is_open else 0))
        return Forecast(wanted, theta, gains=decision.gains, explores=is_open)

    def _probe_length(self) -> int:
        """τ of a probe: as much drafting as a plain pass takes, or one step."""
        affordable = self._cost.verify_ms(1) / max(self._cost.draft_step_ms, 1e-9)
        return int(min(float(PROBE_DRAFT), max(1.0, affordable)))

    def _settle(self, view: CycleView, chains: Place, theta: float) -> Place:
        """Under which rule a request sampled without a seed goes on: rejection, which accepts more of a
        chain, or noise that is shared, which can judge trees and looked-up text.

        The greater value. How either is accepted is seen only where it is used, so a request's first cycle
        now and then goes by the other, the more seldom the longer it is not the better one.
        """
        trees = self.knowledge.place(view.drafter, view.acceptance, view.prompt_tokens, coupled=True)
        tried = chains.context.calibration.blocks, trees.context.calibration.blocks
        if min(tried) < COLD_BLOCKS:
            better = trees if tried[1] < tried[0] else chains
        else:
            key = self._key(view, trees, theta)
            tree = self._decision(trees, key) if key[0] else None
            better = chains
            if tree is not None and (tree.branching or self.knowledge.matched(view.request_id)):
                key = self._key(view, chains, theta)
                if not key[0] or tree.value > self._decision(chains, key).value:
                    better = trees
            if view.emitted_tokens == 0 and chains.context.trials.due(second_better=better is trees):
                better = chains if better is trees else trees
        self._places[view.request_id] = better
        return better

    def _key(self, view: CycleView, place: Place, theta: float) -> Key:
        """What a decision depends on, its ceiling on τ first, the price of time on its grid.

        Prices, widths and shifts are on grids of a few per cent, so that requests alike share the few
        decisions that a context has just made.
        """
        shift = self.knowledge.quarters(place, view.request_id)
        ceiling, own = view.max_draft, view.own_passes
        if not ample_time(self._cost, view):
            hazards = self.knowledge.hazards(place, ceiling)
            ceiling, own = shared_draft(view, survival(hazards, shift / 4.0))
        later = own if view.from_pool else own - 1
        remaining = view.remaining_tokens
        wanted = 0
        if later > 0:
            reach = max(ceiling, view.max_lookup) + 1
            wanted = min(remaining, (later + 1) * reach + 1)
            if later >= remaining:
                # A pass for each token: only time is scarce, and what lies beyond two blocks changes nothing.
                wanted = later = min(wanted, 2 * reach + 1)
        price = round(log(theta) * 10.0) if theta > 0.0 else NO_PRICE
        width, behind = grid(view.new_context_tokens), grid(view.draft_behind_tokens)
        matched = self.knowledge.matched(view.request_id)
        sharing, beside = view.sharing, view.beside_tokens
        if sharing > 1:
            sharing, beside = grid(sharing), grid(beside)
        return ceiling, wanted, later, price, width, behind, shift, matched, beside, sharing

    def _decision(self, place: Place, key: Key) -> Decision:
        """The decision for ``key``, kept or made now."""
        context = place.context
        decision = context.decisions.get(key)
        if decision is None or decision.until <= context.age:
            decision = context.keep(self._decide(place, key))
            context.decisions[key] = decision
        return decision

    def _decide(self, place: Place, key: Key) -> Decision:
        """Solve one decision from what is known now."""
        known = self.knowledge
        hazards, lookup = known.hazards(place, key[0]), known.calibrations.get(LOOKUP)
        nodes = self._config.max_nodes if place.trees else 0
        return decide(
            Inputs(hazards, place.context, place.bucket, known.end_hazard, self._cost, nodes, lookup), key
        )

    def observe(self, view: CycleView, outcome: CycleOutcome, *, now: float) -> None:
        """Learn from a cycle."""
        place = self._places.get(view.request_id) or self._place(view)
        asked = self._asked.pop(view.request_id, _USUAL)
        self.knowledge.observe(place, view, outcome, asked, self._latest.get(view.request_id))

    def discarded(self, request_id: str) -> None:
        """The choice just made for this request will not be run (shadow mode)."""
        self._asked.pop(request_id, None)
        self._places.pop(request_id, None)

    def finished(self, request_id: str, *, now: float) -> None:
        """Forget what belongs to the request alone."""
        place = self._places.pop(request_id, None)
        self._latest.pop(request_id, None)
        asked = self._asked.pop(request_id, None)
        if place is not None and asked is not None and asked.probe:
            place.context.fallback.retry()  # it ended before its probe: the next cycle probes instead
        self.knowledge.finished(request_id)

    def learned(self) -> dict[str, object]:
        """The estimates by name, for a snapshot: what belongs to no single request."""
        return self.knowledge.learned()

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Take up estimates that :meth:`learned` gave in another process."""
        self.knowledge.restore(learned)

    def _plain(self, view: CycleView) -> Choice:
        if not view.speculation_allowed:
            return Choice(0, StopRule(), Reason(Binding.BREAKER))
        binding = Binding.LENGTH if view.remaining_tokens <= 1 else Binding.DEADLINE
        return Choice(0, StopRule(), Reason(binding, {"time_left_ms": view.time_left_ms}))

    def _place(self, view: CycleView) -> Place:
        """Where the request's estimates are, noted for its later cycles."""
        place = self.knowledge.place(view.drafter, view.acceptance, view.prompt_tokens)
        self._places[view.request_id] = place
        return place

    def _rule(
        self, view: CycleView, place: Place, keep_at: tuple[float, ...], draft_at: tuple[float, ...]
    ) -> StopRule:
        times = view.times or self._cost.pass_times(
            view.max_draft, view.new_context_tokens, view.draft_behind_tokens, view.context_tokens
        )
        intercepts, slope = self.knowledge.calibrated(place)
        return StopRule(intercepts, slope, keep_at, draft_at, view.time_left_ms, times[3], times[4])


def _binding(ceiling: int, view: CycleView) -> Binding:
    """What kept a block of the longest τ from being longer."""
    if ceiling < view.max_draft:
        return Binding.DEADLINE
    return Binding.LENGTH if ceiling >= view.remaining_tokens - 1 else Binding.MAX
