"""The scenario suite: named, versioned workloads on which every policy is replayed.

A scenario is a population of requests, an engine's costs, promises and an arrival pattern. Its requests
are agreement traces drawn from a small generative model, so the very same executor, controller and loop
run as on recorded ones. Each token has a difficulty: the context's (prompt length, phase), the request's
and its own; the draft's confidence sees it with noise, the agreement bit is drawn from it.

Development seeds are for tuning, evaluation seeds for publishing; ``VERSION`` changes with any change
to what is drawn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from specpilot.control import ControllerConfig
from specpilot.control.stop import logit, sigmoid
from specpilot.simulation.arrivals import Arrival
from specpilot.simulation.bayes import LogOdds, Population
from specpilot.simulation.belief import Spread
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.replay import ReplayRequest
from specpilot.trace.agreement import AgreementTrace

VERSION = 1
DEVELOPMENT_SEEDS = (101, 102, 103)
EVALUATION_SEEDS = (907, 911, 919)

CHEAP_DRAFT = EngineCosts.from_numbers(
    draft_ms=0.4, verify_ms=6.0, verify_token_ms=0.15, engine="draft ÷ target 0.07, flat verification"
)
"""The regime of the bundled pair on ONNX Runtime (engines table in the docs)."""
USUAL_DRAFT = EngineCosts.from_numbers(
    draft_ms=2.4, verify_ms=12.0, verify_token_ms=0.15, engine="draft ÷ target 0.2, flat verification"
)
"""The regime where τ matters."""
SLOW_DRAFT = EngineCosts.from_numbers(
    draft_ms=8.0, verify_ms=12.0, verify_token_ms=0.15, engine="draft ÷ target 0.67, flat verification"
)
COMPUTE_BOUND = EngineCosts.from_numbers(
    draft_ms=1.0, verify_ms=6.0, verify_token_ms=2.5, engine="draft ÷ target 0.17, each token 0.4 of a pass"
)

CHOICE_SHARES = (0.45, 0.27, 0.22, 0.19)
"""P(the second, third … choice is right | none before it was), about as on the bundled pair (its model card's
rank coverage)."""

Hazard = Callable[[int, int], float]
"""(run of agreements so far, prompt tokens) → the population's agreement at the next position."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One workload.

    ``hazard`` gives the agreement by phase: ``phases`` splits the requests into equal parts, each with a
    hazard of its own. ``spread`` and ``noise`` are standard deviations on the logit scale of a request's
    and a token's difficulty; ``blur`` that of the confidence around the token's true agreement.
    With ``choices`` the draft's further choices are drawn too, which token trees need: from a stream of their
    own, so that the rest stays as it is.
    ``burst`` > 1 multiplies the arrival rate in every fourth stretch of 20 requests (and divides it in
    between, so that the mean load stays). ``outage`` is the part of the requests, from and to a share of
    all, whose drafter raises.
    """

    name: str
    phases: tuple[Hazard, ...]
    costs: EngineCosts = USUAL_DRAFT
    config: ControllerConfig = field(default_factory=ControllerConfig)
    prompts: tuple[int, ...] = (20, 100, 300)
    max_tokens: int = 24
    spread: float = 0.5
    noise: float = 1.0
    blur: float = 0.7
    burst: float = 1.0
    outage: tuple[float, float] = (0.0, 0.0)
    choices: bool = False

    def requests(self, count: int, seed: int) -> list[ReplayRequest]:
        """Draw ``count`` requests, all arriving at once (see :meth:`arriving`)."""
        rng = random.Random(f"{VERSION}-{self.name}-{seed}")
        return [self.request(index, count, rng) for index in range(count)]

    def arriving(self, requests: list[ReplayRequest], rate: float, seed: int) -> list[ReplayRequest]:
        """The same requests with Poisson arrivals at ``rate`` per second, in bursts where there are any."""
        rng = random.Random(f"{VERSION}-{self.name}-{seed}-arrivals")
        now, result = 0.0, []
        for index, request in enumerate(requests):
            now += rng.expovariate(rate) * self.gap(index)
            result.append(replace(request, arrival_s=now))
        return result

    def gap(self, index: int) -> float:
        """The factor on the gap before a request: a quarter of them come ``burst`` times as fast."""
        return 1.0 / self.burst if index // 20 % 4 == 3 else (1.0 - 0.25 / self.burst) / 0.75

    def population(self, requests: list[ReplayRequest]) -> Population:
        """What the belief-state optimum knows of requests drawn by :meth:`requests`."""
        count = len(requests)
        return Population(
            {request.request_id: self.log_odds(index, count) for index, request in enumerate(requests)},
            Spread(self.spread, self.noise, self.blur),
        )

    def log_odds(self, index: int, count: int) -> LogOdds:
        """μ of a request, by the phase it falls in."""
        hazard = self.phases[index * len(self.phases) // count]
        # The spread flattens a mean on the logit scale; widening it back keeps the stated average.
        scale = math.sqrt(1.0 + 0.35 * (self.spread**2 + self.noise**2))
        return lambda run, prompt: logit(hazard(run, prompt)) * scale

    def request(
        self, index: int, count: int, rng: random.Random, arrival: Arrival | None = None
    ) -> ReplayRequest:
        """Draw one of ``count`` requests; prompt and output as long as in ``arrival`` where one is given."""
        log_odds = self.log_odds(index, count)
        prompt = rng.choice(self.prompts) if arrival is None else arrival.prompt_tokens
        length, ended = self.max_tokens, "max_tokens"
        if arrival is not None and arrival.output_tokens <= length:
            length, ended = arrival.output_tokens, "eos"
        request_shift = rng.gauss(0.0, self.spread)
        agree: list[int] = []
        confidence: list[float] = []
        run = 0
        for _ in range(length):
            truth = log_odds(run, prompt) + request_shift + rng.gauss(0.0, self.noise)
            bit = int(rng.random() < sigmoid(truth))
            agree.append(bit)
            confidence.append(sigmoid(truth + rng.gauss(0.0, self.blur)))
            run = run + 1 if bit else 0
        name = f"{self.name}-{index}"
        trace = AgreementTrace(name, prompt, tuple(agree), confidence=tuple(confidence), ended=ended)
        if self.choices:
            trace = _with_choices(trace, random.Random(f"{VERSION}-{name}-{confidence[0]}-choices"))
        fails = self.outage[0] * count <= index < self.outage[1] * count
        return ReplayRequest(name, trace, self.max_tokens, draft_fails=fails)


def _with_choices(trace: AgreementTrace, rng: random.Random) -> AgreementTrace:
    """The trace with the shares of the draft's further choices, and which was right where the first was
    not.
    """
    ranks: list[int] = []
    shares: list[tuple[float, ...]] = []
    for bit in trace.agree:
        truths = [logit(share) + rng.gauss(0.0, 0.8) for share in CHOICE_SHARES]
        shares.append(tuple(sigmoid(truth + rng.gauss(0.0, 0.5)) for truth in truths))
        rank = 0
        if not bit:
            hits = (place for place, truth in enumerate(truths, 1) if rng.random() < sigmoid(truth))
            rank = next(hits, len(CHOICE_SHARES) + 1)
        ranks.append(rank)
    return replace(trace, rank=tuple(ranks), shares=tuple(shares))


def flat(alpha: float) -> Hazard:
    """The same agreement everywhere."""
    return lambda run, prompt: alpha


def _by_prompt(run: int, prompt: int) -> float:
    return 0.75 if prompt <= 64 else 0.6 if prompt <= 256 else 0.45


def _collapse(run: int, prompt: int) -> float:
    """Long prompts: the first rejection falls at token 2 or 3."""
    return 0.75 if prompt <= 256 else 0.4


def _rising(run: int, prompt: int) -> float:
    return min(0.8, 0.5 + 0.08 * run)


def _falling(run: int, prompt: int) -> float:
    return max(0.35, 0.75 - 0.08 * run)


# B = 2 is the default of all others.
SCENARIOS: tuple[Scenario, ...] = (
    Scenario("steady", (_by_prompt,)),
    Scenario("steady-cheap-draft", (_by_prompt,), CHEAP_DRAFT),
    Scenario("long-prompt-collapse", (_collapse,), prompts=(40, 400, 600)),
    Scenario("good-bad-good", (flat(0.75), flat(0.25), flat(0.75))),
    Scenario("rising-hazard", (_rising,)),
    Scenario("falling-hazard", (_falling,)),
    Scenario("flat-0.7-editing", (flat(0.7),), spread=0.0, noise=0.3),
    Scenario("slow-draft", (_by_prompt,), SLOW_DRAFT),
    Scenario("compute-bound", (_by_prompt,), COMPUTE_BOUND, prompts=(8, 16)),
    Scenario("tight-slo", (_by_prompt,), config=ControllerConfig(slo_p95_ms=90.0)),
    Scenario("B=1", (_by_prompt,), config=ControllerConfig(pass_budget=1.0)),
    Scenario("B=1.5", (_by_prompt,), config=ControllerConfig(pass_budget=1.5)),
    Scenario("B=3", (_by_prompt,), config=ControllerConfig(pass_budget=3.0)),
    Scenario("burst", (_by_prompt,), burst=4.0),
    Scenario("outage", (_by_prompt,), outage=(0.4, 0.5)),
)


def scenario(name: str) -> Scenario:
    """The scenario of this name.

    Raises:
        ValueError: if there is none.
    """
    for candidate in SCENARIOS:
        if candidate.name == name:
            return candidate
    raise ValueError(f"scenario: {name!r} is not known; choose one of {', '.join(s.name for s in SCENARIOS)}")
