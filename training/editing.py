"""Editing examples: an instruction, a passage with planted faults, and the passage as it was.

This module is the one place that defines the rewrite prompts the bundled pair understands. A prompt is

    {instruction}

    Text: {text}

    Corrected text:

with one of the instructions in ``INSTRUCTIONS``, and the answer is the corrected passage followed by the
end-of-text token. Faults are planted in clean text, so the right answer is always the original.
Pure Python: everything follows from the ``random.Random`` passed in.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TEMPLATE = "{instruction}\n\nText: {text}\n\nCorrected text: "

INSTRUCTIONS = {
    "fix": "Fix the errors in this text.",
    "plain": "Rewrite this text in plain words.",
    "replace": 'Replace "{old}" with "{new}" in this text.',
    "copy": "Copy this text.",
}
MIX = {"fix": 0.55, "plain": 0.15, "replace": 0.1, "copy": 0.2}
"""Share of the examples by task. Fixing is what the demo asks for; copying is the skill beneath it."""

# Wordy phrase for plain word: the right-hand side is planted, the left-hand side is the answer.
WORDY = {
    "about": "with regard to",
    "after": "subsequent to",
    "also": "in addition",
    "ask": "request",
    "because": "due to the fact that",
    "before": "prior to",
    "begin": "commence",
    "buy": "purchase",
    "can": "is able to",
    "during": "in the course of",
    "end": "terminate",
    "enough": "a sufficient amount of",
    "for": "for the purpose of",
    "get": "obtain",
    "help": "facilitate",
    "if": "in the event that",
    "later": "at a later date",
    "many": "a large number of",
    "most": "the majority of",
    "need": "have a requirement for",
    "now": "at this point in time",
    "often": "on a regular basis",
    "show": "demonstrate",
    "soon": "in the near future",
    "to": "in order to",
    "try": "endeavor",
    "use": "utilize",
    "until": "until such time as",
}

# Right word: wrong word that people write for it.
CONFUSIONS = {
    "and": "adn", "are": "is", "available": "avaliable", "been": "be", "believe": "beleive",
    "definitely": "definately", "does": "do", "from": "form", "government": "goverment", "has": "have",
    "have": "has", "is": "are", "it's": "its", "its": "it's", "necessary": "neccessary",
    "receive": "recieve", "received": "recieved", "separate": "seperate", "than": "then",
    "that": "taht", "the": "teh", "their": "there", "then": "than", "there": "their", "these": "this",
    "this": "these", "to": "too", "was": "were", "were": "was", "which": "wich", "with": "whit",
    "you": "your", "your": "you",
}  # fmt: skip

REPLACEMENTS = (
    "building", "garden", "letter", "machine", "morning", "number", "office", "people", "picture", "report",
    "river", "school", "summer", "system", "ticket", "travel", "village", "weather", "window", "writing",
)  # fmt: skip

_PARTS = re.compile(r"^([^\w]*)([A-Za-z']+)([^\w]*)$")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Example:
    """One editing example; ``prompt`` holds ``source``, and the model should answer ``corrected``."""

    task: str
    prompt: str
    source: str
    corrected: str


def render_prompt(text: str, task: str = "fix", *, old: str = "", new: str = "") -> str:
    """The prompt for one passage, as the pair was trained on it."""
    return TEMPLATE.format(instruction=INSTRUCTIONS[task].format(old=old, new=new), text=text)


def make_example(passage: str, rng: random.Random) -> Example:
    """An example whose answer is ``passage``; a task that does not fit it falls back to fixing."""
    task = rng.choices(list(MIX), list(MIX.values()))[0]
    if task == "replace":
        replaced = _plant_replacement(passage, rng)
        if replaced is not None:
            source, old, new = replaced
            return Example(task, render_prompt(source, task, old=old, new=new), source, passage)
        task = "fix"
    if task == "plain":
        source = plant_wordiness(passage, rng)
        if source == passage:
            task = "fix"
    if task == "copy":
        source = passage
    if task == "fix":
        source = plant_errors(passage, rng)
    return Example(task, render_prompt(source, task), source, passage)


def plant_errors(text: str, rng: random.Random) -> str:
    """``text`` with errors in some 3–15 % of its words, at least one; never equal to ``text``."""
    words = text.split(" ")
    wanted = max(1, round(len(words) * rng.uniform(0.03, 0.15)))
    # More tries than errors, as not every fault fits every word; a word is changed once only, so that two
    # faults never cancel out.
    places = rng.sample(range(len(words)), len(words))
    for place in places:
        if wanted == 0:
            break
        changed = rng.choice(_FAULTS)(words[place], rng)
        if changed is not None and changed != words[place]:
            words[place] = changed
            wanted -= 1
    result = " ".join(words)
    # Doubling a word always fits, even a number or a single letter.
    return result if result != text else f"{words[0]} {text}"


def plant_wordiness(text: str, rng: random.Random) -> str:
    """``text`` with up to four plain words made wordy; unchanged where none is in the list."""
    words = text.split(" ")
    fitting = [place for place, word in enumerate(words) if _core(word).lower() in WORDY]
    for place in rng.sample(fitting, min(len(fitting), rng.randint(1, 4))):
        words[place] = _exchange(words[place], WORDY)
    return " ".join(words)


def pick_passage(document: str, rng: random.Random) -> str | None:
    """Whole sentences of one paragraph, about 10–110 words (short ones more often); None if none fits."""
    paragraphs = [line.strip() for line in document.split("\n")]
    paragraphs = [line for line in paragraphs if line.count(" ") >= 7 and line[-1] in ".!?"]
    if not paragraphs:
        return None
    sentences = _SENTENCE_END.split(rng.choice(paragraphs))
    wanted = math.exp(rng.uniform(math.log(10), math.log(100)))
    first = rng.randrange(len(sentences))
    taken: list[str] = []
    length = 0
    for sentence in sentences[first:]:
        if taken and length >= wanted:
            break
        taken.append(sentence)
        length += sentence.count(" ") + 1
    # A list or a table squeezed into one line is not prose, and very long sentences rarely are.
    return " ".join(taken) if 6 <= length <= 110 else None


def examples(documents: Sequence[str], rng: random.Random, count: int) -> list[Example]:
    """``count`` examples from random documents.

    Raises:
        ValueError: if hardly any document has a paragraph of whole sentences.
    """
    made: list[Example] = []
    for _ in range(100 * max(1, count)):
        if len(made) == count:
            break
        passage = pick_passage(rng.choice(documents), rng)
        if passage is not None:
            made.append(make_example(passage, rng))
    if len(made) < count:
        raise ValueError("the text has too few paragraphs of whole sentences to make editing examples from")
    return made


def _core(word: str) -> str:
    parts = _PARTS.match(word)
    return parts[2] if parts else ""


def _exchange(word: str, table: dict[str, str]) -> str:
    """``word`` replaced by its entry, with its punctuation and initial capital kept."""
    parts = _PARTS.match(word)
    assert parts is not None
    new = table[parts[2].lower()]
    if parts[2][0].isupper():
        new = new[0].upper() + new[1:]
    return f"{parts[1]}{new}{parts[3]}"


def _plant_replacement(text: str, rng: random.Random) -> tuple[str, str, str] | None:
    """(source, planted word, original word): the source holds the planted word in the original's place."""
    words = text.split(" ")
    originals = sorted({word for word in words if word.isalpha() and word.islower() and len(word) >= 4})
    lowered = text.lower()
    planted = [word for word in REPLACEMENTS if word not in lowered]
    if not originals or not planted:
        return None
    original, new = rng.choice(originals), rng.choice(planted)
    return " ".join(new if word == original else word for word in words), new, original


