"""specpilot's own planner: the finite-horizon choice of τ, and the stop rule that refines it.

With n tokens still wanted and k passes left, the value of a cycle that drafts τ tokens is

    U(τ) = Σ_{j=0}^{τ} S_j · ΔV_j  −  θ · cost(τ),        ΔV_j = G_j + W_{j+1} − W_j

where S_j = P(at least j draft tokens are accepted), G_j = P(the suggestion has not ended before token
j + 1), W_m = G_m · V_{k−1}(n − m) is what the later passes are still worth after m tokens (W_0 = 0),
and θ is the price of time. (Abel summation of Σ_a P(a) · [a + 1 tokens + V_{k−1}(n − a − 1)].) The
increments are what each further draft position adds, so the same numbers give the stop rule's
thresholds: keep x_j if S_j · ΔV_j > θ · Δverify; run its draft step while the best run of positions that
starts with it earns more than it costs (with falling hazards that run is the position alone).

The value of a horizon of cycles under an acceptance model is the view of SpecDec++ (Huang et al. 2024)
and of Sequoia's dynamic programme (Chen et al. 2024); the price of time is Dinkelbach's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, repeat
from operator import mul

from specpilot.control.acceptance import AcceptanceModel, Difficulty, survival
from specpilot.control.calibration import Calibration
from specpilot.control.config import ControllerConfig
from specpilot.control.cost import CostModel
from specpilot.control.health import Fallback
from specpilot.control.latency import TimePrice
from specpilot.control.planning import Choice, CycleView
from specpilot.control.stop import StopRule
from specpilot.control.types import Binding, CycleOutcome, Reason

BUCKET_EDGES = (64, 256, 512)
"""Prompt-length buckets: ≤ 64, 65–256, 257–512, > 512 tokens."""
EASY_SHIFT = 1.0
"""How much easier than forecast a block may turn out (logit scale): sets the ceiling on τ, below which
the confidence stop decides."""


def bucket_of(prompt_tokens: int) -> int:
    """The prompt-length bucket, 0…3."""
    return sum(prompt_tokens > edge for edge in BUCKET_EDGES)


def future_values(
    survive: Sequence[float], goes_on: Sequence[float], costs: Sequence[float], passes: int
) -> list[float]:
    """V_k(n) for n = 0 … N: what ``passes`` more passes are worth with n tokens wanted.

    Args:
        survive: S_0 … S_T.
        goes_on: G_0 … G_N, P(not ended before token j + 1).
        costs: θ·cost of the pass itself, then of each draft position 1 … T (in tokens).
        passes: k ≥ 0.
    """
    size = len(goes_on)
    if passes == 1:
        # With nothing after it a pass earns the same whatever is wanted beyond its reach.
        earned = accumulate([s * g - c for s, g, c in zip(survive, goes_on[:-1], costs, strict=False)])
        reach: list[float] = list(accumulate(earned, max, initial=0.0))
        return (reach + [reach[-1]] * size)[:size]
    values = [0.0] * size
    for _ in range(min(passes, size)):  # a pass emits at least one token
        before = values
        values = [0.0] * size
        for wanted in range(1, size):
            total = -costs[0]
            best = -math.inf
            for j in range(min(len(survive), wanted)):
                if j:
                    total -= costs[j]
                later = goes_on[j + 1] * before[wanted - j - 1] if j + 1 < size else 0.0
                now = goes_on[j] * before[wanted - j] if j else 0.0
                total += survive[j] * (goes_on[j] + later - now)
                best = max(best, total)
            values[wanted] = max(0.0, best)
    return values


@dataclass(slots=True)
class _RequestState:
    posterior: list[float]
    ended: bool = False


@dataclass(slots=True)
class _Context:
    fallback: Fallback
    blocks: int = 0
    has_confidence: bool = True


class OptimalPlanner:
    """Chooses τ by the finite-horizon value above, from online estimates."""

    name = "specpilot"

    def __init__(self, config: ControllerConfig, cost: CostModel, time_price: TimePrice) -> None:
        self._config = config
        self._cost = cost
        self._time = time_price
        self.acceptance = AcceptanceModel(
            config.prior_acceptance, config.discount, config.shrinkage, config.open_block_every
        )
        self._difficulty: dict[str, Difficulty] = {}
        self._calibrations: dict[str, Calibration] = {}
        self._contexts: dict[tuple[str, int], _Context] = {}
        self._requests: dict[str, _RequestState] = {}
        self._open: dict[str, StopRule] = {}
        self._probing: set[str] = set()
        self._end_hazard = EndHazard()

    def admitted(self, request_id: str, prompt_tokens: int, *, now: float) -> None:
        """Nothing is kept for a request before its first cycle."""

    def choose(self, view: CycleView, *, now: float) -> Choice:
        """Plan one cycle."""
        bucket = bucket_of(view.prompt_tokens)
        context = self._context(view.drafter, bucket)
        ceiling = view.max_draft
        if not view.speculation_allowed or ceiling == 0:
            return self._plain(view)
        verify = self._cost.verify_run_ms(view.new_context_tokens, ceiling)
        theta = self._time.price(view.waiting, view.time_left_ms)
        hazards = self.acceptance.table(view.drafter, bucket).hazards(ceiling)
        shift = self._shift(view)
        survive = survival(hazards, shift)
        costs = self._costs(view, theta, verify)
        worth = self._worth(view, survive, costs, ceiling)
        tau, value, plain = _best(survive, worth, costs)
        gain = (value - plain) / max(abs(plain), 1.0)
        numbers = {
            "tau": float(tau),
            "S1": survive[1],
            "theta": theta,
            "gain": gain,
            "lambda": view.pass_price,
        }
        bid = value + self._config.finish_bonus_tokens * (
            survive[tau] if tau + 1 >= view.remaining_tokens else 0.0
        )
        if context.fallback.decide(gain if tau else min(gain, 0.0)):
            if not context.fallback.probe_due():
                return Choice(0, StopRule(), Reason(Binding.DRAFT_COST, numbers, "fallback"), bid)
            self._probing.add(view.request_id)
            depth = min(ceiling, 4)
            return Choice(depth, self._rule(view, bucket, (), ()), Reason(Binding.PROBE, numbers), bid)
        if tau == 0:
            tau = 1 if ceiling else 0  # one adverse decision is not yet fallback
        context.blocks += 1
        open_block = context.blocks % self._config.open_block_every == 0
        depth = tau
        if open_block:
            # Exploration is needed only upward: verification scores every shorter length too.
            depth = min(ceiling, tau + 1)
        elif context.has_confidence:
            depth = max(tau, _best(survival(hazards, shift + EASY_SHIFT), worth, costs)[0])
        keep_at, draft_at = _thresholds(hazards, worth, costs, verify, theta, depth)
        if open_block:
            self._open[view.request_id] = self._rule(view, bucket, keep_at, draft_at)
            keep_at, draft_at = (), ()
        binding = _binding(depth, ceiling, view, context.has_confidence)
        return Choice(depth, self._rule(view, bucket, keep_at, draft_at), Reason(binding, numbers), bid)

    def observe(self, view: CycleView, outcome: CycleOutcome, *, now: float) -> None:
        """Learn from a cycle."""
        bucket = bucket_of(view.prompt_tokens)
        self._end_hazard.observe(
            outcome.emitted, outcome.ended is not None and outcome.ended.value in ("eos", "stop")
        )
        closed_rule = self._open.pop(view.request_id, None)
        probe = view.request_id in self._probing
        self._probing.discard(view.request_id)
        if not outcome.drafted or outcome.draft_fault:
            return
        context = self._context(view.drafter, bucket)
        context.has_confidence = bool(outcome.confidences)
        # A block that ended the output inside itself was verified only up to there.
        proposed = outcome.proposed if outcome.ended is None else min(outcome.proposed, outcome.emitted)
        accepted = min(outcome.accepted, proposed)
        calibration = self._calibration(view.drafter)
        dropped = None
        cut_at = None
        if outcome.confidences:
            if outcome.drafted > outcome.proposed and outcome.ended is None:
                dropped = calibration.acceptance(
                    outcome.drafted, bucket, outcome.confidences[outcome.drafted - 1]
                )
            if closed_rule:
                cut_at = _cut(closed_rule, outcome.confidences)
            for position in range(1, min(accepted + 1, proposed) + 1):
                calibration.observe(position, bucket, outcome.confidences[position - 1], position <= accepted)
        hazards = self.acceptance.table(view.drafter, bucket).hazards(proposed)
        self._learn_difficulty(view, hazards, accepted, proposed)
        changed = self.acceptance.observe(view.drafter, bucket, accepted, proposed, cut_at, dropped)
        if probe:
            context.fallback.probed(accepted, proposed)
        if changed and context.fallback.active:
            context.fallback.probed(1, 1)

    def finished(self, request_id: str, *, now: float) -> None:
        """Forget what belongs to the request alone."""
        self._requests.pop(request_id, None)
        self._open.pop(request_id, None)
        self._probing.discard(request_id)

    def _plain(self, view: CycleView) -> Choice:
        if not view.speculation_allowed:
            return Choice(0, StopRule(), Reason(Binding.BREAKER))
        binding = Binding.LENGTH if view.remaining_tokens <= 1 else Binding.DEADLINE
        return Choice(0, StopRule(), Reason(binding, {"time_left_ms": view.time_left_ms}))

    def _context(self, drafter: str, bucket: int) -> _Context:
        key = (drafter, bucket)
        context = self._contexts.get(key)
        if context is None:
            context = _Context(Fallback(self._config.probe_first, self._config.probe_max))
            self._contexts[key] = context
        return context

    def _calibration(self, drafter: str) -> Calibration:
        calibration = self._calibrations.get(drafter)
        if calibration is None:
            calibration = self._calibrations[drafter] = Calibration()
        return calibration

    def _shift(self, view: CycleView) -> float:
        state = self._requests.get(view.request_id)
        if state is None:
            return 0.0
        return self._difficulty[view.drafter].shift(state.posterior)

    def _learn_difficulty(
        self, view: CycleView, hazards: Sequence[float], accepted: int, proposed: int
    ) -> None:
        if not proposed:
            return
        difficulty = self._difficulty.setdefault(view.drafter, Difficulty())
        state = self._requests.get(view.request_id)
        prior = state.posterior if state else difficulty.weights
        posterior = difficulty.posterior(prior, hazards, accepted, proposed)
        self._requests[view.request_id] = _RequestState(posterior)
        difficulty.learn(posterior)

    def _costs(self, view: CycleView, theta: float, verify: Sequence[float]) -> list[float]:
        """θ · cost of the pass over the context alone, then of each further draft position."""
        step = self._cost.draft_step_ms
        result = [theta * verify[0]]
        result += [theta * (step + after - before) for before, after in pairwise(verify)]
        # Drafting at all needs the draft's own prefill, once for all passes still to come.
        prefill = self._cost.draft_prefill_ms(view.new_context_tokens - 1)
        result[1] += theta * prefill / max(1, view.own_passes)
        return result

    def _worth(
        self, view: CycleView, survive: Sequence[float], costs: Sequence[float], ceiling: int
    ) -> list[float]:
        """ΔV_0 … ΔV_ceiling."""
        goes_on = self._end_hazard.survival(ceiling + 2)
        passes = view.own_passes - (0 if view.from_pool else 1)
        wanted = view.remaining_tokens
        if passes <= 0 or wanted > (passes + 1) * (ceiling + 1):
            # No later pass, or so much wanted that later passes are worth the same whatever this one
            # yields: a token is a token.
            return goes_on[: ceiling + 1]
        survive = survive[: ceiling + 1]
        goes_on = self._end_hazard.survival(wanted + 1)
        later = future_values(survive, goes_on, self._later_costs(view, costs), passes)
        # W_m for m = 0 … wanted: what is left to the later passes once m tokens are out.
        left = [0.0, *map(mul, goes_on[1:], later[wanted - 1 :: -1])]
        return [now + w1 - w0 for now, w0, w1 in zip(goes_on[: ceiling + 1], left, left[1:], strict=False)]

    def _later_costs(self, view: CycleView, costs: Sequence[float]) -> list[float]:
        """A later pass has one new context token instead of the prompt; positions cost alike."""
        first = self._cost.verify_ms(view.new_context_tokens)
        return [costs[0] * self._cost.verify_ms(1) / first, *costs[1:]]

    def _rule(
        self, view: CycleView, bucket: int, keep_at: tuple[float, ...], draft_at: tuple[float, ...]
    ) -> StopRule:
        cost = self._cost
        cached = view.context_tokens - view.new_context_tokens
        verify = cost.verify_ms(view.new_context_tokens + view.max_draft, cached) * cost.verify_upper.ratio
        calibration = self._calibration(view.drafter)
        return StopRule(
            intercepts=calibration.intercepts(bucket),
            slope=calibration.slope,
            keep_at=keep_at,
            draft_at=draft_at,
            time_limit_ms=view.time_left_ms,
            step_ms=cost.draft_step_ms * cost.draft_upper.ratio,
            verify_ms=verify,
        )


class EndHazard:
    """P(the suggestion ends at a token): one discounted hazard, shrunk to a low prior."""

    def __init__(self, prior: float = 0.02, weight: float = 50.0, memory: float = 0.998) -> None:
        self._ends = prior * weight
        self._tokens = weight
        self._memory = memory

    def observe(self, emitted: int, ended: bool) -> None:
        """``emitted`` tokens were appended; the last one ended the suggestion, or not."""
        keep = self._memory**emitted
        self._ends = self._ends * keep + float(ended)
        self._tokens = self._tokens * keep + emitted

    def survival(self, count: int) -> list[float]:
        """G_0 … G_{count−1}: P(not ended before token j + 1)."""
        stay = 1.0 - min(0.9, self._ends / max(self._tokens, 1.0))
        return list(accumulate(repeat(stay, count - 1), mul, initial=1.0))


def _best(
    survive: Sequence[float], worth: Sequence[float], costs: Sequence[float]
) -> tuple[int, float, float]:
    """(τ*, U(τ*), U(0)): the best draft length and the values with and without it."""
    totals = list(accumulate([s * w - c for s, w, c in zip(survive, worth, costs, strict=True)]))
    best = max(totals)
    return totals.index(best), best, totals[0]


def _thresholds(
    hazards: Sequence[float],
    worth: Sequence[float],
    costs: Sequence[float],
    verify: Sequence[float],
    theta: float,
    depth: int,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(keep_at, draft_at) on S for positions 1 … depth; infinite where a position is worth nothing.

    ``draft_at`` is an index of the Gittins kind: per unit of S, the run of positions j … m with the
    least cost ÷ gain, found by merging runs from the back. Position 1 is settled by the choice of τ.
    """
    keep = [math.inf] * depth
    draft = [math.inf] * depth
    runs: list[tuple[float, float, float]] = []  # what follows j: (gain, cost, Π h) of each run, nearest last
    for j in range(depth, 0, -1):
        reach = hazards[j - 1]
        gain, cost = reach * max(worth[j], 0.0), costs[j]
        while runs:
            next_gain, next_cost, next_reach = runs[-1]
            longer = gain + reach * next_gain
            if (cost + next_cost) * gain >= cost * longer:
                break
            gain, cost, reach = longer, cost + next_cost, reach * next_reach
            runs.pop()
        runs.append((gain, cost, reach))
        if gain > 0.0:
            draft[j - 1] = cost / gain
        if worth[j] > 0.0:
            keep[j - 1] = theta * (verify[j] - verify[j - 1]) / worth[j]
    if depth:
        draft[0] = 0.0
    return tuple(keep), tuple(draft)


def _cut(rule: StopRule, confidences: Sequence[float]) -> int | None:
    """The first position that ``rule`` would not have computed, had the block not been open."""
    rule.start()
    for position, confidence in enumerate(confidences, 1):
        if not rule.draft_on(position, 0.0):
            return position
        if not rule.keep(position, confidence):
            return position + 1
    return None


def _binding(depth: int, ceiling: int, view: CycleView, has_confidence: bool) -> Binding:
    """What kept the block from being longer."""
    if depth < ceiling:
        return Binding.CONFIDENCE if has_confidence else Binding.DRAFT_COST
    return Binding.LENGTH if ceiling >= view.remaining_tokens - 1 else Binding.MAX
