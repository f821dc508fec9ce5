"""A request on its way through the cycles: its context, what it has emitted, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specpilot.control.types import Reason, RequestInfo, StopCause
from specpilot.decoding.acceptance import make_rule
from specpilot.decoding.rule import AcceptanceRule
from specpilot.decoding.text import LONGEST, Detokenizer, StopStrings, TextStream
from specpilot.decoding.types import Block, SamplingParams
from specpilot.models.base import ContextLimitError


@dataclass(frozen=True, slots=True)
class CycleDetail:
    """What one cycle did, token by token, for ``--explain``.

    ``block`` was proposed, ``path`` are its accepted nodes, ``accepted`` their tokens and ``own`` the
    target's token after them; ``emitted`` is what was appended (fewer only where the output ended inside
    the block). ``drafter`` names the block's source where it is not the usual drafter.
    """

    cycle_id: int
    max_draft: int
    reason: Reason
    block: Block
    accepted: tuple[int, ...]
    own: int
    full: bool
    emitted: tuple[int, ...]
    fault: str | None = None
    path: tuple[int, ...] = ()
    drafter: str | None = None

    @property
    def own_kind(self) -> str:
        """``plain`` (nothing was proposed), ``bonus`` (full accept) or ``recovered``."""
        if not len(self.block):
            return "plain"
        return "bonus" if self.full else "recovered"


class DecodingRequest:
    """One request's state. Tokens are appended by :meth:`emit` and nowhere else.

    Args:
        request_id: unique among those in flight.
        prompt: token ids, at least one (:func:`fit_prompt` supplies a start token).
        max_tokens: most output tokens, ≥ 1.
        params: how tokens are drawn.
        eos_token_ids: tokens that end the output; the one that does is part of it, but not of the text.
        stop: strings that end the output; left out of the text. Needs a ``detokenizer``.
        detokenizer: gives :attr:`text`; without one there is none.
        session_id: requests of one session share their models' KV caches.
        rule: how drafts are accepted at first; default: by ``params``.

    Raises:
        ValueError: for an empty prompt, max_tokens < 1, or stop strings without a detokenizer.
    """

    def __init__(
        self,
        request_id: str,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        params: SamplingParams | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        stop: Sequence[str] = (),
        detokenizer: Detokenizer | None = None,
        session_id: str | None = None,
        rule: AcceptanceRule | None = None,
    ) -> None:
        if not prompt:
            raise ValueError("prompt: it has no tokens; start an empty prompt with BOS or EOS (fit_prompt)")
        if max_tokens < 1:
            raise ValueError(f"max_tokens: {max_tokens} is not ≥ 1; ask for at least one token")
        if stop and detokenizer is None:
            raise ValueError("stop: strings cannot be found without text; give a detokenizer")
        self.request_id = request_id
        self.prompt = tuple(prompt)
        self.context: list[int] = list(prompt)
        self.max_tokens = max_tokens
        self.session_id = session_id
        self.params = params or SamplingParams()
        self.rule = rule if rule is not None else make_rule(self.params)
        self.ended: StopCause | None = None
        self.error: str | None = None
        self.details: list[CycleDetail] = []
        self._eos = eos_token_ids
        self._stream = None if detokenizer is None else TextStream(detokenizer, self.prompt[-LONGEST:])
        self._stops = StopStrings(stop)
        self._pieces: list[str] = []

    @property
    def output(self) -> list[int]:
        """The tokens emitted so far."""
        return self.context[len(self.prompt) :]

    @property
    def emitted(self) -> int:
        """How many tokens were emitted so far."""
        return len(self.context) - len(self.prompt)

    @property
    def text(self) -> str:
        """The text emitted so far; what may still become a stop string is held back until the end."""
        return "".join(self._pieces)

    def info(self, *, arrival_s: float | None = None, slo_ms: float | None = None) -> RequestInfo:
        """What the policy is told of this request."""
        return RequestInfo(
            request_id=self.request_id,
            prompt_tokens=len(self.prompt),
            max_tokens=self.max_tokens,
            arrival_s=arrival_s,
            slo_ms=slo_ms,
            acceptance=self.rule.name,
        )

    def emit(self, tokens: Sequence[int]) -> int:
        """Append verified tokens one by one until the output ends; returns how many were appended."""
        for count, token in enumerate(tokens, 1):
            self.context.append(token)
            if token in self._eos:
                self.end(StopCause.EOS)
            else:
                if self._stream is not None:
                    self._pieces.append(self._stops.push(self._stream.push(token)))
                if self._stops.found is not None:
                    self.end(StopCause.STOP)
                elif self.emitted >= self.max_tokens:
                    self.end(StopCause.MAX_TOKENS)
            if self.ended is not None:
                return count
        return len(tokens)

    def end(self, cause: StopCause, error: str | None = None) -> None:
        """The output ends here (only the first call counts); text held back is let go.

        If it cannot be made, an output that had come to its own end is cut short, which is an ``error``.
        """
        if self.ended is not None:
            return
        self.ended = cause
        self.error = error
        if self._stream is None:
            return
        try:
            self._pieces.append(self._stops.push(self._stream.flush()))
            self._pieces.append(self._stops.flush())
        except Exception as problem:  # whoever ends a request has more to put in order
            if cause.complete:
                self.ended = StopCause.ERROR
            self.error = error or f"{type(problem).__name__}: {problem}"


def fit_prompt(
    prompt: Sequence[int],
    max_tokens: int,
    *,
    context_limit: int,
    start_token: int | None,
    truncate: bool = False,
) -> list[int]:
    """The prompt as the target is to see it.

    An empty prompt becomes ``start_token`` (BOS, or EOS where there is no BOS): a model needs a token to
    predict from. A prompt that with ``max_tokens`` exceeds ``context_limit`` is refused, or cut on
    the *left* where ``truncate`` asks for it.

    Raises:
        ContextLimitError: if it does not fit and ``truncate`` is False, or ``max_tokens`` leaves no room.
        ValueError: for an empty prompt without a start token.
    """
    tokens = list(prompt)
    if not tokens:
        if start_token is None:
            raise ValueError(
                "prompt: it is empty and the model has no BOS or EOS to start from; give a token"
            )
        tokens = [start_token]
    room = context_limit - max_tokens
    if room < 1:
        raise ContextLimitError(
            f"max_tokens: {max_tokens} is not in 1…{context_limit - 1}; the context of "
            f"{context_limit} tokens must hold the prompt too, ask for fewer"
        )
    if len(tokens) <= room:
        return tokens
    if not truncate:
        raise ContextLimitError(
            f"prompt: {len(tokens)} tokens and max_tokens {max_tokens} exceed the context of "
            f"{context_limit}; shorten the prompt to {room} tokens, or ask for fewer (in Python "
            "truncate=True cuts it on the left)"
        )
    return tokens[-room:]
