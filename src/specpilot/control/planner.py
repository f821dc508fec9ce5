"""specpilot's own planner: the finite-horizon choice of τ, and the stop rule that refines it.

A decision is solved in :mod:`~specpilot.control.solving`; this module owns the estimates that go into it and
what becomes of it: kept decisions, open blocks, fallback and probes, token trees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import exp, log
from typing import Any

from specpilot.control.acceptance import MAX_POSITIONS, AcceptanceModel, survival
from specpilot.control.calibration import Calibration
from specpilot.control.config import ControllerConfig
from specpilot.control.contexts import Context, Key, bucket_of
from specpilot.control.cost import CostModel
from specpilot.control.difficulty import Difficulty
from specpilot.control.ending import EndHazard
from specpilot.control.health import Fallback
from specpilot.control.horizon import Decision
from specpilot.control.latency import TimePrice
from specpilot.control.planning import Choice, CycleView
from specpilot.control.sharing import Forecast
from specpilot.control.solving import NO_PRICE, Estimates, decide
from specpilot.control.stop import StopRule, logit, sigmoid
from specpilot.control.timing import ample_time, fitting_nodes, shared_draft
from specpilot.control.tree import RANKS, LookupRule, TreeRule
from specpilot.control.types import Binding, CycleOutcome, Reason

PROBE_DRAFT = 4
"""τ of a probe at most, and of a drafter's first blocks."""
COLD_BLOCKS = 8
"""A drafter's first blocks, drafted at a static length without a confidence stop: neither the forecast nor
the calibration nor θ* means anything before."""
LEARNED = ("acceptance", "difficulty", "calibrations", "ranks", "contexts", "end_hazard")
GIVE_WAY_TOKENS = 0.5
"""With ``give_way``: what a later pass must earn above its price while others wait."""
LOOKUP = "lookup"
"""The drafter under which looked-up text is calibrated."""


