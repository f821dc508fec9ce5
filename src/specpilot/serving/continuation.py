"""The continuation cache: what the target has verified beyond what the user has typed so far.

A greedy output is a function of the prompt's tokens alone, a coupled one of prompt and seed (its noise is
keyed by absolute position). So when a new prompt is an earlier prompt plus the first tokens of its output,
the rest of that output is exactly what the target would say again, and it is served without a target pass.
Other sampling is never cached.

Entries are found by a hash of scope, length and last tokens of the new prompt and then compared in full. A
*scope* (tenant, user, session, sampling parameters) never sees another scope's entries.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from specpilot.control.types import StopCause

_TAIL = 8
"""Last tokens of a prompt that, with its length, find the candidates."""
_OWN = (StopCause.MAX_TOKENS, StopCause.STOP, StopCause.CANCELLED, StopCause.ERROR)
"""Ends that say something about a request and nothing about its text."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Verified tokens that follow a prompt, and why they end where they do.

    ``lasting``: not merely what an earlier request for this very prompt asked for (its max_tokens, its stop
    string) or had when it was broken off, or what one with limits of its own was given; another request may
    want more.
    """

    tokens: tuple[int, ...]
    cause: StopCause
    lasting: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    scope: Hashable
    tokens: tuple[int, ...]
    prompt_tokens: int
    cause: StopCause
    limited: bool

    def follows(self, scope: Hashable, tokens: tuple[int, ...]) -> bool:
        """Whether it is of this scope and begins with these tokens."""
        return self.scope == scope and self.tokens[: len(tokens)] == tokens


class ContinuationCache:
    """Bounded, least recently used goes first. For one thread.

    Args:
        max_tokens: most tokens held, prompts counted; 0 keeps nothing.
        max_entries: most outputs held, ≥ 1: each has a scope and objects of its own besides its tokens.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(self, max_tokens: int, max_entries: int = 20_000) -> None:
        if max_tokens < 0:
            raise ValueError(f"max_tokens: {max_tokens} is not ≥ 0; use 0 to keep nothing")
        if max_entries < 1:
            raise ValueError(f"max_entries: {max_entries} is not ≥ 1; use max_tokens=0 to keep nothing")
        self._max_tokens = max_tokens
        self._max_entries = max_entries
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by identity, oldest first
        self._index: dict[int, _Entry] = {}
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return self._tokens

    def put(
        self,
        scope: Hashable,
        prompt: Sequence[int],
        output: Sequence[int],
        cause: StopCause,
        *,
        limited: bool = False,
    ) -> None:
        """Keep a verified output. Where two know what follows a prompt, the one that knows more stays.

        ``limited``: its request had limits of its own (a latency, a draft length) that may have cut it.
        """
        if not output or len(prompt) + len(output) > self._max_tokens:
            return
        entry = _Entry(scope, (*prompt, *output), len(prompt), cause, limited)
        fresh = False
        for length in range(len(prompt), len(entry.tokens)):
            key = _key(scope, entry.tokens, length)
            known = self._index.get(key)
            # Of two texts with the same key (length and last tokens) the newer one is being written.
            if (
                known is None
                or len(known.tokens) < len(entry.tokens)
                or not known.follows(scope, entry.tokens[:length])
            ):
                self._index[key] = entry
                fresh = True
        if not fresh:
            return
        self._entries[id(entry)] = entry
        self._tokens += len(entry.tokens)
        while self._tokens > self._max_tokens or len(self._entries) > self._max_entries:
            self._drop(next(iter(self._entries.values())))

    def get(self, scope: Hashable, prompt: Sequence[int]) -> Rest | None:
        """What is known to follow ``prompt``, if anything."""
        tokens = tuple(prompt)
        entry = self._index.get(_key(scope, tokens, len(tokens)))
        if entry is None or not entry.follows(scope, tokens):
            return None
        self._entries.move_to_end(id(entry))
        own_end = len(tokens) == entry.prompt_tokens and (entry.cause in _OWN or entry.limited)
        return Rest(entry.tokens[len(tokens) :], entry.cause, not own_end)

    def _drop(self, entry: _Entry) -> None:
        del self._entries[id(entry)]
        self._tokens -= len(entry.tokens)
        for length in range(entry.prompt_tokens, len(entry.tokens)):
            key = _key(entry.scope, entry.tokens, length)
            if self._index.get(key) is entry:
                del self._index[key]


def _key(scope: Hashable, tokens: tuple[int, ...], length: int) -> int:
    """A hash, since one is kept for every output token; what it finds is compared in full."""
    return hash((scope, length, tokens[max(0, length - _TAIL) : length]))
