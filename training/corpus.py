"""From a text file to training windows: documents, hold-out, and an endless stream of token windows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from training.editing import examples

END_OF_TEXT = "<|endoftext|>"
END_ID = 0


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents to train on and documents held out."""

    train: list[str]
    held_out: list[str]


@dataclass(frozen=True, slots=True)
class Window:
    """``size + 1`` tokens: inputs and their successors; ``weight[i]`` says whether
    ``tokens[i + 1]`` is learned.
    """

    tokens: NDArray[np.int64]
    weight: NDArray[np.float32]


def read_corpus(path: Path, *, separator: str = "<|doc|>", hold_out: float = 0.015) -> Corpus:
    """Split a text file into documents; the last share of the documents (at least one) is held out.

    Raises:
        ValueError: if fewer than two documents are found.
    """
    text = path.read_text(encoding="utf-8")
    documents = [document.strip() for document in text.split(separator)]
    documents = [document for document in documents if document]
    if len(documents) < 2:
        raise ValueError(f"{path}: only {len(documents)} document(s); separate documents by {separator!r}")
    kept = min(int(len(documents) * (1 - hold_out)), len(documents) - 1)
    return Corpus(documents[:kept], documents[kept:])


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids without special tokens."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


class WindowStream:
    """An endless, seeded stream of windows: shuffled documents with editing examples between them.

    Every item starts with the end-of-text token, which thereby also ends the item before it. In editing
    examples only the answer is learned: learning the source as well would teach the model to make typos.
    """

    def __init__(
        self, tokenizer: Tokenizer, documents: Sequence[str], *, size: int, editing_share: float, seed: int
    ) -> None:
        if not 0 <= editing_share < 1:
            raise ValueError(f"editing share: {editing_share} is not in [0, 1)")
        self._tokenizer = tokenizer
        self._documents = documents
        self.size = size
        self._share = editing_share
        self._rng = random.Random(seed)
        self._encoded: dict[int, list[int]] = {}
        self._windows = self._make()
        self.editing_tokens = 0
        self.all_tokens = 0

    def batch(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(tokens, weights) of the next ``count`` windows, stacked."""
        windows = [next(self._windows) for _ in range(count)]
        return np.stack([w.tokens for w in windows]), np.stack([w.weight for w in windows])

    def _encoded_document(self, index: int) -> list[int]:
        if index not in self._encoded:
            self._encoded[index] = encode(self._tokenizer, self._documents[index])
        return self._encoded[index]

    def _make(self) -> Iterator[Window]:
        tokens: list[int] = []
        learned: list[float] = []
        for ids, weights in self._items():
            tokens += ids
            learned += weights
            while len(tokens) > self.size:
                # Windows overlap by one token: the last successor of one is the first input of the next.
                yield Window(
                    np.array(tokens[: self.size + 1], dtype=np.int64),
                    np.array(learned[1 : self.size + 1], dtype=np.float32),
                )
                del tokens[: self.size], learned[: self.size]

    def _items(self) -> Iterator[tuple[list[int], list[float]]]:
        while True:
            for index in self._rng.sample(range(len(self._documents)), len(self._documents)):
                ids = [END_ID, *self._encoded_document(index)]
                self.all_tokens += len(ids)
                yield ids, [1.0] * len(ids)
                # As many examples as bring their share of the tokens back to what was asked for.
                while self.editing_tokens < self._share * self.all_tokens:
                    item = self._editing_item()
                    self.all_tokens += len(item[0])
                    self.editing_tokens += len(item[0])
                    yield item

    def _editing_item(self) -> tuple[list[int], list[float]]:
        example = examples(self._documents, self._rng, 1)[0]
        prompt, answer = example.prompt, example.corrected
        # A prompt is encoded apart from its answer when served, so it is here. A quarter of the examples
        # leaves the blank to the answer, as a prompt stripped by its user does.
        if self._rng.random() < 0.25:
            prompt, answer = prompt.rstrip(" "), f" {answer}"
        asked, answered = encode(self._tokenizer, prompt), encode(self._tokenizer, answer)
        return [END_ID, *asked, *answered], [1.0] + [0.0] * len(asked) + [1.0] * len(answered)


def text_prompts(
    tokenizer: Tokenizer, documents: Sequence[str], rng: random.Random, *, length: int, count: int
) -> NDArray[np.int64]:
    """``count`` prompts of ``length`` tokens as they are served: end-of-text, then the start of a paragraph.

    Raises:
        ValueError: if too few documents are long enough.
    """
    prompts: list[list[int]] = []
    for _ in range(100 * count):
        if len(prompts) == count:
            break
        document = rng.choice(documents)
        starts = [0, *(place + 1 for place, letter in enumerate(document) if letter == "\n")]
        # A token is rarely longer than eight characters on average; the rest need not be encoded.
        ids = encode(tokenizer, document[rng.choice(starts) :][: 8 * length].lstrip())
        if len(ids) >= length:
            prompts.append([END_ID, *ids[: length - 1]])
    if len(prompts) < count:
        raise ValueError(f"too few documents with {length} tokens")
    return np.array(prompts, dtype=np.int64)