class OptimalPlanner:
    """Chooses τ by the finite-horizon value, from online estimates."""

    name = "specpilot"

    def __init__(self, config: ControllerConfig, cost: CostModel, time_price: TimePrice) -> None:
        self._config = config
        self._cost = cost
        self._time = time_price
        self._acceptance = AcceptanceModel(
            config.prior_acceptance, config.discount, config.shrinkage, config.open_block_every
        )
        self._difficulty: dict[str, Difficulty] = {}
        self._calibrations: dict[str, Calibration] = {}
        self._contexts: dict[tuple[str, int], Context] = {}
        self._ranks: dict[str, Calibration] = {}
        self._places: dict[str, tuple[int, Context]] = {}
        self._posteriors: dict[str, list[float]] = {}
        # Tokens matched, of requests whose looked-up text was right so far.
        self._matches: dict[str, int] = {}
        self._open: dict[str, StopRule] = {}
        self._probing: dict[str, Context] = {}
        self._latest: dict[str, Decision] = {}
        self._end_hazard = EndHazard()

    def admitted(self, request_id: str, prompt_tokens: int, *, now: float) -> None:
        """Nothing is kept for a request before its first cycle."""

    def choose(self, view: CycleView, *, now: float) -> Choice:
        """Plan one cycle."""
        if not view.speculation_allowed or view.max_draft == 0:
            return self._plain(view)
        bucket, context = self._places.get(view.request_id) or self._place(view)
        theta = self._time.price(view.waiting, view.time_left_ms)
        key = self._key(view, bucket, theta)
        ceiling = key[0]
        if ceiling == 0:
            return self._plain(view)
        decision = context.decisions.get(key)
        if decision is None or decision.until <= context.age:
            decision = context.keep(self._decide(context, view.drafter, bucket, key))
            context.decisions[key] = decision
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
                    view, context, bucket, decision, Reason(Binding.DRAFT_COST, numbers, "fallback"), bid
                )
            self._probing[view.request_id] = context
            rule = self._rule(view, context, bucket, (), ())
            return Choice(min(ceiling, self._probe_length()), rule, Reason(Binding.PROBE, numbers), bid)
        context.blocks += 1
        if context.calibration.blocks < COLD_BLOCKS:
            rule = self._rule(view, context, bucket, (), ())
            reason = Reason(Binding.PROBE, numbers, "cold start")
            choice = Choice(min(ceiling, PROBE_DRAFT), rule, reason, bid)
            if not view.max_nodes:
                return choice
            # Both kinds of blocks in turn: what either costs has to be known.
            branching = context.calibration.blocks % 2 == 0
            return self._branch(view, context, bucket, decision, choice, branching=branching)
        is_open = context.blocks % self._config.open_block_every == 0
        if is_open:
            self._open[view.request_id] = self._rule(
                view, context, bucket, decision.keep_at, decision.draft_at
            )
            # Exploration is needed only upward: verification scores every shorter length too.
            depth = min(ceiling, max(tau, 1) + 1)
            rule = self._rule(view, context, bucket, (), ())
        else:
            depth = decision.depth
            rule = self._rule(view, context, bucket, decision.keep_at, decision.draft_at)
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
        return self._branch(view, context, bucket, decision, choice, branching=branching, is_open=is_open)

    def _branch(
        self,
        view: CycleView,
        context: Context,
        bucket: int,
        decision: Decision,
        choice: Choice,
        *,
        branching: bool,
        is_open: bool = False,
    ) -> Choice:
        """The same choice with a tree instead of a chain where there may be one, as large as time allows.

        Not ``branching``, a tree holds the draft's first choices and looked-up text only.
        """
        if not (branching or view.max_lookup):
            return choice
        depth = choice.max_draft
        nodes, verify_ms = fitting_nodes(self._cost, view, depth, branching=branching)
        if not context.ranks:
            calibration = self._ranks.setdefault(view.drafter, Calibration())
            slope = calibration.slope
            context.ranks = tuple([(at, slope) for at in calibration.intercepts(0)[: RANKS - 1]])
        lookup = None
        if view.max_lookup:
            lookup = context.lookup
            if lookup is None:
                calibration = self._calibrations.setdefault(LOOKUP, Calibration())
                lookup = LookupRule(calibration.intercepts(bucket), calibration.slope, 0)
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
        self, view: CycleView, context: Context, bucket: int, decision: Decision, reason: Reason, bid: float
    ) -> Choice:
        """The draft model is not asked; text that is looked up costs next to nothing."""
        if not view.max_lookup:
            return Choice(0, StopRule(), reason, bid)
        rule = self._rule(view, context, bucket, (), ())
        return self._branch(view, context, bucket, decision, Choice(0, rule, reason, bid), branching=False)

    def forecast(self, view: CycleView) -> Forecast:
        """What :meth:`choose` is likely to ask for in this view; nothing is changed by asking.

        The request's last decision stands for its next one: this is asked for every request in every pass.
        """
        theta = self._time.price(view.waiting, view.time_left_ms)
        if not view.speculation_allowed or view.max_draft <= 0:
            return Forecast(0, theta)
        bucket = bucket_of(view.prompt_tokens)
        context = self._contexts.get((view.drafter, bucket))
        if context is None or context.calibration.blocks < COLD_BLOCKS:
            probe = min(view.max_draft, PROBE_DRAFT)
            return Forecast(probe, theta, probe)
        ceiling = view.max_draft
        decision = self._latest.get(view.request_id)
        if decision is None:
            key = self._key(view, bucket, theta)
            ceiling = key[0]
            if ceiling == 0:
                return Forecast(0, theta)
            decision = context.decisions.get(key)
            if decision is None or decision.until <= context.age:
                decision = context.forecasts.get(key)
            if decision is None or decision.until <= context.age:
                decision = context.keep(self._decide(context, view.drafter, bucket, key))
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

    def _key(self, view: CycleView, bucket: int, theta: float) -> Key:
        """What a decision depends on, its ceiling on τ first, the price of time on its grid.

        Prices, widths and shifts are on grids of a few per cent, so that requests alike share the few
        decisions that a context has just made.
        """
        posterior = self._posteriors.get(view.request_id)
        # How much easier this request is than others so far: logit units, four to one.
        shift = round(self._difficulty[view.drafter].shift(posterior) * 4.0) if posterior else 0
        ceiling, own = view.max_draft, view.own_passes
        if not ample_time(self._cost, view):
            hazards = self._acceptance.table(view.drafter, bucket).hazards(ceiling)
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
        width, behind = _grid(view.new_context_tokens), _grid(view.draft_behind_tokens)
        matched = self._matches.get(view.request_id, 0)
        sharing, beside = view.sharing, view.beside_tokens
        if sharing > 1:
            sharing, beside = _grid(sharing), _grid(beside)
        return ceiling, wanted, later, price, width, behind, shift, matched, beside, sharing

    def _decide(self, context: Context, drafter: str, bucket: int, key: Key) -> Decision:
        """Solve one decision from what is known now."""
        hazards = self._acceptance.table(drafter, bucket).hazards(key[0])
        lookup = self._calibrations.get(LOOKUP)
        nodes = self._config.max_nodes
        known = Estimates(hazards, context, bucket, self._end_hazard, self._cost, nodes, lookup)
        return decide(known, key)

    def observe(self, view: CycleView, outcome: CycleOutcome, *, now: float) -> None:
        """Learn from a cycle."""
        bucket, context = self._places.get(view.request_id) or self._place(view)
        self._end_hazard.observe(
            outcome.emitted, outcome.ended is not None and outcome.ended.value in ("eos", "stop")
        )
        closed_rule = self._open.pop(view.request_id, None)
        probe = self._probing.pop(view.request_id, None) is not None
        context.grow_older()
        if outcome.lookup_judged is not None:
            self._learn_lookup(view.request_id, bucket, outcome.lookup_judged)
        drafted = outcome.drafted if outcome.drafter in (None, view.drafter) else 0
        if probe and not drafted and not outcome.draft_fault:
            context.fallback.retry()  # the engine had no draft for it (vLLM drafts a step ahead)
        if not drafted or outcome.draft_fault:
            return
        context.has_confidence = bool(outcome.confidences)
        # A block that ended the output inside itself was verified only up to there.
        proposed = outcome.proposed if outcome.ended is None else min(outcome.proposed, outcome.emitted)
        accepted = min(outcome.accepted, proposed)
        calibration = context.calibration
        calibration.blocks += 1
        dropped = None
        cut_at = None
        log_odds: list[float] = []
        if outcome.confidences:
            level = self._acceptance.table(view.drafter, bucket).level()
            log_odds = calibration.log_odds(bucket, outcome.confidences, level)
            if len(log_odds) > outcome.proposed and outcome.ended is None:
                dropped = sigmoid(log_odds[-1])
            if closed_rule:
                cut_at = _cut(closed_rule, outcome.confidences)
            for position in range(1, min(accepted + 1, proposed) + 1):
                confidence = outcome.confidences[position - 1]
                calibration.observe(position, bucket, confidence, position <= accepted, level)
        if outcome.side_proposed:
            self._learn_branches(view.drafter, context, outcome, failed=accepted < proposed)
        decision = self._latest.get(view.request_id)
        plain = outcome.lookup_judged is None and not (probe or closed_rule or outcome.ended)
        if decision and decision.forecast > 0.0 and plain:
            context.yields.observe(
                branching=decision.branching,
                later=view.new_context_tokens == 1,
                brought=outcome.emitted - 1.0,
                forecast=decision.forecast,
            )
        if proposed:
            self._learn_difficulty(view, bucket, context, log_odds, accepted, proposed)
        if self._acceptance.observe(view.drafter, bucket, accepted, proposed, cut_at, dropped):
            context.forget_decisions()
            self._hurry_probes(view.drafter)
        elif probe and self._acceptance.rising(view.drafter, bucket):
            context.fallback.hurry()

    def _learn_branches(self, drafter: str, context: Context, outcome: CycleOutcome, *, failed: bool) -> None:
        ranks = self._ranks.setdefault(drafter, Calibration())
        for rank, share, right in outcome.side_judged:
            ranks.observe(rank - 1, 0, share, right)
        context.branches.observe(
            failed=failed,
            rescued=outcome.side_accepted > 0,
            nodes=outcome.proposed + outcome.side_proposed,
            levels=outcome.drafted,
        )

    def _learn_lookup(self, request_id: str, bucket: int, judged: tuple[float, int, int]) -> None:
        """Whether it was proposed or not: the verified path says what it would have been worth."""
        confidence, right, seen = judged
        calibration = self._calibrations.setdefault(LOOKUP, Calibration())
        calibration.blocks += 1
        for position in range(1, seen + 1):
            calibration.observe(position, bucket, confidence, position <= right)
        self._matches.pop(request_id, None)
        if right == seen:
            self._matches[request_id] = _grid(round(confidence / (1.0 - confidence)) + right)

    def _hurry_probes(self, drafter: str) -> None:
        """What ends one context's bad times may end those of the drafter's others."""
        for (name, _), context in self._contexts.items():
            if name == drafter and context.fallback.active:
                context.fallback.hurry()

    def discarded(self, request_id: str) -> None:
        """The choice just made for this request will not be run (shadow mode)."""
        self._open.pop(request_id, None)
        self._probing.pop(request_id, None)

    def finished(self, request_id: str, *, now: float) -> None:
        """Forget what belongs to the request alone."""
        self._places.pop(request_id, None)
        self._posteriors.pop(request_id, None)
        self._matches.pop(request_id, None)
        self._open.pop(request_id, None)
        self._latest.pop(request_id, None)
        context = self._probing.pop(request_id, None)
        if context is not None:
            context.fallback.retry()  # it ended before its probe: the next cycle probes instead

    def learned(self) -> dict[str, object]:
        """The estimates by name, for a snapshot: what belongs to no single request."""
        return {name: getattr(self, f"_{name}") for name in LEARNED}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Take up estimates that :meth:`learned` gave in another process."""
        for name in LEARNED:
            setattr(self, f"_{name}", learned[name])

    def _plain(self, view: CycleView) -> Choice:
        if not view.speculation_allowed:
            return Choice(0, StopRule(), Reason(Binding.BREAKER))
        binding = Binding.LENGTH if view.remaining_tokens <= 1 else Binding.DEADLINE
        return Choice(0, StopRule(), Reason(binding, {"time_left_ms": view.time_left_ms}))

    def _place(self, view: CycleView) -> tuple[int, Context]:
        """Where the request belongs, noted for its later cycles: its bucket and context."""
        drafter, bucket = view.drafter, bucket_of(view.prompt_tokens)
        context = self._contexts.get((drafter, bucket))
        if context is None:
            calibration = self._calibrations.setdefault(drafter, Calibration())
            context = Context(Fallback(self._config.probe_first, self._config.probe_max), calibration)
            self._contexts[drafter, bucket] = context
        self._places[view.request_id] = bucket, context
        return bucket, context

    def _learn_difficulty(
        self,
        view: CycleView,
        bucket: int,
        context: Context,
        log_odds: Sequence[float],
        accepted: int,
        proposed: int,
    ) -> None:
        difficulty = self._difficulty.setdefault(view.drafter, Difficulty())
        prior = self._posteriors.get(view.request_id, difficulty.weights)
        known = min(max(proposed, len(log_odds)), MAX_POSITIONS)
        hazards = self._acceptance.table(view.drafter, bucket).hazards(known)
        if log_odds:
            posterior = difficulty.posterior_by_confidence(
                prior, hazards, log_odds, accepted, proposed, context.residuals, context.calibration.slope
            )
            context.residuals.observe(log_odds[0] - logit(hazards[0]))
        else:
            posterior = difficulty.posterior(prior, hazards, accepted, proposed)
        self._posteriors[view.request_id] = posterior
        difficulty.learn(posterior)

    def _rule(
        self,
        view: CycleView,
        context: Context,
        bucket: int,
        keep_at: tuple[float, ...],
        draft_at: tuple[float, ...],
    ) -> StopRule:
        times = view.times or self._cost.pass_times(
            view.max_draft, view.new_context_tokens, view.draft_behind_tokens, view.context_tokens
        )
        if not context.intercepts:
            level = self._acceptance.table(view.drafter, bucket).level()
            context.intercepts = context.calibration.intercepts(bucket, level)
            context.slope = context.calibration.slope
        return StopRule(
            context.intercepts, context.slope, keep_at, draft_at, view.time_left_ms, times[3], times[4]
        )


@lru_cache(4096)
def _grid(tokens: int) -> int:
    """A width on a grid of a tenth, exact up to 8."""
    return tokens if tokens <= 8 else round(exp(round(log(tokens) * 10.0) / 10.0))


def _cut(rule: StopRule, confidences: Sequence[float]) -> int | None:
    """The first position that ``rule`` would not have computed, had the block not been open."""
    rule.start()
    for position, confidence in enumerate(confidences, 1):
        if not rule.draft_on(position, 0.0):
            return position
        if not rule.keep(position, confidence):
            return position + 1
    return None


def _binding(ceiling: int, view: CycleView) -> Binding:
    """What kept a block of the longest τ from being longer."""
    if ceiling < view.max_draft:
        return Binding.DEADLINE
    return Binding.LENGTH if ceiling >= view.remaining_tokens - 1 else Binding.MAX
