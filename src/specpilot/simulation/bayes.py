"""The belief-state optimum: knows the population and the engine, not the request's class nor the future.

It plays under the same ledger, deadlines, θ and λ as specpilot, and differs in what it need not learn:
the hazards of every context and phase, how requests and confidences scatter, what a step and a pass take.
Its stop inside a block solves the optimal stopping of :mod:`specpilot.simulation.belief`.

Approximations, all small: within a block's look-ahead the belief is held fixed (it is updated at each
token that is really drafted); after a full accept the run goes on if the bonus token was likelier to
agree than not (its bit is never seen); a request's later passes enter through the mean hazards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from specpilot.control.horizon import Horizon, increments
from specpilot.control.latency import TimePrice
from specpilot.control.planning import Choice, CycleView
from specpilot.control.stop import StopRule, logit, sigmoid
from specpilot.control.types import Binding, CycleOutcome, Reason
from specpilot.simulation.belief import Belief, Block, Spread, interpolate, option_values
from specpilot.simulation.costs import EngineCosts

LogOdds = Callable[[int, int], float]
"""(run of agreements so far, prompt tokens) → μ, the population's log-odds at the next position."""
MAX_TABLES = 20_000
"""Stopping tables kept; all are dropped then (they are cheap to make anew)."""


@dataclass(frozen=True, slots=True)
class Population:
    """What the belief-state optimum knows: μ for each request, and how they scatter around it."""

    log_odds: Mapping[str, LogOdds]
    spread: Spread


@dataclass(slots=True)
class _Known:
    """One request's history."""

    belief: Belief
    run: int = 0


class BayesRule(StopRule):
    """The optimal stop within one block, run token by token as any stop rule is.

    Args:
        bayes: whose tables it looks up.
        block: base, worth and prices; cut to what may be drafted.
        belief: about the request, before the block.
        spread: the population's.
    """

    def __init__(self, bayes: Bayes, block: Block, belief: Belief, spread: Spread) -> None:
        super().__init__()
        self._bayes, self._block, self._spread = bayes, block, spread
        self._before = belief
        self.start()

    def start(self) -> None:
        """Begin a new block."""
        self.survival = 1.0
        self._belief = self._before.copy()
        self._option = math.inf

    def draft_on(self, position: int, elapsed_ms: float) -> bool:
        """Whether the next step is worth its price, and fits."""
        return self._option > 0.0 and elapsed_ms + self.step_ms + self.verify_ms <= self.time_limit_ms

    def keep(self, position: int, confidence: float) -> bool:
        """Whether the token is worth verifying, what may follow it included."""
        block, belief = self._block, self._belief
        base = block.base[position - 1]
        shown = logit(confidence)
        belief.see(shown, base, self._spread)
        probability = belief.acceptance(shown, base, self._spread)
        self.survival *= probability
        # What follows matters only if this token is accepted.
        belief.judge(True, probability, self._spread)
        self._option = interpolate(self._bayes.table(block, belief)[position], self.survival)
        return self.survival * block.worth[position - 1] - block.verify + self._option > 0.0


