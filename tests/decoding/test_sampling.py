"""Sampling is lossless: χ² of whole cycles against the target's exact distribution on a small vocabulary.

Each test draws seeded prefixes of three tokens through the live executor, over several cycles with
adaptive block lengths, and compares their counts with the product of the exact conditionals. A run fails
at p < 1e-4: that is the chance of a false failure for a seed never tried; the seeds here are fixed, so a
test that passes goes on passing. The planted faults must be found by the very same function, at p < 1e-9.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from specpilot.control.stop import StopRule
from specpilot.control.types import BatchPlan, CycleOutcome
from specpilot.decoding.acceptance import Coupled, Deterministic, Rejection, make_rule
from specpilot.decoding.distribution import probabilities
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.rule import AcceptanceRule, DraftStep
from specpilot.decoding.types import Acceptance, Block, Draft, SamplingParams
from specpilot.drafters.base import Drafter, DraftItem
from specpilot.drafters.lookup import LookupDrafter
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import FloatArray
from specpilot.targets.model import ModelTarget
from specpilot.targets.scripted import ScriptedLM
from specpilot.testing import StaticController, decode

VOCAB = 4
LENGTH = 3
PROMPT = (1, 2)
RUNS = 3000
TARGET = ScriptedLM(VOCAB, seed=11, scale=1.2, name="target")
DRAFT = TARGET.variant(noise=0.8)
FALSE_FAILURE = 1e-4
FOUND = 1e-9

MakeRule = Callable[[SamplingParams, int], AcceptanceRule]


def rejection(params: SamplingParams, run: int) -> AcceptanceRule:
    return Rejection(params, np.random.default_rng([17, run]))


def coupled(params: SamplingParams, run: int) -> AcceptanceRule:
    return Coupled(params, seed=run)


def deterministic(params: SamplingParams, run: int) -> AcceptanceRule:
    return Deterministic(params, np.random.default_rng([23, run]))


def unseeded(params: SamplingParams, run: int) -> AcceptanceRule:
    """What a request without a seed gets: rejection until its first tree, then noise that is shared."""
    return make_rule(params, rng=np.random.default_rng([37, run]))


def gone_over(params: SamplingParams, run: int) -> AcceptanceRule:
    return unseeded(params, run).coupled()


class ChosenNoise(Rejection):
    """Planted: the noise that a request goes over to was looked at before, and liked."""

    def coupled(self) -> AcceptanceRule:
        found = [Coupled(self._params, int(self._rng.integers(2**60))) for _ in range(16)]
        flat = np.zeros(VOCAB, dtype=np.float32)
        places = range(len(PROMPT) + 1, len(PROMPT) + LENGTH)
        return min(found, key=lambda rule: sum(rule.draw(rule.look(flat, place)) for place in places))


class OverAfterRejection(StaticController):
    """Chains until a request's first rejection, trees from then on: what it was depends on what was drawn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rejected: set[str] = set()

    def plan(self, request_ids: Sequence[str], *, now: float) -> BatchPlan:
        batch = super().plan(request_ids, now=now)
        cycles = (
            plan
            if plan.request_id in self._rejected
            else replace(plan, tree=None, max_nodes=plan.max_draft, coupled=False)
            for plan in batch.cycles
        )
        return BatchPlan(tuple(cycles), batch.stops)

    def observe(self, outcomes: Sequence[CycleOutcome], *, now: float) -> None:
        for outcome in outcomes:
            if outcome.accepted < outcome.proposed:
                self._rejected.add(self._cycles[outcome.cycle_id])
        super().observe(outcomes, now=now)


class TreeDrafter:
    """The draft's two likeliest children of the root, and the likeliest child of each."""

    name = "tree"
    vocab_size = VOCAB

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None = None) -> int:
        return 0

    def close(self, request_id: str) -> None:
        pass

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        return [self._tree(list(item.context)) if item.max_draft >= 2 else Draft() for item in items]

    def _tree(self, context: list[int]) -> Draft:
        first, second = (int(token) for token in np.argsort(-DRAFT.next_logits(context))[:2])
        below = [int(DRAFT.next_logits([*context, child]).argmax()) for child in (first, second)]
        return Draft(Block((first, second, *below), (-1, -1, 0, 1)), confidences=(0.5, 0.5))


