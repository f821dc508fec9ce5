"""A whole engine on two small made-up models, into which each fault can be put for real.

Drafter, target, acceptance, serving loop and controller are the package's own; the models are tables of
logits over the last three cached tokens (so a wrong KV cache makes a wrong draft), and the time is a counter
that their passes move forward. A fault changes the engine, never the trace.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from specpilot.control import Controller, ControllerConfig, CycleOutcome, CyclePlan
from specpilot.control.planning import Choice, CycleView, Planner
from specpilot.control.stop import StopRule
from specpilot.control.types import Binding, Reason
from specpilot.decoding.acceptance import Greedy, Rejection
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.loop import ServeLoop
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.rule import AcceptanceRule, DraftStep
from specpilot.decoding.types import Acceptance, Block, SamplingParams, Verification
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import FloatArray, ForwardItem, KVCache
from specpilot.simulation.baselines import make_rule as make_baseline
from specpilot.targets.base import VerifyItem
from specpilot.targets.model import ModelTarget
from specpilot.trace import TracedController, TraceHeader, TraceRecord, header_for

VOCAB = 96
ROWS = 4096
EOS = 0
LEVELS, STEP = 20, 0.5
"""Of the draft's noise, where it grows with the context."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A healthy engine; a fault replaces some of it. Times in ms."""

    seed: int
    fault: str = "healthy"
    strength: float = 1.0
    requests: int = 220
    temperature: float = 0.0
    policy: str = "specpilot"
    draft_noise: float = 1.0
    """Standard deviation of the noise in the draft's logits."""
    sharpness: float = 6.0
    """Mean scale of the target's logits; it varies between contexts, so that some are easy."""
    spread: float = 0.25
    """How much the noise differs between requests (relative): difficulty that no confidence shows."""
    decay: float = 0.0
    """Noise added per doubling of the context beyond 64 tokens."""
    verify_ms: float = 18.0
    verify_token_ms: float = 0.3
    draft_ms: float = 1.6
    host_ms: float = 0.6
    noise: float = 0.06
    load: float = 0.5
    """Arrivals per engine time that plain decoding of one token a pass would need, scaled below."""
    max_tokens: int = 20
    pass_budget: float = 8.0
    slo_ms: float = 1500.0
    prompts: tuple[int, int] = (16, 400)
    ids: bool = True