class Bayes:
    """Plans by belief.

    Args:
        population: of all requests that will be asked about.
        costs: the engine's true times.
        time_price: the controller's θ.
        finish_bonus_tokens: as the controller's, so that bids are comparable.
    """

    name = "bayes"

    def __init__(
        self,
        population: Population,
        costs: EngineCosts,
        time_price: TimePrice,
        finish_bonus_tokens: float = 1.0,
    ) -> None:
        self._population = population
        self._costs = costs
        self._time = time_price
        self._bonus = finish_bonus_tokens
        self._known: dict[str, _Known] = {}
        self._tables: dict[tuple[Block, int, int], list[list[float]]] = {}

    def admitted(self, request_id: str, prompt_tokens: int, *, now: float) -> None:
        """Nothing but the population is known yet."""
        self._known[request_id] = _Known(Belief(0.0, self._population.spread.request**2))

    def choose(self, view: CycleView, *, now: float) -> Choice:
        """The block that the belief asks for."""
        if not view.speculation_allowed or not view.max_draft:
            return Choice(0, StopRule(), Reason(Binding.BREAKER if view.max_draft else Binding.DEADLINE))
        known = self._known[view.request_id]
        costs, context = self._costs, view.context_tokens
        theta = _grid(self._time.price(view.waiting, view.time_left_ms, view.typical_ms))
        cached, new = context - view.new_context_tokens, view.new_context_tokens
        step_ms = costs.draft_step(context)
        pass_ms = costs.verify_ms(new, cached)
        token_ms = (costs.verify_ms(new + view.max_draft, cached) - pass_ms) / view.max_draft
        later = view.own_passes - (0 if view.from_pool else 1)
        base = self._base(view, known.run, view.max_draft)
        pass_price = theta * (costs.verify_ms(1, context) + costs.host)
        worth = self._worth(view, known, base, later, theta * (step_ms + token_ms), pass_price)
        block = Block(base, worth[1:], theta * step_ms, theta * token_ms)
        catch_up = 0.0
        if view.draft_behind_tokens > 2:
            catch_up = max(0.0, costs.draft_forward(view.draft_behind_tokens) - step_ms)
        starting = costs.draft_start + catch_up / (later + 1)
        drafting = self.table(block, known.belief)[0][-1] - theta * starting
        plain = worth[0] - theta * pass_ms
        numbers = {"theta": theta, "gain": drafting, "lambda": view.pass_price}
        bid = plain + max(0.0, drafting)
        if view.max_draft + 1 >= view.remaining_tokens:
            bid += self._bonus * math.prod(sigmoid(x + known.belief.mean) for x in base)
        if drafting <= 0.0:
            return Choice(0, StopRule(), Reason(Binding.DRAFT_COST, numbers, "belief"), bid)
        rule = BayesRule(self, block, known.belief, self._population.spread)
        rule.time_limit_ms, rule.step_ms = view.time_left_ms, step_ms
        rule.verify_ms = pass_ms + token_ms * view.max_draft
        return Choice(view.max_draft, rule, Reason(Binding.CONFIDENCE, numbers, "belief"), bid)

    def observe(self, view: CycleView, outcome: CycleOutcome, *, now: float) -> None:
        """Update the belief by the tokens that verification reached."""
        known, spread = self._known[view.request_id], self._population.spread
        base = self._base(view, known.run, outcome.proposed + 1)
        judged = min(outcome.accepted + 1, outcome.proposed)
        for position, confidence in enumerate(outcome.confidences[:judged]):
            shown = logit(confidence)
            known.belief.see(shown, base[position], spread)
            probability = known.belief.acceptance(shown, base[position], spread)
            known.belief.judge(position < outcome.accepted, probability, spread)
        bonus = base[outcome.proposed] + known.belief.mean
        full = outcome.accepted == outcome.proposed
        known.run = known.run + outcome.accepted + 1 if full and bonus > 0.0 else 0

    def discarded(self, request_id: str) -> None:
        """Nothing is remembered of a choice."""

    def finished(self, request_id: str, *, now: float) -> None:
        """Forget the request."""
        del self._known[request_id]

    def table(self, block: Block, belief: Belief) -> list[list[float]]:
        """The block's option values under a belief, on a grid of beliefs."""
        mean = round(belief.mean * 5.0)
        variance = round(math.log(max(belief.variance, 1e-4)) * 3.0)
        key = (block, mean, variance)
        table = self._tables.get(key)
        if table is None:
            if len(self._tables) >= MAX_TABLES:
                self._tables.clear()
            table = option_values(
                block, Belief(mean / 5.0, math.exp(variance / 3.0)), self._population.spread
            )
            self._tables[key] = table
        return table

    def _base(self, view: CycleView, run: int, count: int) -> tuple[float, ...]:
        log_odds = self._population.log_odds[view.request_id]
        return tuple([log_odds(run + j, view.prompt_tokens) for j in range(count)])

    def _worth(
        self,
        view: CycleView,
        known: _Known,
        base: tuple[float, ...],
        later: int,
        step_price: float,
        pass_price: float,
    ) -> tuple[float, ...]:
        """ΔV_0 … ΔV_D, where the later passes are valued by the mean hazards."""
        depth = view.max_draft
        # Beyond the reach of all passes together a token is a token, however many more are wanted.
        wanted = min(view.remaining_tokens, (later + 1) * (depth + 1) + 1)
        mean = round(known.belief.mean * 5.0) / 8.0
        survive = [1.0]
        for log_odds in base:
            survive.append(survive[-1] * sigmoid(log_odds + mean))
        costs = [pass_price, *[step_price] * depth]
        size = max(wanted, depth) + 2
        horizon = Horizon(wanted, max(0, later), (1.0,) * size)
        return tuple([round(value, 2) for value in increments(survive, horizon, costs, depth)])


def _grid(theta: float) -> float:
    """θ on a grid of a twelfth, so that tables are shared."""
    return math.exp(round(math.log(theta) * 12.0) / 12.0) if theta > 0.0 else 0.0
