"""specpilot's own planner: the finite-horizon choice of τ, and the stop rule that refines it.

A decision is solved in :mod:`~specpilot.control.solving`, from what :mod:`~specpilot.control.knowledge` has
learned; this module owns what becomes of it: kept decisions, open blocks, fallback and probes, token trees,
and under which rule of acceptance an unseeded request is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from specpilot.control.config import ControllerConfig
from specpilot.control.contexts import Context, Key
from specpilot.control.cost import CostModel
from specpilot.control.horizon import Decision
from specpilot.control.keys import decision_key
from specpilot.control.knowledge import Asked, Knowledge
from specpilot.control.latency import TimePrice
from specpilot.control.planning import Choice, CycleView
from specpilot.control.sharing import Forecast
from specpilot.control.solving import STATIC_DRAFT, Inputs, decide
from specpilot.control.stop import StopRule
from specpilot.control.treeplan import with_tree
from specpilot.control.types import Binding, CycleOutcome, Reason

COLD_BLOCKS = 8
"""A drafter's first blocks, drafted at a static length without a confidence stop: of what is forecast,
calibrated and priced from fewer the best looks better than it is, which costs more than the static length
does where acceptance is the same everywhere. Where there may be trees every other one is a tree."""
UNSURE_BLOCKS = 40
"""Blocks (those of twenty requests with two passes each) up to which a chain keeps that length unless what is
decided is worth ``SURE_LEAD`` ÷ √blocks tokens more: forecasts from n blocks err by as much as 1 ÷ √n."""
SURE_LEAD = 0.5
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
        self._contexts: dict[str, Context] = {}
        self._asked: dict[str, Asked] = {}
        self._latest: dict[str, Decision] = {}
        self._over: set[str] = set()  # requests that have drafted under shared noise

    def admitted(self, request_id: str, prompt_tokens: int, *, now: float) -> None:
        """Nothing is kept for a request before its first cycle."""

    def choose(self, view: CycleView, *, now: float) -> Choice:
        """Plan one cycle."""
        if self._asked:
            self._withdraw(view.request_id)
        if not view.speculation_allowed or view.max_draft == 0:
            return self._plain(view)
        context = self._contexts.get(view.request_id) or self._context(view)
        theta = self._time.price(view.waiting, view.time_left_ms, view.typical_ms)
        if view.max_nodes and not context.trees:
            context = self._settle(view, context, theta)
        key = self._key(view, context, theta)
        ceiling = min(key[0], view.max_draft)
        if ceiling == 0:
            return self._plain(view)
        decision = self._decision(context, key)
        self._latest[view.request_id] = decision
        tau, gain = min(decision.tau, ceiling), decision.gain
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
        if (behind or not tau) and context.fallback.decide(gain):
            # A request that draws its pass from the pool may not get it, and a probe would be lost with it.
            if view.from_pool or not context.fallback.probe_due():
                return self._fall_back(
                    view, context, decision, Reason(Binding.DRAFT_COST, numbers, "fallback"), bid
                )
            self._asked[view.request_id] = Asked(probing=context.fallback)
            rule = self._rule(view, context, (), ())
            probe = min(ceiling, self._probe_length())
            return Choice(probe, rule, Reason(Binding.PROBE, numbers), bid, coupled=_gone_over(view, context))
        context.blocks += 1
        if _is_cold(context, decision, trees=view.max_nodes > 0):
            del self._latest[view.request_id]  # not what is drafted: nothing can be learnt of its forecast
            rule = self._rule(view, context, (), ())
            reason = Reason(Binding.PROBE, numbers, "cold start")
            choice = Choice(min(ceiling, STATIC_DRAFT), rule, reason, bid)
            if not view.max_nodes:
                return choice
            # Both kinds of blocks in turn: what either costs has to be known.
            branching = context.calibration.blocks % 2 == 0
            return self._branch(view, context, decision, choice, branching=branching)
        is_open = context.blocks % self._open_every(view, theta) == 0
        if is_open:
            closed = self._rule(view, context, decision.keep_at, decision.draft_at)
            self._asked[view.request_id] = Asked(closed_rule=closed)
            # Exploration is needed only upward: verification scores every shorter length too.
            depth = min(ceiling, max(tau, 1) + 1)
            rule = self._rule(view, context, (), ())
        else:
            depth = min(ceiling, decision.depth)
            rule = self._rule(view, context, decision.keep_at, decision.draft_at)
        if depth < ceiling:
            binding = Binding.CONFIDENCE if context.has_confidence else Binding.DRAFT_COST
        else:
            binding = _binding(ceiling, view)
        reason = Reason(binding, numbers)
        choice = Choice(depth, rule, reason, bid)
        if not view.max_nodes:
            return choice
        # Open blocks are chains: so what a chain costs stays known.
        branching = not is_open and self._forks(context, theta)
        return self._branch(view, context, decision, choice, branching=branching, is_open=is_open)

    def _forks(self, context: Context, theta: float) -> bool:
        """Whether to ask for a tree: where the nodes beside a chain earn what it costs to ask, and now and
        then where they do not.
        """
        if context.forks.gain(theta, self._cost.tree_ms) > 0.0:
            context.tree_trials.reset()
            return True
        return context.tree_trials.due()

    def _branch(
        self,
        view: CycleView,
        context: Context,
        decision: Decision,
        choice: Choice,
        *,
        branching: bool,
        is_open: bool = False,
    ) -> Choice:
        """The same choice with a tree instead of a chain where there may be one."""
        choice.coupled = _gone_over(view, context)
        if not context.trees or not (branching or view.max_lookup):
            return choice
        return with_tree(
            self.knowledge, self._cost, view, context, decision, choice, branching=branching, is_open=is_open
        )

    def _fall_back(
        self, view: CycleView, context: Context, decision: Decision, reason: Reason, bid: float
    ) -> Choice:
        """The draft model is not asked; text that is looked up costs next to nothing."""
        if not view.max_lookup:
            return Choice(0, StopRule(), reason, bid)
        rule = self._rule(view, context, (), ())
        return self._branch(view, context, decision, Choice(0, rule, reason, bid), branching=False)

    def forecast(self, view: CycleView) -> Forecast:
        """What :meth:`choose` is likely to ask for in this view; nothing is changed by asking.

        The request's last decision stands for its next one: this is asked for every request in every pass.
        """
        theta = self._time.price(view.waiting, view.time_left_ms, view.typical_ms)
        if not view.speculation_allowed or view.max_draft <= 0:
            return Forecast(0, theta)
        context = self._contexts.get(view.request_id) or self.knowledge.known_context(
            view.drafter, view.acceptance, view.prompt_tokens
        )
        if context is None or (context.calibration.blocks < COLD_BLOCKS and not context.fallback.active):
            probe = min(view.max_draft, STATIC_DRAFT)
            return Forecast(probe, theta, probe)
        ceiling = view.max_draft
        decision = self._latest.get(view.request_id)
        if decision is None:
            key = self._key(view, context, theta, keep=False)
            ceiling = min(key[0], ceiling)
            if ceiling == 0:
                return Forecast(0, theta)
            decision = context.decisions.get(key)
            if decision is None or decision.until <= context.age:
                decision = context.forecasts.get(key)
            if decision is None or decision.until <= context.age:
                decision = self._decide(context, key, context.forecasts)
        if not context.fallback.active and _is_cold(context, decision, trees=view.max_nodes > 0):
            return Forecast(min(ceiling, STATIC_DRAFT), theta, gains=decision.gains)
        if context.fallback.active and decision.tau == 0:
            due = not view.from_pool and context.fallback.due_within(view.sharing)
            probe = min(ceiling, self._probe_length()) if due else 0
            return Forecast(probe, theta, probe)
        # Every so many-th block is open. Where others have to wait for a longer draft it is made in every so
        # many-th pass only.
        every = self._open_every(view, theta) * view.sharing
        is_open = context.blocks % every + view.sharing >= every
        wanted = min(ceiling, max(decision.depth, decision.tau + 1 if is_open else 0))
        return Forecast(wanted, theta, gains=decision.gains, explores=is_open)

    def _open_every(self, view: CycleView, theta: float) -> int:
        """Every so many-th block is open: seldom in place of a tree, or where time is dear and not shared."""
        seldom = view.max_nodes or (view.sharing == 1 and theta > self._time.busy_rate / 2.0)
        return self._config.open_block_every * (4 if seldom else 1)

    def _probe_length(self) -> int:
        """τ of a probe: as much drafting as a plain pass takes, or one step."""
        affordable = self._cost.verify_ms(1) / max(self._cost.draft_step_ms, 1e-9)
        return int(min(float(STATIC_DRAFT), max(1.0, affordable)))

    def _settle(self, view: CycleView, chains: Context, theta: float) -> Context:
        """Under which rule a request sampled without a seed goes on: noise that is shared, which can judge
        trees and looked-up text, or rejection, which accepts more of a chain.

        Rejection unless what side nodes and looked-up text earn makes up for what a chain loses. Both are
        reckoned by the estimates of one rule: those of two, each learnt where it was used, are off by more
        than lies between them. A request's first cycle now and then goes by the other rule, the more seldom
        the longer it is not the better one, for nothing is learnt of a rule that is not used.
        """
        trees = self.knowledge.context(view.drafter, view.acceptance, view.prompt_tokens, coupled=True)
        better = chains
        if trees.calibration.blocks < COLD_BLOCKS:
            # What was asked for and never seen (in shadow mode a static τ is run) is not asked for again.
            if trees.blocks < COLD_BLOCKS:
                better = trees
        else:
            key = self._key(view, trees, theta)
            worth = max(0.0, trees.forks.gain(theta, self._cost.tree_ms))
            if key[0] and worth > self._decision(trees, key).coupling_loss:
                better = trees
        if view.emitted_tokens == 0 and chains.trials.due(second_better=better is trees):
            better = chains if better is trees else trees
            if better is trees:
                trees.fallback.hurry()  # a plain cycle would teach nothing
        self._contexts[view.request_id] = better
        return better

    def _key(self, view: CycleView, context: Context, theta: float, *, keep: bool = True) -> Key:
        return decision_key(self.knowledge, self._cost, self._config, view, context, theta, keep=keep)

    def _decision(self, context: Context, key: Key) -> Decision:
        """The context's decision for a key: the one it keeps, or a new one."""
        decision = context.decisions.get(key)
        if decision is None or decision.until <= context.age:
            decision = self._decide(context, key)
        return decision

    def _decide(self, context: Context, key: Key, kept: dict[Key, Decision] | None = None) -> Decision:
        """Solve one decision from what is known now, and keep it among the context's (or in ``kept``)."""
        known = self.knowledge
        hazards, nodes = known.hazards(context, key[0], keep=kept is None), self._config.max_nodes
        inputs = Inputs(hazards, context, known.end_hazard, self._cost, nodes, known.lookup)
        decision = context.keep(decide(inputs, key))
        (context.decisions if kept is None else kept)[key] = decision
        return decision

    def observe(self, view: CycleView, outcome: CycleOutcome, *, now: float) -> None:
        """Learn from a cycle."""
        context = self._contexts.get(view.request_id) or self._context(view)
        asked = self._asked.pop(view.request_id, _USUAL)
        changed = self.knowledge.observe(context, view, outcome, asked, self._latest.get(view.request_id))
        if outcome.side_worth is not None and outcome.lookup_judged is None:
            cost, sides, width = self._cost, outcome.side_proposed, outcome.verified_tokens
            more_ms = cost.verify_ms(width) - cost.verify_ms(width - sides) + sides * cost.side_ms
            context.forks.observe(outcome.side_worth, more_ms)
        if view.max_nodes and view.acceptance == "rejection":
            self._observe_settling(view, context, changed=changed)

    def _observe_settling(self, view: CycleView, context: Context, *, changed: bool) -> None:
        """Of two rules one is used: the other's decisions grow old too, and a change is cause to try it."""
        over = context.trees
        if over:
            self._over.add(view.request_id)
        other = self.knowledge.context(view.drafter, view.acceptance, view.prompt_tokens, coupled=not over)
        other.grow_older()
        if changed:
            (other if over else context).trials.reset()

    def discarded(self, request_id: str) -> None:
        """The choice just made for this request will not be run (shadow mode)."""
        self._asked.pop(request_id, None)
        self._latest.pop(request_id, None)
        if request_id not in self._over:
            self._contexts.pop(request_id, None)

    def finished(self, request_id: str, *, now: float) -> None:
        """Forget what belongs to the request alone."""
        self._contexts.pop(request_id, None)
        self._latest.pop(request_id, None)
        self._over.discard(request_id)
        self._withdraw(request_id)
        self.knowledge.finished(request_id)

    def learned(self) -> dict[str, object]:
        """The estimates by name, for a snapshot: what belongs to no single request."""
        return self.knowledge.learned()

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Take up estimates that :meth:`learned` gave in another process."""
        self.knowledge.restore(learned)

    def _withdraw(self, request_id: str) -> None:
        """What was asked for the request's last plan, which was given up, is not to come any more."""
        asked = self._asked.pop(request_id, None)
        if asked is not None and asked.probing:
            asked.probing.retry()  # the next cycle probes instead

    def _plain(self, view: CycleView) -> Choice:
        if not view.speculation_allowed:
            return Choice(0, StopRule(), Reason(Binding.BREAKER))
        binding = Binding.LENGTH if view.remaining_tokens <= 1 else Binding.DEADLINE
        return Choice(0, StopRule(), Reason(binding, {"time_left_ms": view.time_left_ms}))

    def _context(self, view: CycleView) -> Context:
        """Where the request's estimates are, noted for its later cycles."""
        context = self.knowledge.context(view.drafter, view.acceptance, view.prompt_tokens)
        self._contexts[view.request_id] = context
        return context

    def _rule(
        self, view: CycleView, context: Context, keep_at: tuple[float, ...], draft_at: tuple[float, ...]
    ) -> StopRule:
        times = view.times or self._cost.pass_times(
            view.max_draft, view.new_context_tokens, view.draft_behind_tokens, view.context_tokens
        )
        calibration = context.calibration
        return StopRule(
            calibration.intercept,
            calibration.slope,
            keep_at,
            draft_at,
            view.time_left_ms,
            times[3],
            times[4],
        )


def _is_cold(context: Context, decision: Decision, *, trees: bool) -> bool:
    """Whether too little is known of the drafter to leave the static length for what was decided."""
    blocks = context.calibration.blocks
    if blocks < COLD_BLOCKS:
        return True
    return blocks < UNSURE_BLOCKS and not trees and decision.lead < SURE_LEAD / math.sqrt(blocks)


def _gone_over(view: CycleView, context: Context) -> bool:
    """Whether a request that began with rejection goes on under shared noise."""
    return context.trees and view.acceptance == "rejection"


def _binding(ceiling: int, view: CycleView) -> Binding:
    """What kept a block of the longest τ from being longer."""
    if ceiling < view.max_draft:
        return Binding.DEADLINE
    return Binding.LENGTH if ceiling >= view.remaining_tokens - 1 else Binding.MAX
