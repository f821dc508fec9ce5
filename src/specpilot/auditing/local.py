"""A pair at hand: every output is compared with the target alone, decoded without any of the cycle's code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from specpilot.auditing.checks import Answer, Check, Subject
from specpilot.auditing.reference import ModelReference
from specpilot.auditing.sampled import check_distribution
from specpilot.control import Controller, ControllerConfig
from specpilot.control.config import NO_SLO_MS, Mode
from specpilot.decoding.acceptance import make_rule
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.loop import ServeLoop
from specpilot.decoding.request import DecodingRequest, fit_prompt
from specpilot.decoding.static import StaticController
from specpilot.decoding.text import Detokenizer
from specpilot.decoding.types import SamplingParams
from specpilot.models.base import CausalLM, common_prefix
from specpilot.models.tokenizer import Tokenizer, check_same_vocabulary
from specpilot.trace.agreement import NEAR_TIE_MARGIN

GREEDY_DRAFTS: tuple[int | None, ...] = (None, 1, 4, 12)
"""Draft lengths of the greedy check: the policy's own, and fixed ones."""
SAMPLED_PROMPTS, SEEDED_PROMPTS = 2, 4
"""So many of the prompts are sampled, to compare distributions and to compare runs of one seed."""


class LocalSubject:
    """An engine's executor under the policy, without promises that could cut an output.

    Where a ``max_draft`` is asked for, so many tokens are drafted in every cycle, whether it pays or not: the
    policy would leave much of the engine's code unused.

    Args:
        executor: the engine.
        target: the model alone, for the reference, its context limit and its EOS tokens.
        draft: the draft model alone: what faults of sampling would emit depends on it.
        tokenizer: text to tokens and back.
        encode: a prompt's text to the tokens that the models are fed, special ones included.
        rng: of sampling without a seed; the same state gives the same audit.
        make_request: how requests are made (for engines under test).
        clock: seconds; the loop's.
        name: what it is called in messages.
        nodes: of the token trees that coupled samples are drawn with; 0: chains (models without trees).
    """

    def __init__(
        self,
        executor: LiveExecutor,
        target: CausalLM,
        draft: CausalLM,
        tokenizer: Detokenizer,
        encode: Callable[[str], Sequence[int]],
        *,
        rng: np.random.Generator,
        make_request: Callable[..., DecodingRequest] = DecodingRequest,
        clock: Any = None,
        name: str = "pair",
        nodes: int = 0,
    ) -> None:
        from specpilot.decoding.clock import RealClock

        self.name = name
        self.target = target
        self.draft = draft
        self.encode = encode
        self._executor = executor
        self._controllers: dict[int | None, Controller] = {}
        self._nodes = nodes
        self._tokenizer = tokenizer
        self._rng = rng
        self._make = make_request
        self._clock = clock or RealClock()
        self._numbers = count(1)

    def fit(self, prompt: str, max_tokens: int) -> Sequence[int]:
        """The prompt's tokens as the engine is given them."""
        return fit_prompt(
            self.encode(prompt),
            max_tokens,
            context_limit=self.target.context_limit,
            start_token=min(self.target.eos_token_ids, default=None),
        )

    def complete(
        self,
        prompt: str,
        max_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | None = None,
        max_draft: int | None = None,
        coupled: bool = False,
    ) -> Answer:
        """One completion, alone in the engine.

        ``coupled``: sampled as the policy's trees are (without a seed: by a fresh one), and drafted as
        trees of ``max_draft`` levels, which must be given.
        """
        params = SamplingParams(temperature, top_k, top_p, seed)
        rule = make_rule(params, rng=self._rng)
        tokens = self.fit(prompt, max_tokens)
        request = self._make(
            f"audit-{next(self._numbers)}",
            tokens,
            max_tokens,
            params=params,
            eos_token_ids=self.target.eos_token_ids,
            stop=() if stop is None else (stop,),
            detokenizer=self._tokenizer,
            rule=rule.coupled() if coupled else rule,
        )
        self._executor.add(request)
        loop = ServeLoop(self._controller(max_draft, coupled), self._executor, self._clock)
        loop.submit(request.info())
        while loop.step():
            pass
        cause = None if request.ended is None else request.ended.value
        return Answer(request.text, tuple(request.output), cause)

    def _controller(self, max_draft: int | None, coupled: bool) -> Controller | StaticController:
        if coupled and max_draft is not None:
            return StaticController(max_draft, nodes=self._nodes or None)
        controller = self._controllers.get(max_draft)
        if controller is None:
            fixed: dict[str, Any] = {} if max_draft is None else {"mode": Mode.OFF, "static_draft": max_draft}
            config = ControllerConfig(pass_budget=math.inf, slo_p95_ms=NO_SLO_MS, **fixed)
            controller = self._controllers[max_draft] = Controller(config)
        return controller


def audit_tokenizers(target: str | Path, draft: str | Path) -> Check:
    """Ids, special tokens and merges of the two tokenizers, before any model is loaded."""
    ours, theirs = Tokenizer(target), Tokenizer(draft)
    detail: dict[str, Any] = {"tokens": ours.vocab_size}
    try:
        check_same_vocabulary(ours, theirs)
    except ValueError as error:
        return Check("vocabulary", "fail", detail | {"difference": str(error)})
    if ours.special_ids != theirs.special_ids:
        odd = sorted(ours.special_ids ^ theirs.special_ids)
        return Check("vocabulary", "fail", detail | {"special tokens of one only": odd})
    merges = [_model_part(folder, "merges") for folder in (target, draft)]
    if merges[0] != merges[1]:
        return Check(
            "vocabulary", "fail", detail | {"difference": "the merges differ: text is cut differently"}
        )
    return Check("vocabulary", "pass", detail | {"special": len(ours.special_ids), "merges": len(merges[0])})


