"""The bundled workload: what people ask of a writing assistant, and when.

Prompts are cut from texts written for this project (``documents.json``), in five classes: sentence
completions, mid-document continuations, long prompts cold, documents typed further step by step in a
session (whose KV can be reused), and rewrites that copy much of their input. Arrivals are Poisson, open
loop: they do not wait for answers, so that queueing is seen. Everything follows from a seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

REWRITE = "Fix the errors in this text.\n\nText: {text}\n\nCorrected text: "
"""The instruction that the pair was trained on for rewrites."""

MIX = {"completion": 0.42, "continuation": 0.24, "session": 0.18, "rewrite": 0.12, "long": 0.04}
"""Share of the requests by class."""
OPEN_SESSIONS = 3
"""Documents being typed at the same time."""

WORDS = {
    "completion": (8, 11, 14, 18, 22, 27, 32, 38),
    "continuation": (55, 70, 85, 100, 115, 130, 145),
    "long": (170, 190, 210, 235, 260, 285),
}
"""Lengths of prompts by class, taken in turn."""
_SESSION_WORDS = (180, 235, 290, 345, 400, 455, 500)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One unique prompt: ``key`` names it, ``label`` is its class.

    ``document`` and ``step`` are set for session prompts: step k + 1 extends step k of the same document.
    """

    key: str
    label: str
    text: str
    document: str | None = None
    step: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: ``at`` is its scheduled arrival in mean inter-arrival times from the start."""

    request_id: str
    prompt: Prompt
    at: float
    session_id: str | None = None


def bundled_prompts() -> list[Prompt]:
    """All unique prompts, about 190, in a fixed order."""
    record = _documents()
    documents: list[dict[str, Any]] = record["documents"]
    prompts: list[Prompt] = []
    # Two paragraphs of three are enough; the others still occur inside longer prompts.
    paragraphs = [text for document in documents for text in document["paragraphs"]]
    for index, text in enumerate(text for place, text in enumerate(paragraphs) if place % 3):
        prompts.append(_cut(f"completion-{index:02}", "completion", text, _pick(WORDS["completion"], index)))
    for number, document in enumerate(documents):
        texts = document["paragraphs"]
        for part in range(4):
            # From different places of the document, so that no continuation is a prefix of another.
            words = _pick(WORDS["continuation"], 4 * number + part)
            body = "\n\n".join(texts[2 * part :])
            prompts.append(_cut(f"continuation-{number}{part}", "continuation", body, words))
        for part in range(2):
            words = _pick(WORDS["long"], 2 * number + part)
            body = "\n\n".join([document["title"], *texts[3 * part + 1 :], *_next(documents, number)])
            prompts.append(_cut(f"long-{number}{part}", "long", body, words))
        body = "\n\n".join([document["title"], *texts, *_next(documents, number)])
        for step, words in enumerate(_SESSION_WORDS):
            cut = _cut(f"session-{number}{step}", "session", body, words)
            prompts.append(Prompt(cut.key, cut.label, cut.text, document["title"], step))
    for index, text in enumerate(record["rewrites"]):
        prompts.append(Prompt(f"rewrite-{index:02}", "rewrite", REWRITE.format(text=text)))
    return prompts


def make_arrivals(prompts: Sequence[Prompt], count: int, seed: int) -> list[Arrival]:
    """A seeded mixture with exponential inter-arrival times of mean 1.

    A session request is the next step of one of a few open documents, which take turns (people pause
    between keystrokes); when a document is finished another one begins, under a new session id.

    Raises:
        ValueError: if ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"requests: {count} is not ≥ 1; 600 is the default")
    rng = random.Random(seed)
    by_label = {label: [prompt for prompt in prompts if prompt.label == label] for label in MIX}
    documents = _by_document(by_label["session"])
    sessions: list[tuple[str, list[Prompt]]] = []
    started = 0
    at = 0.0
    arrivals = []
    for index in range(count):
        at += rng.expovariate(1.0)
        label = rng.choices(list(MIX), list(MIX.values()))[0]
        session_id = None
        if label == "session":
            if len(sessions) < OPEN_SESSIONS:
                steps = list(documents[rng.randrange(len(documents))])
                sessions.insert(0, (f"session-{started}", steps))
                started += 1
            session_id, steps = sessions.pop(0)
            prompt = steps.pop(0)
            if steps:
                sessions.append((session_id, steps))
        else:
            prompt = rng.choice(by_label[label])
        arrivals.append(Arrival(f"r{index:05}", prompt, at, session_id))
    return arrivals


def _documents() -> dict[str, Any]:
    text = resources.files("specpilot.demo").joinpath("documents.json").read_text(encoding="utf-8")
    record: dict[str, Any] = json.loads(text)
    return record


def _next(documents: Sequence[dict[str, Any]], number: int) -> list[str]:
    """The document after, to go on with where one is too short."""
    following = documents[(number + 1) % len(documents)]
    return [following["title"], *following["paragraphs"]]


def _cut(key: str, label: str, text: str, words: int) -> Prompt:
    """The first ``words`` words, line breaks kept, ending inside a sentence where possible."""
    kept = text.split(" ")[:words]
    while len(kept) > 4 and kept[-1].endswith((".", ":", "\n", "?")):
        kept.pop()
    return Prompt(key, label, " ".join(kept))


def _pick(values: Sequence[int], index: int) -> int:
    return values[index % len(values)]


def _by_document(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    documents: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        documents.setdefault(prompt.document or "", []).append(prompt)
    return list(documents.values())