class Peeking(ModelDrafter):
    """Planted I4 violation: a token is proposed only if the sample came out as the draft's favourite."""

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        return [self._cut(draft) for draft in super().propose(items)]

    def _cut(self, draft: Draft) -> Draft:
        if draft.q is None:
            return draft
        kept = 0
        while kept < len(draft.block) and draft.block.token_ids[kept] == int(draft.q[kept].argmax()):
            kept += 1
        return Draft(Block.chain(draft.block.token_ids[:kept]), draft.confidences, draft.q[:kept])


class FavouredChild(Deterministic):
    """Planted in trees: a proposed child is followed if it is likely, not if it was drawn."""

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        p = probabilities(target_logits[0], self._params)
        for node, parent in enumerate(block.parents):
            if parent < 0 and p[block.token_ids[node]] > 0.4:
                after = probabilities(target_logits[node + 1], self._params)
                return Acceptance((node,), int(self._rng.choice(VOCAB, p=after)))
        return super().accept(block, q, target_logits, position)


class TopChildRejection(Rejection):
    """Planted: rejection against a child that was chosen, not drawn."""

    def draw(self, step: DraftStep) -> int:
        return step.top


def exact(params: SamplingParams) -> dict[tuple[int, ...], float]:
    """Probability of each output prefix of LENGTH tokens."""
    result = {}
    for prefix in itertools.product(range(VOCAB), repeat=LENGTH):
        mass = 1.0
        for size, token in enumerate(prefix):
            mass *= probabilities(TARGET.next_logits([*PROMPT, *prefix[:size]]), params)[token]
        result[prefix] = float(mass)
    return result


def confidence_stop(request_id: str, cycle: int) -> StopRule:
    """Keeps while the product of confidences is high: legal, and strongly dependent on q."""
    return StopRule(intercept=0.0, slope=1.0, keep_at=(0.35, 0.25, 0.2))


def p_value(
    rule: MakeRule,
    drafter: Drafter,
    params: SamplingParams,
    depth: int = 3,
    nodes: int | None = None,
    controller: type[StaticController] = StaticController,
) -> float:
    """χ² of RUNS sampled prefixes against :func:`exact`; rare prefixes (expected < 5) in one cell."""
    # One token more than is looked at: the prefix is never cut by the end.
    requests = [DecodingRequest(f"r{run}", PROMPT, LENGTH + 1, rule=rule(params, run)) for run in range(RUNS)]
    plans = controller(
        lambda name, cycle: (depth + int(name[1:]) + cycle) % (depth + 1), confidence_stop, nodes=nodes
    )
    decode(ModelTarget(TARGET), drafter, requests, plans, max_batch=16)
    counts = Counter(tuple(request.output[:LENGTH]) for request in requests)
    observed, expected = [0.0], [0.0]
    for prefix, mass in exact(params).items():
        if mass * RUNS < 5.0:
            observed[0] += counts[prefix]
            expected[0] += mass * RUNS
        else:
            observed.append(counts[prefix])
            expected.append(mass * RUNS)
    if expected[0] == 0.0:
        del observed[0], expected[0]
    return float(stats.chisquare(observed, expected).pvalue)


TEMPERATURES = [SamplingParams(temperature=1.0), SamplingParams(temperature=0.6)]
SHAPED = SamplingParams(temperature=1.3, top_k=3, top_p=0.9)
RULES: list[MakeRule] = [rejection, coupled, deterministic]


@pytest.mark.parametrize("params", TEMPERATURES, ids=["t1.0", "t0.6"])
@pytest.mark.parametrize("rule", RULES)
def test_chains_are_lossless(rule: MakeRule, params: SamplingParams) -> None:
    assert p_value(rule, ModelDrafter(DRAFT), params) >= FALSE_FAILURE


@pytest.mark.parametrize("params", TEMPERATURES, ids=["t1.0", "t0.6"])
@pytest.mark.parametrize("rule", [coupled, deterministic, gone_over])
def test_trees_are_lossless(rule: MakeRule, params: SamplingParams) -> None:
    assert p_value(rule, TreeDrafter(), params) >= FALSE_FAILURE


@pytest.mark.parametrize("params", TEMPERATURES, ids=["t1.0", "t0.6"])
@pytest.mark.parametrize("rule", [coupled, deterministic, unseeded])
def test_grown_trees_are_lossless(rule: MakeRule, params: SamplingParams) -> None:
    """Trees as the draft model grows them, up to five nodes: the draft's own choices, with looked-up text."""
    drafter = ModelDrafter(DRAFT, lookup=LookupDrafter(VOCAB, least_match=1))
    assert p_value(rule, drafter, params, nodes=5) >= FALSE_FAILURE