def _inside(word: str, rng: random.Random) -> tuple[int, int] | None:
    """(place of a letter to change, end of the letters); the first letter is left alone."""
    parts = _PARTS.match(word)
    if parts is None or len(parts[2]) < 4:
        return None
    start, end = parts.start(2), parts.end(2)
    return rng.randrange(start + 1, end), end


def _swap(word: str, rng: random.Random) -> str | None:
    found = _inside(word, rng)
    if found is None or found[0] + 1 >= found[1]:
        return None
    place = found[0]
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _drop(word: str, rng: random.Random) -> str | None:
    found = _inside(word, rng)
    return None if found is None else word[: found[0]] + word[found[0] + 1 :]


def _double(word: str, rng: random.Random) -> str | None:
    found = _inside(word, rng)
    return None if found is None else word[: found[0]] + word[found[0] :][:1] + word[found[0] :]


def _repeat(word: str, rng: random.Random) -> str | None:
    return f"{word} {word}" if word.isalpha() else None


def _lower(word: str, rng: random.Random) -> str | None:
    return word.lower() if word.istitle() else None


def _unpunctuate(word: str, rng: random.Random) -> str | None:
    return word.rstrip(".,") or None


def _confuse(word: str, rng: random.Random) -> str | None:
    return _exchange(word, CONFUSIONS) if _core(word).lower() in CONFUSIONS else None


_FAULTS: tuple[Callable[[str, random.Random], str | None], ...] = (
    _swap, _drop, _double, _repeat, _lower, _lower, _unpunctuate, _unpunctuate, _confuse, _confuse,
)  # fmt: skip
