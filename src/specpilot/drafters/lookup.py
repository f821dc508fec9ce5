"""Prompt lookup: the text so far as the drafter.

The longest suffix of the context that occurred before is looked up, and what followed it then is proposed:
nearly free, and long where a rewrite copies its input. Prompt lookup decoding (Saxena 2023) searches n-grams;
a suffix automaton kept up to date token by token finds the longest match in amortised constant time, as in
SAM-Decoding (Hu et al. 2024). Proposals are no samples of a distribution: sampled requests need the
``Deterministic`` rule (:func:`specpilot.decoding.acceptance.make_rule` with ``sampled=False``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from specpilot.decoding.types import Block, Draft
from specpilot.drafters.base import DraftItem
from specpilot.models.base import common_prefix

LEAST_MATCH = 2
"""Shorter matches say next to nothing."""


class TextMemory(Protocol):
    """What is remembered of ended requests (:mod:`specpilot.drafters.memory`)."""

    def add(self, session_id: str, tokens: Sequence[int]) -> None:
        """A request of this session has ended with this text."""
        ...

    def find(self, session_id: str, context: Sequence[int], count: int) -> tuple[list[int], int]:
        """What followed the longest match of the context's end, and the match's length."""
        ...


class SuffixAutomaton:
    """All substrings of a growing text, and the longest suffix of it that occurred before.

    ``matched`` is that suffix's length, ``ends_at`` the place after its latest earlier occurrence that the
    automaton remembers: what followed it begins there.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._end = [0]  # of one occurrence: how many tokens stand before its end
        self._last = 0
        self._state = 0
        self.matched = 0

    @property
    def ends_at(self) -> int:
        """Where the match ended when it occurred before."""
        return self._end[self._state]

    def extend(self, token: int) -> None:
        """Append one token."""
        # First the match, among what stood there before; then the token becomes part of the text.
        state, length = self._state, self.matched
        while state and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state]
        if token in self._next[state]:
            state, length = self._next[state][token], length + 1
        self._add(token)
        # A clone may have taken over the shorter strings of the state that was reached.
        while self._link[state] >= 0 and self._length[self._link[state]] >= length > 0:
            state = self._link[state]
        self._state, self.matched = state, length

    def match(self, tokens: Sequence[int]) -> tuple[int, int]:
        """(length, end of an occurrence) of the longest suffix of ``tokens`` that occurs; changes nothing."""
        state = length = 0
        for token in tokens:
            while state and token not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            if token in self._next[state]:
                state, length = self._next[state][token], length + 1
        return length, self._end[state]

    def _add(self, token: int) -> None:
        self.tokens.append(token)
        current = self._new(self._length[self._last] + 1, len(self.tokens), {}, 0)
        state = self._last
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = current
            state = self._link[state]
        if state >= 0:
            follow = self._next[state][token]
            if self._length[state] + 1 == self._length[follow]:
                self._link[current] = follow
            else:
                clone = self._new(
                    self._length[state] + 1, self._end[follow], dict(self._next[follow]), self._link[follow]
                )
                while state >= 0 and self._next[state].get(token) == follow:
                    self._next[state][token] = clone
                    state = self._link[state]
                self._link[follow] = self._link[current] = clone
        self._last = current

    def _new(self, length: int, end: int, following: dict[int, int], link: int) -> int:
        self._next.append(following)
        self._link.append(link)
        self._length.append(length)
        self._end.append(end)
        return len(self._length) - 1


class LookupDrafter:
    """Proposes what followed the longest match.

    The confidence of a match of m tokens is m ÷ (m + 1) at every position; the controller's calibration
    makes an acceptance of it. Memory is a few hundred bytes per context token of the requests in flight,
    and as much per token that is remembered of requests that have ended.

    Args:
        vocab_size: the target's.
        least_match: shorter matches propose nothing.
        memory: text of ended requests, looked up where the request's own text has no longer match.
        clock: seconds, monotonic.

    Raises:
        ValueError: if ``least_match`` is below 1.
    """

    name = "lookup"

    def __init__(
        self,
        vocab_size: int,
        least_match: int = LEAST_MATCH,
        *,
        memory: TextMemory | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if least_match < 1:
            raise ValueError(f"least_match: {least_match} is not ≥ 1; 2 is typical")
        self.vocab_size = vocab_size
        self._least = least_match
        self._clock = clock
        self._texts: dict[str, SuffixAutomaton] = {}
        self._memory = memory
        self._sessions: dict[str, str] = {}

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None = None) -> int:
        """Take up a request and read its prompt, so that no block's time holds it."""
        text = self._texts[request_id] = SuffixAutomaton()
        for token in prompt:
            text.extend(token)
        if session_id is not None:
            self._sessions[request_id] = session_id
        return len(prompt)

    def close(self, request_id: str) -> None:
        """Forget the request's text, or hand it to the memory where the request has a session."""
        text, session_id = self._texts.pop(request_id, None), self._sessions.pop(request_id, None)
        if self._memory is not None and text is not None and session_id is not None:
            self._memory.add(session_id, text.tokens)

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        """One chain per item, empty where nothing matches or tokens must be samples of q."""
        return [self._propose(item) for item in items]

    def find(self, request_id: str, context: Sequence[int], count: int) -> tuple[list[int], float]:
        """The next ``count`` tokens by the longest match, and its confidence; none where it is too short."""
        text = self._text(request_id, context)
        session_id = self._sessions.get(request_id)
        if self._memory is not None and session_id is not None:
            tokens, matched = self._memory.find(session_id, context, count)
            if tokens and matched > max(text.matched, self._least - 1):
                return tokens, matched / (matched + 1.0)
        if text.matched < self._least:
            return [], 0.0
        tokens = text.tokens[text.ends_at : text.ends_at + count]
        # Beyond the end of the text its own continuation goes on: text that repeats itself.
        period = len(text.tokens) - text.ends_at
        while len(tokens) < count:
            tokens.append(tokens[-period])
        return tokens, text.matched / (text.matched + 1.0)

    def _propose(self, item: DraftItem) -> Draft:
        began = self._clock()
        depth = 0 if item.rule.needs_q else min(item.max_draft, item.max_nodes)
        found, confidence = self.find(item.request_id, item.context, depth)
        tokens: list[int] = []
        confidences: list[float] = []
        item.stop.start()
        for position, token in enumerate(found, 1):
            elapsed_ms = item.elapsed_ms + (self._clock() - began) * 1000.0
            if not item.stop.draft_on(position, elapsed_ms):
                break
            confidences.append(confidence)
            if not item.stop.keep(position, confidence):
                break
            tokens.append(token)
        return Draft(Block.chain(tokens), tuple(confidences), draft_ms=(self._clock() - began) * 1000.0)

    def _text(self, request_id: str, context: Sequence[int]) -> SuffixAutomaton:
        """The request's automaton, brought up to date; made anew should the context not go on from it."""
        text = self._texts[request_id]
        if common_prefix(text.tokens, list(context)) < len(text.tokens):
            text = self._texts[request_id] = SuffixAutomaton()
        for token in context[len(text.tokens) :]:
            text.extend(token)
        return text
