"""Published rules for the draft length, as planners under the same ledger, deadlines and breaker.

Written from the descriptions of the systems that ship them, not from their code. Each is as its system
runs it: one state for the whole server, no notion of a pass budget, of a deadline, of prompt length or
of load. They bid one token for a pool pass, always: passes from the pool are first come, first served.
What a rule proposes is cut to ``view.max_draft`` (what the deadline and the remaining length allow).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from specpilot.control.contexts import bucket_of
from specpilot.control.planning import Choice, CycleView
from specpilot.control.stop import StopRule, logit
from specpilot.control.types import Binding, CycleOutcome, Reason
from specpilot.simulation.thresholds import ConfidenceThreshold

MAX_STATIC = 16
STEEP = 1e6
"""Slope that turns the stop rule's logistic into a step at the threshold."""


class Rule:
    """What the rules share: no bookkeeping per request, τ = :meth:`length`, cut to what is allowed."""

    name = "rule"

    def length(self, view: CycleView) -> int:
        """The rule's τ for this cycle, before it is cut."""
        raise NotImplementedError

    def learn(self, view: CycleView, outcome: CycleOutcome) -> None:
        """Take in a cycle; called only for cycles that proposed something."""

    def stop_rule(self, depth: int) -> StopRule:
        """The stop within the block; none by default."""
        return StopRule()

    def admitted(self, request_id: str, prompt_tokens: int, *, now: float) -> None:
        """Nothing is kept for a request."""

    def choose(self, view: CycleView, *, now: float) -> Choice:
        """τ by the rule."""
        if not view.speculation_allowed:
            return Choice(0, StopRule(), Reason(Binding.BREAKER))
        wanted = self.length(view)
        depth = min(wanted, view.max_draft)
        binding = Binding.MAX if wanted <= view.max_draft else Binding.LENGTH
        return Choice(depth, self.stop_rule(depth), Reason(binding, {"tau": float(wanted)}, self.name))

    def observe(self, view: CycleView, outcome: CycleOutcome, *, now: float) -> None:
        """Learn from the cycle, unless it was plain or the drafter failed."""
        if outcome.proposed and not outcome.draft_fault:
            self.learn(view, outcome)

    def discarded(self, request_id: str) -> None:
        """Nothing is remembered of a choice."""

    def finished(self, request_id: str, *, now: float) -> None:
        """Nothing is kept for a request."""


class Static(Rule):
    """Always the same τ (vLLM's ``num_speculative_tokens``, at one batch size).

    Raises:
        ValueError: for a τ outside 0…16.
    """

    def __init__(self, tau: int) -> None:
        if not 0 <= tau <= MAX_STATIC:
            raise ValueError(f"tau: {tau} is not in 0…{MAX_STATIC}; choose a length in that range")
        self.tau = tau
        self.name = f"static-{tau}"

    def length(self, view: CycleView) -> int:
        """τ."""
        return self.tau


class ByLength(Rule):
    """A static τ for each prompt-length bucket: what a table in a configuration file could hold.

    Args:
        taus: τ by bucket; 0 for a bucket that is not in it.
    """

    name = "by-length"

    def __init__(self, taus: Mapping[int, int]) -> None:
        self._taus = {bucket: Static(tau).tau for bucket, tau in taus.items()}

    def length(self, view: CycleView) -> int:
        """The bucket's τ."""
        return self._taus.get(bucket_of(view.prompt_tokens), 0)


class Additive(Rule):
    """Additive increase and decrease (transformers' ``heuristic`` schedule).

    Start at 5; +2 when every draft token was accepted, else −1, never below 1.
    """

    name = "additive"

    def __init__(self) -> None:
        self.tau = 5

    def length(self, view: CycleView) -> int:
        """The current τ."""
        return self.tau

    def learn(self, view: CycleView, outcome: CycleOutcome) -> None:
        """+2 after a full accept, −1 otherwise."""
        if outcome.accepted == outcome.proposed:
            self.tau = min(MAX_STATIC, self.tau + 2)
        else:
            self.tau = max(1, self.tau - 1)


