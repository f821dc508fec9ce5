"""Prompts from texts that the user gives, cut by one rule: for measurements on what a pair has never seen.

A document's words are taken in order. A prompt begins with a paragraph (after an empty line, or the
document's start) and has as many words as its class has next in :data:`specpilot.demo.workload.WORDS`,
counted through over all documents; words at its end that end a sentence are left off, so that it stops inside
one, as the bundled prompts do. The next prompt begins with the first paragraph behind it. A document's rest
that is not longer than a prompt gives none: there has to be text that a writer would go on with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from training.corpus import read_corpus

from specpilot.demo.workload import WORDS, Prompt

SUFFIXES = (".txt", ".md")
_WORD = re.compile(r"\S+")
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_ENDS = (".", ":", "?", "!")
_FEWEST = 4
"""Words that are kept whatever they end in."""


def read_documents(path: Path, separator: str | None = None, hold_out: float | None = None) -> list[str]:
    """The documents of a folder (its ``.txt`` and ``.md`` files, by name) or of one file.

    Args:
        path: folder or file, UTF-8.
        separator: what stands between a file's documents; without one a file is one document.
        hold_out: only the last share of the file's documents, those that training holds out.

    Raises:
        ValueError: where there is no document, or a hold-out without a separator.
        OSError: if a file cannot be read.
    """
    if hold_out is not None:
        if separator is None or path.is_dir():
            raise ValueError(
                f"hold-out: {hold_out} is a share of one file's documents; give a file and its separator"
            )
        if not 0.0 < hold_out <= 1.0:
            raise ValueError(f"hold-out: {hold_out} is not in (0, 1]; 0.015 is what training holds out")
        return read_corpus(path, separator=separator, hold_out=hold_out).held_out
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    texts = [file.read_text(encoding="utf-8") for file in files]
    parts = [part for text in texts for part in (text.split(separator) if separator else [text])]
    documents = [part.strip() for part in parts if part.strip()]
    if not documents:
        raise ValueError(f"{path}: no text; give a file, or a folder with {' or '.join(SUFFIXES)} files")
    return documents


def cut(documents: Sequence[str], label: str) -> list[Prompt]:
    """All prompts of a class that the documents hold, in order.

    Raises:
        ValueError: for a class without a length of its own.
    """
    if label not in WORDS:
        raise ValueError(f"class: {label!r} is not one of {', '.join(WORDS)}")
    prompts: list[Prompt] = []
    for number, document in enumerate(documents):
        words = [(found.start(), found.end()) for found in _WORD.finditer(document)]
        begins = {0, *(found.end() for found in _PARAGRAPH.finditer(document))}
        place = 0
        while True:
            while place < len(words) and words[place][0] not in begins:
                place += 1
            wanted = WORDS[label][len(prompts) % len(WORDS[label])]
            if place + wanted >= len(words):
                break
            last = place + wanted
            while last - place > _FEWEST and document[: words[last - 1][1]].endswith(_ENDS):
                last -= 1
            text = document[words[place][0] : words[last - 1][1]]
            prompts.append(Prompt(f"{label}-{number:04}-{place:05}", label, text))
            place += wanted
    return prompts
