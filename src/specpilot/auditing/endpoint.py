"""An OpenAI-compatible endpoint, by its text alone: with speculation against without, or against a reference.

A server that knows specpilot's ``speculation`` field is asked to leave speculation off for its own reference;
any other one needs a reference: the same target served elsewhere without speculation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import openai

from specpilot.auditing.beginnings import beginning, homogeneity_table
from specpilot.auditing.checks import Answer, Check, Subject
from specpilot.auditing.distribution import FALSE_ALARM

SAMPLED_TOKENS = 3
LEAST_EXPECTED = 5.0
"""Beginnings that are expected less often share one bin."""
TIMEOUT_S = 60.0
_CUT = "\ufffd"
"""What stands for a character whose bytes are not all there."""


class EndpointSubject:
    """``/v1/completions`` of a server, through OpenAI's own client.

    Args:
        url: where the server listens, without ``/v1``.
        model: its name; default: the first that the server lists.
        token: bearer token.
        extension: whether it knows specpilot's fields (``speculation``, ``slo_ms``, …).

    Raises:
        ValueError: if the server does not answer, or has no model.
    """

    def __init__(
        self, url: str, model: str | None = None, *, token: str | None = None, extension: bool = True
    ) -> None:
        self.name = url
        self._client = openai.OpenAI(
            base_url=f"{url.rstrip('/')}/v1", api_key=token or "none", timeout=TIMEOUT_S, max_retries=8
        )
        self._extension = extension
        self._model = model or self._first_model()

    def _first_model(self) -> str:
        try:
            listed = list(self._client.with_options(max_retries=0).models.list())
        except openai.OpenAIError as error:
            raise ValueError(f"url: {self.name} does not answer ({error}); is the server up?") from None
        if not listed:
            raise ValueError(f"url: {self.name} lists no model; name one with --model")
        return listed[0].id

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
    ) -> Answer:
        """One completion; ``max_draft`` only reaches servers that know the extension.

        Raises:
            ValueError: if the server refuses it, or ``top_k`` is asked of one that may not know it.
        """
        if top_k and not self._extension:
            raise ValueError(f"top_k: {top_k} is no field of OpenAI's; use 0 without the extension")
        extra: dict[str, Any] = {}
        if self._extension:
            extra["slo_ms"] = TIMEOUT_S * 1000.0
            extra["top_k"] = top_k
            # An output served from the cache says nothing of the engine that is audited.
            extra["continuation"] = False
            # A last word that is not all there was verified too.
            extra["whole_words"] = False
            if max_draft is not None:
                on = {"mode": "auto", "max_draft": max_draft}
                extra["speculation"] = on if max_draft else {"mode": "off"}
        try:
            answer = self._client.completions.create(
                model=self._model,
                prompt=prompt,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                stop=stop,
                extra_body=extra,
            )
        except openai.OpenAIError as error:
            raise ValueError(f"url: {self.name} refuses a completion ({error})") from None
        choice = answer.choices[0]
        # A longer answer has the character itself there, and would seem to differ.
        text = choice.text if choice.finish_reason == "stop" else choice.text.rstrip(_CUT)
        return Answer(text, None, choice.finish_reason)


def audit_endpoint(
    subject: Subject,
    reference: Subject,
    prompts: Sequence[str],
    *,
    max_tokens: int = 24,
    samples: int = 200,
    advance: Callable[[str], None] = lambda name: None,
) -> list[Check]:
    """Compare an endpoint with a reference.

    Args:
        subject: with speculation.
        reference: the same target without; asked with ``max_draft=0``.
        prompts: at least one.
        max_tokens: of each greedy output.
        samples: of each side, for the distribution.
        advance: called with each check's name before it.
    """
    makers: dict[str, Callable[[], Check]] = {
        "greedy_equality": lambda: _greedy(subject, reference, prompts, max_tokens),
        "stop": lambda: _stop(subject, reference, prompts, max_tokens),
        "seeds": lambda: _seeds(subject, prompts[:4]),
        "distribution": lambda: _distribution(subject, reference, prompts[0], samples),
    }
    checks = []
    for name, make in makers.items():
        advance(name)
        checks.append(make())
    return checks


def _common(one: str, other: str) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _greedy(subject: Subject, reference: Subject, prompts: Sequence[str], max_tokens: int) -> Check:
    """Texts may be cut at different lengths (a budget, a deadline): one has to begin with the other."""
    wrong = []
    compared = 0
    for prompt in prompts:
        plain = reference.complete(prompt, max_tokens, max_draft=0).text
        text = subject.complete(prompt, max_tokens).text
        same = _common(plain, text)
        compared += same
        if same < min(len(plain), len(text)):
            wrong.append(
                {
                    "prompt": prompt[-60:],
                    "character": same,
                    "with": text[same:][:30],
                    "without": plain[same:][:30],
                }
            )
    detail: dict[str, Any] = {
        "outputs": len(prompts),
        "characters": compared,
        "mismatches": len(wrong),
        "first": wrong[:3],
    }
    detail["note"] = "an endpoint shows no logits: near-ties cannot be told apart from faults"
    if not compared and not wrong:
        return Check("greedy_equality", "skipped", detail | {"why": "no text came back"})
    return Check("greedy_equality", "fail" if wrong else "pass", detail)


def _stop(subject: Subject, reference: Subject, prompts: Sequence[str], max_tokens: int) -> Check:
    wrong: list[dict[str, str]] = []
    tried = 0
    for prompt in prompts[:8]:
        plain = reference.complete(prompt, max_tokens, max_draft=0).text
        stop = plain[len(plain) // 2 :][:3]
        if len(stop) < 3 or not stop.strip():
            continue
        tried += 1
        text = subject.complete(prompt, max_tokens, stop=stop).text
        if stop in text or not plain.startswith(text):
            wrong.append({"prompt": prompt[-60:], "stop": stop, "text": text[-40:]})
    if not tried:
        return Check("stop", "skipped", {"why": "no output is long enough to be stopped"})
    return Check(
        "stop", "fail" if wrong else "pass", {"stop_strings": tried, "wrong": len(wrong), "first": wrong[:3]}
    )


def _seeds(subject: Subject, prompts: Sequence[str]) -> Check:
    different = []
    texts = set()
    for prompt in prompts:
        for seed in (1, 2):
            outputs = [subject.complete(prompt, 8, temperature=1.0, seed=seed).text for _ in range(3)]
            texts |= set(outputs)
            # A cut by a deadline is no difference.
            if any(_common(outputs[0], other) < min(len(outputs[0]), len(other)) for other in outputs[1:]):
                different.append({"prompt": prompt[-60:], "seed": seed})
    detail = {"seeded": 2 * len(prompts), "different": len(different), "distinct_outputs": len(texts)}
    return Check("seeds", "fail" if different else "pass", detail)


def _distribution(subject: Subject, reference: Subject, prompt: str, samples: int) -> Check:
    """Two samples of short texts, one from each side: a χ² test of homogeneity on their beginnings."""
    from scipy import stats

    def draw(side: Subject, draft: int | None) -> list[str]:
        answers = (
            side.complete(prompt, SAMPLED_TOKENS, temperature=1.0, max_draft=draft) for _ in range(samples)
        )
        return [beginning(answer.text, ended=answer.stop_cause == "stop") for answer in answers]

    table = homogeneity_table(draw(subject, 2), draw(reference, 0), 2 * LEAST_EXPECTED)
    if len(table) < 2:
        return Check("distribution", "skipped", {"why": f"{samples} samples give no two frequent beginnings"})
    value = float(stats.chi2_contingency(list(zip(*table, strict=True))).pvalue)
    detail = {"samples": samples, "bins": len(table), "p_value": value, "false_alarm_odds": FALSE_ALARM}
    return Check("distribution", "pass" if value >= FALSE_ALARM else "fail", detail)
