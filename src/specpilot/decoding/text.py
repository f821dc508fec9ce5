"""Text from tokens as they come: incremental detokenisation and stop strings across tokens and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_PARTIAL = "\ufffd"
"""What a byte-level tokenizer decodes an unfinished UTF-8 character to."""


class Detokenizer(Protocol):
    """The part of a tokenizer that turns tokens into text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids``; special tokens (EOS) give none."""
        ...


LONGEST = 4
"""Tokens that a character is spread over at most: its bytes in UTF-8."""


class TextStream:
    """Appends tokens, answers with the text that is new.

    Some tokenizers' text for a token depends on the one before (a leading space, a merged byte
    sequence), so each token is decoded together with the last few; characters whose bytes are not all
    there yet are held back.

    Args:
        detokenizer: the tokenizer.
        before: the last tokens before the first one pushed (the prompt's), if any: their text is not given
            out, but without it a tokenizer that marks words by a leading space would drop the first one, and
            of a character that the prompt breaks off the rest could not be told from one that is whole.
    """

    def __init__(self, detokenizer: Detokenizer, before: Sequence[int] = ()) -> None:
        self._detokenizer = detokenizer
        self._tokens = list(before)
        # Given out, or the prompt's; a character that the prompt breaks off is shown once it is whole.
        self._known = detokenizer.decode(self._tokens).removesuffix(_PARTIAL) if before else ""

    def push(self, token: int) -> str:
        """The text that ``token`` completes; often a word, sometimes nothing."""
        self._tokens.append(token)
        text = self._detokenizer.decode(self._tokens)
        if text.endswith(_PARTIAL):
            return ""
        fresh = text[len(self._known) :]
        # Only the last token is kept: it is the only one whose right neighbour is still unknown.
        del self._tokens[:-1]
        self._known = self._detokenizer.decode(self._tokens)
        return fresh

    def flush(self) -> str:
        """What is still held back (an unfinished character, as its replacement)."""
        fresh = self._detokenizer.decode(self._tokens)[len(self._known) :]
        self._tokens.clear()
        self._known = ""
        return fresh


class StopStrings:
    """Finds the first stop string in a text that comes in pieces; the stop string itself is left out.

    Raises:
        ValueError: for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        for index, stop in enumerate(stops):
            if not stop:
                raise ValueError(f"stop[{index}]: '' is empty; leave it out to stop at no string")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """Take ``piece``; answers the text that is now certain to stand before any stop string.

        A tail that might be the beginning of a stop string is held back. Once one is found
        (``found``) nothing more is given out.
        """
        if self.found is not None:
            return ""
        text = self._held + piece
        at, stop = min(
            ((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0),
            default=(-1, None),
            key=lambda hit: hit[0],
        )
        if stop is not None:
            self.found = stop
            self._held = ""
            return text[:at]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