class Confidence(Rule):
    """Stop after the first token whose own probability is below a threshold (transformers, llama.cpp).

    The threshold starts at 0.4 and then follows transformers: the value with the least FPR + 3 · FNR
    over past tokens, once there are more than five of them and both classes among them.
    """

    name = "confidence"

    def __init__(self) -> None:
        self.threshold = ConfidenceThreshold(0.4)

    def length(self, view: CycleView) -> int:
        """No limit of its own: the confidence stop decides."""
        return MAX_STATIC

    def stop_rule(self, depth: int) -> StopRule:
        """A step function of max q: S_k stays 1 while all are above the threshold, then falls to 0.

        ``draft_at`` and not ``keep_at``: the token that fell below is still proposed (it costs nothing
        more), no further one is drafted.
        """
        intercept = -STEEP * logit(self.threshold.value)
        return StopRule(intercept=intercept, slope=STEEP, draft_at=(0.5,) * depth)

    def learn(self, view: CycleView, outcome: CycleOutcome) -> None:
        """Every verified token is a sample: accepted or the first rejected one."""
        judged = min(outcome.accepted + 1, outcome.proposed)
        for position, confidence in enumerate(outcome.confidences[:judged]):
            self.threshold.add(confidence, position < outcome.accepted)


class EmaTiers(Rule):
    """Tiers by an EMA of accepted tokens (SGLang's adaptive speculation, batch size 1).

    EMA with α = 0.2; after 10 warm-up cycles the tier is reviewed every 5: one tier down when
    ema ≤ lower − 0.5 + down hysteresis, one up when ema > current − 0.5 + up hysteresis.
    """

    name = "ema-tiers"
    TIERS = (1, 3, 5, 7)
    DOWN_HYSTERESIS, UP_HYSTERESIS = -0.25, 0.0

    def __init__(self) -> None:
        self.tier = 1
        self.ema = float(self.TIERS[self.tier])
        self.cycles = 0

    def length(self, view: CycleView) -> int:
        """The current tier's τ."""
        return self.TIERS[self.tier]

    def learn(self, view: CycleView, outcome: CycleOutcome) -> None:
        """Move the EMA; review the tier when it is due."""
        self.ema += 0.2 * (outcome.accepted - self.ema)
        self.cycles += 1
        if self.cycles < 10 or (self.cycles - 10) % 5:
            return
        if self.tier and self.ema <= self.TIERS[self.tier - 1] - 0.5 + self.DOWN_HYSTERESIS:
            self.tier -= 1
        elif self.tier + 1 < len(self.TIERS) and self.ema > self.TIERS[self.tier] - 0.5 + self.UP_HYSTERESIS:
            self.tier += 1