class SimTime:
    """A clock in seconds that work moves forward."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def now(self) -> float:
        """For the serving loop."""
        return self.now_s

    def wait_until(self, time_s: float) -> None:
        """Idle until then."""
        self.now_s = max(self.now_s, time_s)

    def elapse(self, duration_ms: float) -> None:
        """Nothing: the passes have moved it."""

    def spend(self, ms: float) -> None:
        """Work."""
        self.now_s += ms / 1000.0


class Cache:
    """Rows are tokens; ``stale`` counts rollbacks that left rows behind, as a faulty engine would."""

    def __init__(self, break_rollback: Callable[[], bool] | None = None) -> None:
        self.tokens: list[int] = []
        self.rows: list[int] = []  # what the model attends to; equal to the tokens unless faulty
        self._break = break_rollback

    @property
    def token_ids(self) -> Sequence[int]:
        """What the cache claims to hold."""
        return self.tokens

    @property
    def nbytes(self) -> int:
        """One byte a row."""
        return len(self.rows)

    def truncate(self, length: int) -> None:
        """Roll back; a faulty engine keeps the row of the first rejected token."""
        dropped = len(self.tokens) - length
        del self.tokens[length:]
        if dropped <= 0:
            return
        keep = len(self.rows) - dropped
        if self._break is not None and self._break():
            keep += 1
        del self.rows[keep:]

    def keep_path(self, length: int, rows: Sequence[int]) -> None:
        """Only chains here."""
        self.truncate(length + len(rows))


class TableLM:
    """Logits from a table, by a hash of the last three rows; the prompt's first token sets how hard it is."""

    def __init__(
        self,
        name: str,
        tables: Sequence[FloatArray],
        time: SimTime,
        cost: Callable[[int, int], float],
        *,
        break_rollback: Callable[[], bool] | None = None,
        skip_feed: Callable[[int], bool] | None = None,
        decay: float = 0.0,
        permutation: np.ndarray | None = None,
    ) -> None:
        self.name = name
        self.vocab_size = VOCAB
        self.context_limit = 4096
        self.eos_token_ids = frozenset({EOS})
        self._tables = tables
        self._time = time
        self._cost = cost
        self._break = break_rollback
        self._skip = skip_feed
        self._decay = decay
        self._permutation = permutation

    def new_cache(self) -> KVCache:
        """An empty cache."""
        return Cache(self._break)

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        """One pass."""
        results = []
        width = held = 0
        for item in items:
            cache = item.cache
            assert isinstance(cache, Cache)
            held = max(held, len(cache.rows))
            width += len(item.token_ids)
            rows = []
            first = cache.rows[0] if cache.rows else item.token_ids[0]
            for index, token in enumerate(item.token_ids):
                # Two tokens are fed after a full accept: a faulty engine forgets the first one.
                skipped = (
                    self._skip is not None
                    and index == 0
                    and len(item.token_ids) == 2
                    and self._skip(len(cache.rows))
                )
                if not skipped:
                    cache.rows.append(token)
                if index >= item.logits_from:
                    rows.append(self._logits(cache.rows, first))
            cache.tokens.extend(item.token_ids)
            results.append(np.stack(rows))
        self._time.spend(self._cost(width, held))
        return results

    def _logits(self, rows: list[int], first: int) -> FloatArray:
        last = rows[-3:]
        code = 0
        for token in last:
            code = code * 131 + token + 1
        kind = first % 3
        if self._decay:
            doublings = max(0.0, math.log2(len(rows) / 64.0))
            kind += 3 * min(LEVELS - 1, round(doublings * self._decay / STEP))
        logits: FloatArray = self._tables[kind if len(self._tables) > 1 else 0][code * 2654435761 % ROWS]
        return logits if self._permutation is None else np.asarray(logits[self._permutation])


def tables(setup: Setup) -> tuple[list[FloatArray], list[FloatArray]]:
    """The target's logits, and the draft's: by difficulty and, if agreement decays, by context length."""
    rng = np.random.default_rng(7919 + setup.seed)
    scale = 1.0 + rng.gamma(1.5, setup.sharpness / 1.5, (ROWS, 1))
    target = rng.standard_normal((ROWS, VOCAB)) * scale
    other = rng.standard_normal((ROWS, VOCAB))
    drafts = []
    for level in range(LEVELS if setup.decay else 1):
        for kind in (-1.0, 0.0, 1.0):
            noise = setup.draft_noise * (1.0 + kind * setup.spread) + level * STEP
            # A weaker model is less sure of itself: the noisy logits are shrunk towards uniform.
            shrink = scale**2 / (scale**2 + noise**2)
            drafts.append(((target + noise * other) * shrink).astype(np.float32))
    return [target.astype(np.float32)], drafts


