"""Recording: generations of a pair → agreement traces, from which any chain policy can be replayed.

The target's greedy continuation is generated plainly (one token a pass, no draft, no budget: the
reference that lossless outputs are compared with), then *one* teacher-forced pass of each model over the
finished text gives, per position, the agreement bit, the draft's confidence, the rank of the target's
token and both margins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specpilot.control.tree import RANKS
from specpilot.decoding.acceptance import Greedy
from specpilot.drafters.lookup import LookupDrafter
from specpilot.models.base import CausalLM, FloatArray, ForwardItem, KVCache, catch_up, common_prefix
from specpilot.trace.agreement import NEAR_TIE_MARGIN, AgreementTrace, loop_start

LONGEST_LOOKUP = 64
"""Looked-up tokens that are compared with the output, at most."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded request: its agreement trace and the target's greedy continuation (EOS included).

    ``inconsistent`` counts positions at which the teacher-forced pass of the target prefers another
    token than the one generated, near-ties apart. More than none means that the engine's results
    depend on how tokens are split into passes, and that replay and losslessness are off.
    """

    trace: AgreementTrace
    token_ids: tuple[int, ...]
    inconsistent: int


class Recorder:
    """Records requests one after another; each reuses the caches as far as its prompt matches the last.

    Raises:
        ValueError: if the two models have different vocabularies.
    """

    def __init__(self, target: CausalLM, draft: CausalLM) -> None:
        if target.vocab_size != draft.vocab_size:
            raise ValueError(
                f"draft: its vocabulary of {draft.vocab_size} is not the target's {target.vocab_size}; "
                "a pair must share one tokenizer"
            )
        self._target = target
        self._draft = draft
        self._target_cache = target.new_cache()
        self._draft_cache = draft.new_cache()

    def record(
        self, request: str, prompt: Sequence[int], max_tokens: int, *, label: str | None = None
    ) -> Recording:
        """Generate greedily up to ``max_tokens`` or EOS, and compare the two models along the result.

        Args:
            request: the trace's name for it.
            prompt: at least one token.
            max_tokens: most output tokens, ≥ 1; cut to what both contexts hold.
            label: the workload class, kept in the trace.

        Raises:
            ValueError: for an empty prompt, max_tokens < 1, or a prompt that fills the context.
        """
        room = min(self._target.context_limit, self._draft.context_limit) - len(prompt)
        if max_tokens < 1:
            raise ValueError(f"max_tokens: {max_tokens} is not ≥ 1; record at least one token")
        if room < 1:
            raise ValueError(f"prompt: {len(prompt)} tokens leave no room in the context; shorten the prompt")
        output = self._generate(list(prompt), min(max_tokens, room))
        target_rows = _teacher_forced(self._target, self._target_cache, prompt, output)
        draft_rows = _teacher_forced(self._draft, self._draft_cache, prompt, output)
        chosen = np.asarray(output)
        positions = np.arange(len(output))
        margin_target = _margins(target_rows)
        confidence = _confidence(draft_rows)
        rank = (draft_rows > draft_rows[positions, chosen][:, None]).sum(axis=1)
        agree = draft_rows.argmax(axis=1) == chosen
        moved = (target_rows.argmax(axis=1) != chosen) & (margin_target >= NEAR_TIE_MARGIN)
        ended = "eos" if output[-1] in self._target.eos_token_ids else None
        if ended is None and len(output) == max_tokens:
            ended = "max_tokens"
        first = Greedy()
        choices = [list(first.choices(first.look(row, 0), row, RANKS)) for row in draft_rows]
        trace = AgreementTrace(
            request=request,
            prompt_tokens=len(prompt),
            agree=tuple(int(bit) for bit in agree),
            confidence=tuple(float(value) for value in confidence),
            rank=tuple(int(value) for value in rank),
            margin_target=tuple(float(value) for value in margin_target),
            margin_draft=tuple(float(value) for value in _margins(draft_rows)),
            drafter="draft_model",
            ended=ended,
            loop_from=loop_start(output),
            label=label,
            shares=tuple(tuple(share for _, share in row[1:]) for row in choices),
            lookup=_lookup(prompt, output, self._target.vocab_size),
        )
        return Recording(trace, tuple(output), int(moved.sum()))

    def _generate(self, context: list[int], max_tokens: int) -> list[int]:
        """Plain greedy decoding with the target alone."""
        output: list[int] = []
        while len(output) < max_tokens:
            feed = catch_up(self._target_cache, context)
            item = ForwardItem(self._target_cache, feed, logits_from=len(feed) - 1)
            token = int(self._target.forward([item])[0][0].argmax())
            output.append(token)
            context.append(token)
            if token in self._target.eos_token_ids:
                break
        return output


def _lookup(prompt: Sequence[int], output: Sequence[int], vocab_size: int) -> tuple[tuple[float, int], ...]:
    """(confidence, right tokens) of what prompt lookup would propose at each output position."""
    drafter = LookupDrafter(vocab_size)
    drafter.open("", prompt)
    context = list(prompt)
    found: list[tuple[float, int]] = []
    for position, token in enumerate(output):
        tokens, confidence = drafter.find("", context, LONGEST_LOOKUP)
        found.append((confidence, common_prefix(tokens, list(output[position:]))))
        context.append(token)
    return tuple(found)


def _teacher_forced(
    model: CausalLM, cache: KVCache, prompt: Sequence[int], output: Sequence[int]
) -> FloatArray:
    """Logits at each output position given everything before it: shape (len(output), vocab)."""
    feed = catch_up(cache, prompt)
    item = ForwardItem(cache, [*feed, *output[:-1]], logits_from=len(feed) - 1)
    return model.forward([item])[0]


def _margins(logits: FloatArray) -> FloatArray:
    """Top-1 minus top-2 logit per row."""
    top = np.partition(logits, -2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0], dtype=np.float32)


def _confidence(logits: FloatArray) -> FloatArray:
    """Max softmax per row: 1 / Σ exp(l − max)."""
    top = logits.max(axis=1, keepdims=True)
    return np.asarray(1.0 / np.exp(logits - top).sum(axis=1), dtype=np.float32)