class ExpectedOverCost(Rule):
    """The N with the most expected tokens per millisecond (Ollama's MLX runner).

    argmax over N = 0 … frontier + 1 of (1 + Σ_{j≤N} Π_{i≤j} α_i) ÷ cost(N). α_i is an EWMA (0.1) of
    acceptance at position i given that it was reached; the frontier is the last position reached at
    least ten times. cost(N) is an EWMA (0.3) of the cycle's time, its innovation clamped to ±25 %;
    cycles that carry a prefill are left out, and an N not yet run is extrapolated from the nearest ones.
    While a shorter N wins, frontier-wards probes of N + 1 come every 4 cycles, backing off to 512.
    """

    name = "expected-over-cost"
    FIRST_PROBE, LAST_PROBE = 4, 512

    def __init__(self) -> None:
        self.alpha: list[float] = []
        self.reached: list[int] = []
        self.cost: dict[int, float] = {}
        self.interval = self.FIRST_PROBE
        self.since_probe = 0
        self.last_choice = -1

    @property
    def frontier(self) -> int:
        """The last position with at least ten observations."""
        for position, count in enumerate(self.reached):
            if count < 10:
                return position
        return len(self.reached)

    def length(self, view: CycleView) -> int:
        """The argmax, or one more when a probe is due."""
        best = self.best()
        if best != self.last_choice:
            # News: probe often again.
            self.last_choice, self.interval, self.since_probe = best, self.FIRST_PROBE, 0
        self.since_probe += 1
        if best > self.frontier or self.since_probe < self.interval:
            return best
        self.since_probe = 0
        self.interval = min(self.LAST_PROBE, 2 * self.interval)
        return min(MAX_STATIC, best + 1)

    def best(self) -> int:
        """Argmax of expected tokens over expected cost; one past the frontier while costs are unknown."""
        reach = min(MAX_STATIC, self.frontier + 1)
        if not self.cost:
            return reach
        best, best_rate = 0, 1.0 / self.cost_of(0)
        tokens = survival = 1.0
        for n in range(1, reach + 1):
            survival *= self.alpha[n - 1] if n <= len(self.alpha) else (self.alpha[-1] if self.alpha else 1.0)
            tokens += survival
            rate = tokens / self.cost_of(n)
            if rate > best_rate:
                best, best_rate = n, rate
        return best

    def cost_of(self, n: int) -> float:
        """Time of a cycle that drafts ``n``, in ms: measured, or along the line through the nearest two."""
        if n in self.cost:
            return self.cost[n]
        known = sorted(self.cost, key=lambda other: (abs(other - n), other))
        nearest = known[0]
        if len(known) == 1:
            return self.cost[nearest]
        slope = (self.cost[known[1]] - self.cost[nearest]) / (known[1] - nearest)
        return max(0.1 * self.cost[nearest], self.cost[nearest] + slope * (n - nearest))

    def observe(self, view: CycleView, outcome: CycleOutcome, *, now: float) -> None:
        """Costs are learned from plain cycles too."""
        if view.new_context_tokens <= 1 and not outcome.draft_fault:
            time_ms = outcome.draft_ms + outcome.draft_prefill_ms + outcome.verify_ms
            known = self.cost.get(outcome.proposed)
            if known is None:
                self.cost[outcome.proposed] = time_ms
            else:
                step = max(-0.25 * known, min(0.25 * known, time_ms - known))
                self.cost[outcome.proposed] = known + 0.3 * step
        super().observe(view, outcome, now=now)

    def learn(self, view: CycleView, outcome: CycleOutcome) -> None:
        """One sample of α for each position reached."""
        for position in range(min(outcome.accepted + 1, outcome.proposed)):
            hit = float(position < outcome.accepted)
            if position == len(self.alpha):
                self.alpha.append(hit)
                self.reached.append(1)
            else:
                self.alpha[position] += 0.1 * (hit - self.alpha[position])
                self.reached[position] += 1


class AsymmetricEma(Rule):
    """An EMA of accepted tokens that rises fast and falls slowly, with a skip (ExLlamaV3).

    A full accept counts as accepted + 1 (more might have been had). The step of the EMA is multiplied
    by 1.30 upwards and 0.65 downwards; τ is the EMA rounded up. Below 0.3 speculation is skipped, but
    for a probe of one token every 16 cycles. The base step of 0.2 and the start of 3 are ours.
    """

    name = "asymmetric-ema"
    STEP, UP, DOWN, SKIP_BELOW, PROBE_EVERY = 0.2, 1.30, 0.65, 0.3, 16

    def __init__(self) -> None:
        self.ema = 3.0
        self.skipped = 0

    def length(self, view: CycleView) -> int:
        """⌈EMA⌉, or 0 while skipping."""
        if self.ema < self.SKIP_BELOW:
            self.skipped += 1
            if self.skipped < self.PROBE_EVERY:
                return 0
            self.skipped = 0
            return 1
        return min(MAX_STATIC, max(1, math.ceil(self.ema)))

    def learn(self, view: CycleView, outcome: CycleOutcome) -> None:
        """Move the EMA towards what was accepted."""
        sample = outcome.accepted + (outcome.accepted == outcome.proposed)
        error = sample - self.ema
        self.ema += self.STEP * (self.UP if error > 0 else self.DOWN) * error


RULES: dict[str, Callable[[], Rule]] = {
    "additive": Additive,
    "confidence": Confidence,
    "ema-tiers": EmaTiers,
    "expected-over-cost": ExpectedOverCost,
    "asymmetric-ema": AsymmetricEma,
}
STATIC_NAMES = tuple(f"static-{tau}" for tau in range(MAX_STATIC + 1))


def make_rule(name: str) -> Rule:
    """A fresh planner for a baseline's name.

    Raises:
        ValueError: for a name that is not a baseline's.
    """
    if name in STATIC_NAMES:
        return Static(STATIC_NAMES.index(name))
    if name in RULES:
        return RULES[name]()
    raise ValueError(
        f"policy: {name!r} is not one of static-0…static-{MAX_STATIC}, {', '.join(RULES)}; choose one"
    )