class _Executor(LiveExecutor):
    """Adds the host's time, and takes the evidence to the trace."""

    def __init__(self, setup: Setup, time: SimTime, target: ModelTarget, drafter: ModelDrafter) -> None:
        super().__init__(target, drafter, clock=time)
        self._setup = setup
        self._time = time
        self._chance = random.Random(setup.seed + 17)

    def tap(self, traced: TracedController) -> None:
        """Hand evidence to the trace."""
        self.report_evidence(traced.recorder.evidence)
        self._evidence_ids = self._setup.ids

    def run(self, plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
        """A cycle, and what the host needs after it."""
        outcomes = super().run(plans)
        spent = self._setup.host_ms * self._chance.uniform(0.7, 1.3)
        self._time.spend(spent)
        return [replace(outcome, host_ms=outcome.host_ms + spent) for outcome in outcomes]


class AcceptAnything(Greedy):
    """Fault: with some probability the target's answer is not looked at."""

    def __init__(self, strength: float, chance: random.Random) -> None:
        super().__init__()
        self._strength, self._chance = strength, chance

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        """The whole block, whatever the verdicts are."""
        if len(block) and self._chance.random() < self._strength:
            return Acceptance(tuple(range(len(block))), int(target_logits[len(block)].argmax()))
        return super().accept(block, q, target_logits, position)


class AcceptMatches(Greedy):
    """Fault: every position that matches is accepted, also after one that did not."""

    def __init__(self, strength: float, chance: random.Random) -> None:
        super().__init__()
        self._strength, self._chance = strength, chance

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        """All matching positions."""
        chosen = [int(row.argmax()) for row in target_logits]
        path = tuple(i for i, token in enumerate(block.token_ids) if chosen[i] == token)
        if path and self._chance.random() < self._strength:
            return Acceptance(path, chosen[path[-1] + 1])
        return super().accept(block, q, target_logits, position)


class OtherTemperature(Rejection):
    """Fault: the draft draws at another temperature than the one it reports its probabilities for."""

    def __init__(self, params: SamplingParams, factor: float, rng: np.random.Generator) -> None:
        super().__init__(params, rng)
        self._factor, self._draws = factor, rng

    def draw(self, step: DraftStep) -> int:
        """A token of q sharpened or flattened; factor 0 is greedy."""
        if self._factor == 0.0 or step.q is None:
            return step.top
        weights = step.q ** (1.0 / self._factor)
        return int(self._draws.choice(len(weights), p=weights / weights.sum()))


class ForgetfulRequest(DecodingRequest):
    """Fault: after a full accept the bonus token is dropped from the output."""

    lose: Callable[[], bool] = staticmethod(lambda: False)
    proposed = 0

    def emit(self, tokens: Sequence[int]) -> int:
        """Append all but the bonus token."""
        if len(tokens) > 1 and len(tokens) == self.proposed + 1 and self.lose():
            return super().emit(tokens[:-1])
        return super().emit(tokens)


class SkippingTarget(ModelTarget):
    """Fault: with some probability no pass is run and the block is taken as it is."""

    def __init__(
        self, model: TableLM, time: SimTime, skip: Callable[[], bool], requests: dict[str, Any]
    ) -> None:
        super().__init__(model, clock=time)
        self._skip = skip
        self._skipped: set[str] = set()
        self._requests = requests

    def verify(self, items: Sequence[VerifyItem]) -> list[Verification]:
        """Made-up logits that confirm the block."""
        (item,) = items
        request = self._requests.get(item.request_id)
        if isinstance(request, ForgetfulRequest):
            request.proposed = len(item.block)
        if not len(item.block) or not self._skip():
            return super().verify(items)
        logits = np.zeros((len(item.block) + 1, VOCAB), dtype=np.float32)
        for row, token in enumerate([*item.block.token_ids, item.block.token_ids[-1]]):
            logits[row, token] = 9.0
        self._skipped.add(item.request_id)
        return [Verification(logits, len(item.context), 0, 0.0)]

    def commit(self, request_id: str, path: Sequence[int]) -> None:
        """Nothing was fed."""
        if request_id in self._skipped:
            self._skipped.discard(request_id)
        else:
            super().commit(request_id, path)


class StuckFallback:
    """Fault: drafting stops for good at some point, although the draft is fine; probes go on, rarely."""

    name = "stuck"

    def __init__(self, after: int, every: int) -> None:
        self._after, self._every, self._count = after, every, 0

    def admitted(self, request_id: str, prompt_tokens: int, *, now: float) -> None:
        """Nothing to keep."""

    def choose(self, view: CycleView, *, now: float) -> Choice:
        """τ = 4, then τ = 0 and a probe now and then."""
        self._count += 1
        if self._count <= self._after:
            return Choice(min(4, view.max_draft), StopRule(), Reason(Binding.MAX), 4.0)
        if self._count % self._every == 0:
            return Choice(min(4, view.max_draft), StopRule(), Reason(Binding.PROBE), 4.0)
        return Choice(0, StopRule(), Reason(Binding.DRAFT_COST, {}, "fallback"), 1.0)

    def observe(self, view: CycleView, outcome: CycleOutcome, *, now: float) -> None:
        """Learns nothing: that is the fault."""

    def finished(self, request_id: str, *, now: float) -> None:
        """Nothing to forget."""

    def discarded(self, request_id: str) -> None:
        """Nothing to forget."""


def run(setup: Setup) -> tuple[TraceHeader, list[TraceRecord]]:
    """Serve the requests of a setup; its trace."""
    chance = random.Random(setup.seed)
    noise = random.Random(setup.seed + 1)
    time = SimTime()
    fault, strength = setup.fault, setup.strength
    variant = setup.seed % 2

    def hit() -> bool:
        return chance.random() < strength

    def jitter() -> float:
        return noise.lognormvariate(0.0, setup.noise)

    def verify_cost(width: int, held: int) -> float:
        narrow, wide = min(width, 32) - 1, max(0, width - 32)
        return (setup.verify_ms + setup.verify_token_ms * narrow + 0.1 * wide + held * 0.002) * jitter()

    def draft_cost(width: int, held: int) -> float:
        return (setup.draft_ms + max(0, width - 2) * 0.02 + held * 0.0002) * jitter()

    target_tables, draft_tables = tables(setup)
    permutation = None
    if fault == "tokenizer_mismatch":
        permutation = np.arange(VOCAB)
        moved = np.array(chance.sample(range(1, VOCAB), max(2, int(strength * (VOCAB - 1)))))
        permutation[moved] = np.roll(moved, 1)
    target_model = TableLM("target", target_tables, time, verify_cost)
    draft_model = TableLM(
        "draft",
        draft_tables,
        time,
        draft_cost,
        break_rollback=hit if fault == "kv_misalignment" else None,
        skip_feed=(lambda _: hit()) if fault == "missing_bonus_token" and variant else None,
        decay=setup.decay,
        permutation=permutation,
    )
    requests: dict[str, DecodingRequest] = {}
    skip = hit if fault == "unverified_emission" and variant else (lambda: False)
    target = SkippingTarget(target_model, time, skip, requests)
    executor = _Executor(setup, time, target, ModelDrafter(draft_model, clock=time))
    controller = Controller(
        ControllerConfig(pass_budget=setup.pass_budget, slo_p95_ms=setup.slo_ms), _planner(setup)
    )
    records: list[TraceRecord] = []
    traced = TracedController(controller, records.append)
    executor.tap(traced)
    loop = ServeLoop(traced, executor, time)
    at = 0.0
    infos = []
    rng = np.random.default_rng(setup.seed + 3)
    per_request_s = setup.max_tokens * 0.4 * (setup.verify_ms + 4 * setup.draft_ms + setup.host_ms) / 1000.0
    for number in range(setup.requests):
        low, high = setup.prompts
        length = round(low * (high / low) ** chance.random())
        prompt = [chance.randrange(1, VOCAB) for _ in range(length)]
        params = SamplingParams(temperature=setup.temperature)
        request = _request(setup, f"r{number}", prompt, params, chance, rng, hit)
        requests[request.request_id] = request
        executor.add(request)
        at += chance.expovariate(1.0) * per_request_s / setup.load
        infos.append(request.info(arrival_s=at))
    loop.run(infos)
    return header_for(controller, "benchmark", engine="made-up tables"), records


def _request(
    setup: Setup,
    name: str,
    prompt: list[int],
    params: SamplingParams,
    chance: random.Random,
    rng: np.random.Generator,
    hit: Callable[[], bool],
) -> DecodingRequest:
    rule: AcceptanceRule | None = None
    if params.temperature:
        rule = Rejection(params, rng)
    if setup.fault == "sampling_mismatch":
        rule = OtherTemperature(params, setup.strength, rng)
    elif setup.fault == "non_prefix_accept":
        rule = AcceptMatches(setup.strength, chance)
    elif setup.fault == "unverified_emission" and setup.seed % 2 == 0:
        rule = AcceptAnything(setup.strength, chance)
    if setup.fault == "missing_bonus_token" and setup.seed % 2 == 0:
        forgetful = ForgetfulRequest(name, prompt, setup.max_tokens, params=params, rule=rule)
        forgetful.lose = hit
        return forgetful
    eos = frozenset({EOS})
    return DecodingRequest(name, prompt, setup.max_tokens, params=params, rule=rule, eos_token_ids=eos)


def _planner(setup: Setup) -> Planner | None:
    if setup.policy == "specpilot":
        return None
    if setup.policy == "stuck":
        return StuckFallback(40, 24)
    return make_baseline(setup.policy)