@pytest.mark.parametrize("params", TEMPERATURES, ids=["t1.0", "t0.6"])
def test_going_over_to_shared_noise_is_lossless(params: SamplingParams) -> None:
    """From rejection to trees in the middle of a request, when a rejection says so."""
    drafter = ModelDrafter(DRAFT)
    assert p_value(unseeded, drafter, params, nodes=5, controller=OverAfterRejection) >= FALSE_FAILURE


def test_going_over_to_noise_that_was_looked_at_is_caught() -> None:
    def planted(params: SamplingParams, run: int) -> AcceptanceRule:
        return ChosenNoise(params, np.random.default_rng([41, run]))

    p = p_value(planted, ModelDrafter(DRAFT), TEMPERATURES[0], nodes=5, controller=OverAfterRejection)
    assert p < FOUND


def test_a_tree_that_favours_its_children_is_caught() -> None:
    def planted(params: SamplingParams, run: int) -> AcceptanceRule:
        return FavouredChild(params, np.random.default_rng([31, run]))

    assert p_value(planted, ModelDrafter(DRAFT), TEMPERATURES[0], nodes=5) < FOUND


@pytest.mark.parametrize("rule", RULES)
def test_top_k_and_top_p_are_lossless(rule: MakeRule) -> None:
    assert p_value(rule, ModelDrafter(DRAFT), SHAPED) >= FALSE_FAILURE


def test_a_stop_that_sees_the_sample_is_caught() -> None:
    assert p_value(rejection, Peeking(DRAFT), TEMPERATURES[0]) < FOUND


def test_rejection_against_top_children_is_caught() -> None:
    def planted(params: SamplingParams, run: int) -> AcceptanceRule:
        return TopChildRejection(params, np.random.default_rng([29, run]))

    assert p_value(planted, ModelDrafter(DRAFT), TEMPERATURES[0]) < FOUND


def coupled_text(seed: int, depth: int, tree: bool = False, nodes: int | None = None) -> list[int]:
    params = SamplingParams(temperature=0.9, top_p=0.95, seed=seed)
    request = DecodingRequest("r", PROMPT, 24, params=params)
    drafter: Drafter = TreeDrafter() if tree else ModelDrafter(DRAFT)
    controller = StaticController(depth, confidence_stop, nodes=nodes)
    decode(ModelTarget(TARGET), drafter, [request], controller)
    return request.output


def test_coupled_text_depends_on_prompt_and_seed_alone() -> None:
    texts = {seed: coupled_text(seed, 0) for seed in (0, 1, 2**80 + 5, -3)}
    assert len({tuple(text) for text in texts.values()}) == len(texts)
    for seed, text in texts.items():
        for depth in (1, 2, 5, 8, 40):
            assert coupled_text(seed, depth) == text
        assert coupled_text(seed, 2, tree=True) == text
        assert coupled_text(seed, 4, nodes=9) == text


def test_coupled_text_is_the_same_in_another_process() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_sampling import coupled_text\n"
        "print(coupled_text(7, 5))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, __file__.rpartition("/")[0]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == str(coupled_text(7, 0))


def test_coupled_noise_is_pinned() -> None:
    """A change of the generator would silently change every seeded text: this pins its first words."""
    rule = Coupled(SamplingParams(temperature=1.0, seed=42))
    flat = np.zeros(16, dtype=np.float32)
    drawn = [rule.draw(rule.look(flat, position)) for position in range(12)]
    assert drawn == PINNED


PINNED = [8, 9, 8, 10, 5, 5, 6, 11, 4, 14, 15, 13]


def test_coupled_accepts_more_than_independent_draws_would() -> None:
    """Acceptance is at least (1 − TV)/(1 + TV); independent draws would agree with Σ p·q only."""
    params = SamplingParams(temperature=1.0)
    p = probabilities(TARGET.next_logits(PROMPT), params)
    q = probabilities(DRAFT.next_logits(PROMPT), params)
    distance = 0.5 * float(np.abs(p - q).sum())
    equal = 0
    for seed in range(RUNS):
        rule = Coupled(params, seed)
        token = rule.draw(rule.look(DRAFT.next_logits(PROMPT), 2))
        logits = np.stack([TARGET.next_logits(PROMPT), TARGET.next_logits([*PROMPT, token])])
        equal += len(rule.accept(Block.chain([token]), None, logits, 2).path)
    bound = (1.0 - distance) / (1.0 + distance)
    # Four standard errors: a false failure has odds below 1e-4.
    assert equal / RUNS >= bound - 4.0 * np.sqrt(bound * (1.0 - bound) / RUNS)