def _model_part(folder: str | Path, name: str) -> list[Any]:
    path = Path(folder)
    path = path if path.name == "tokenizer.json" else path / "tokenizer.json"
    part = json.loads(path.read_text(encoding="utf-8")).get("model", {}).get(name, [])
    return [" ".join(item) if isinstance(item, list) else item for item in part]


def audit_pair(
    subject: LocalSubject,
    prompts: Sequence[str],
    *,
    max_tokens: int = 24,
    samples: int = 400,
    advance: Callable[[str], None] = lambda name: None,
) -> list[Check]:
    """All checks of a pair; greedy equality first.

    Args:
        subject: the engine.
        prompts: at least one.
        max_tokens: of each greedy output.
        samples: per prompt and sampling setting, at first; more where these leave a suspicion.
        advance: called with each check's name before it.

    Raises:
        ValueError: for no prompts, or one that with ``max_tokens`` does not fit the context.
    """
    if not prompts:
        raise ValueError("prompts: there are none; give at least one")
    reference = ModelReference(subject.target)
    fitted = {prompt: subject.fit(prompt, max_tokens) for prompt in prompts}
    plain = {prompt: reference.greedy(tokens, max_tokens) for prompt, tokens in fitted.items()}
    makers: dict[str, Callable[[], Check]] = {
        "greedy_equality": lambda: _greedy(subject, plain, max_tokens),
        "stop_and_eos": lambda: _ends(subject, plain, max_tokens),
        "seeds": lambda: _seeds(subject, prompts[:SEEDED_PROMPTS]),
        "distribution": lambda: check_distribution(subject, prompts, SAMPLED_PROMPTS, samples),
        "coupled_distribution": lambda: check_distribution(
            subject, prompts, SAMPLED_PROMPTS, samples, coupled=True
        ),
    }
    checks = []
    for name, make in makers.items():
        advance(name)
        checks.append(make())
    return checks


Plain = dict[str, tuple[list[int], list[float]]]


def _greedy(subject: Subject, plain: Plain, max_tokens: int) -> Check:
    """Every output is the target's own greedy output."""
    ties, wrong = 0, []
    for prompt, (tokens, margins) in plain.items():
        for draft in GREEDY_DRAFTS:
            output = subject.complete(prompt, max_tokens, max_draft=draft).token_ids or ()
            same = common_prefix(output, tuple(tokens))
            if same == len(tokens) == len(output):
                continue
            if same < len(margins) and margins[same] < NEAR_TIE_MARGIN:
                ties += 1
            else:
                wrong.append({"prompt": prompt[-60:], "max_draft": draft, "position": same})
    detail = {
        "outputs": len(plain) * len(GREEDY_DRAFTS),
        "mismatches": len(wrong),
        "near_ties": ties,
        "near_tie_margin": NEAR_TIE_MARGIN,
        "first": wrong[:3],
    }
    return Check("greedy_equality", "fail" if wrong else "near_tie" if ties else "pass", detail)


def _ends(subject: LocalSubject, plain: Plain, max_tokens: int) -> Check:
    """Stop strings cut the text where they begin, EOS ends it, nothing is longer than asked for."""
    wrong: list[dict[str, Any]] = []
    stops = eos = 0
    for prompt, (tokens, margins) in plain.items():
        if min(margins) < NEAR_TIE_MARGIN:
            continue
        whole = subject.complete(prompt, max_tokens, max_draft=0)
        if tokens[-1] in subject.target.eos_token_ids:
            eos += 1
            if whole.stop_cause != "eos":
                wrong.append({"prompt": prompt[-60:], "eos": whole.stop_cause})
        stop = whole.text[len(whole.text) // 2 :][:3]
        if len(stop) < 3 or not stop.strip():
            continue
        stops += 1
        for draft in (None, 8):
            cut = subject.complete(prompt, max_tokens, stop=stop, max_draft=draft)
            if cut.text != whole.text[: whole.text.index(stop)] or cut.stop_cause != "stop":
                wrong.append({"prompt": prompt[-60:], "stop": stop, "text": cut.text[-40:]})
        for length in (1, 2, 5):
            if length > max_tokens:
                break
            short = subject.complete(prompt, length, max_draft=8)
            if short.token_ids != tuple(tokens[:length]):
                wrong.append({"prompt": prompt[-60:], "max_tokens": length})
    if not stops and not eos:
        return Check("stop_and_eos", "skipped", {"why": "no output has a text that could be stopped at"})
    detail = {"stop_strings": stops, "eos_reached": eos, "wrong": len(wrong), "first": wrong[:3]}
    return Check("stop_and_eos", "fail" if wrong else "pass", detail)


def _seeds(subject: Subject, prompts: Sequence[str]) -> Check:
    """The same seed gives the same text whatever was drafted; other seeds do not."""
    different, texts = [], set()
    for prompt in prompts:
        for seed in (1, 2, 3):
            outputs = {
                subject.complete(prompt, 12, temperature=1.0, seed=seed, max_draft=draft).token_ids
                for draft in (0, 2, 8, None)
            }
            texts |= outputs
            if len(outputs) > 1:
                different.append({"prompt": prompt[-60:], "seed": seed})
    detail = {"seeded": 3 * len(prompts), "different": len(different), "distinct_outputs": len(texts)}
    return Check("seeds", "fail" if different or len(texts) < 2 else "pass", detail)
