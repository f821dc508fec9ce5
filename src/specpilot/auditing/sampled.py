"""Is what a pair samples distributed as the target alone would have it? Draw, score by fresh passes, bet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specpilot.auditing.checks import Check
from specpilot.auditing.distribution import Evidence, information
from specpilot.auditing.laws import Context, context
from specpilot.auditing.reference import ModelReference
from specpilot.decoding.types import SamplingParams
from specpilot.models.base import FloatArray

if TYPE_CHECKING:
    from specpilot.auditing.local import LocalSubject

SAMPLINGS = (SamplingParams(1.0), SamplingParams(0.7, top_k=20), SamplingParams(0.9, top_p=0.9))
SAMPLED_TOKENS = 6
DRAFTS = (2, 5, None)
"""Draft lengths, in turn: with bonus tokens, without, and the policy's own."""
COUPLED_DRAFTS = (2, 5)
"""Levels of the trees, or draft lengths, that coupled samples are drawn with."""
ROUND = 20
"""Samples per prompt and setting between two looks."""
SUSPICION = -1.0
"""Nats of evidence after the first samples that call for more; a right engine's bets lose."""
MOST = 4
"""Times the first samples, at most."""
POWER_EVERY = 8
"""Power is computed from the prefixes of every so many-th sample."""


class Scorer:
    """p and the faults' laws along an output, by one fresh pass of each model."""

    def __init__(self, target: ModelReference, draft: ModelReference) -> None:
        self._models = (target, draft)
        self._rows: dict[tuple[int, ...], tuple[FloatArray, FloatArray]] = {}

    def contexts(
        self, prompt: Sequence[int], output: Sequence[int], params: SamplingParams
    ) -> list[Context | None]:
        """One per token of ``output``; ``None`` where the cut of top-k or top-p is too near to a token."""
        tokens = (*prompt, *output[:-1])
        if tokens not in self._rows:
            if len(self._rows) >= 512:  # a row is as long as the vocabulary
                self._rows.pop(next(iter(self._rows)))
            target, draft = (model.rows(tokens, len(prompt)) for model in self._models)
            self._rows[tokens] = target, draft
        before = tokens[len(prompt) - 1 :]
        return [context(p, q, params, last) for p, q, last in zip(*self._rows[tokens], before, strict=True)]


def choose(scorer: Scorer, prompts: Sequence[Sequence[int]], count: int) -> list[int]:
    """The prompts, as indices, after which the faults would show most; of the shorter half, which is cheaper.

    By p and q alone: no sample is looked at, so the choice does not bias the test.
    """
    shorter = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    shorter = shorter[: max(count, len(prompts) // 2)]

    def visible(index: int) -> float:
        found = [scorer.contexts(prompts[index], [0], params)[0] for params in SAMPLINGS]
        return sum(information(context) for context in found if context is not None)

    return sorted(shorter, key=visible, reverse=True)[:count]


def check_distribution(
    subject: LocalSubject, prompts: Sequence[str], count: int, samples: int, *, coupled: bool = False
) -> Check:
    """Sampled tokens against p, at three settings of temperature, top-k and top-p.

    Args:
        subject: the engine.
        prompts: to choose from.
        count: of prompts that are sampled.
        samples: per prompt and setting; up to :data:`MOST` times as many where these leave a suspicion.
        coupled: as unseeded requests are sampled where the policy plans trees, not by rejection.
    """
    name = "coupled_distribution" if coupled else "distribution"
    drafts: tuple[int | None, ...] = COUPLED_DRAFTS if coupled else DRAFTS
    scorer = Scorer(ModelReference(subject.target), ModelReference(subject.draft))
    texts = {prompt: subject.fit(prompt, SAMPLED_TOKENS) for prompt in prompts}
    chosen = choose(scorer, list(texts.values()), count)
    cases = [(list(texts.items())[index], params) for index in chosen for params in SAMPLINGS]
    evidence = Evidence()
    drawn = 0
    while not evidence.wrong and (drawn < samples or (drawn < MOST * samples and evidence.nats >= SUSPICION)):
        number = min(ROUND, samples - drawn) if drawn < samples else ROUND
        for case, ((text, tokens), params) in enumerate(cases):
            for sample in range(drawn, drawn + number):
                answer = subject.complete(
                    text,
                    SAMPLED_TOKENS,
                    temperature=params.temperature,
                    top_k=params.top_k,
                    top_p=params.top_p,
                    max_draft=drafts[sample % len(drafts)],
                    coupled=coupled,
                )
                output = answer.token_ids or ()
                found = scorer.contexts(tokens, output, params) if output else []
                for place, (token, there) in enumerate(zip(output, found, strict=True)):
                    if there is None:
                        continue
                    evidence.observe((case, output[:place]), token, there)
                    if sample % POWER_EVERY == 0:
                        evidence.weigh(there, POWER_EVERY)
        drawn += number
    if not evidence.tokens:
        return Check(name, "skipped", {"why": "no token was sampled"})
    detail = {"prompts": len(chosen), "samples": drawn * len(cases), **evidence.to_json()}
    return Check(name, "fail" if evidence.wrong else "pass", detail)
