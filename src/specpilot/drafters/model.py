"""A small causal language model as the drafter: chains, step by step, in batches, and leaves beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from specpilot.decoding.caches import CacheStore, RequestCaches
from specpilot.decoding.distribution import DoubleArray
from specpilot.decoding.types import Block, Draft
from specpilot.drafters.base import DraftItem
from specpilot.drafters.branches import choices, with_leaves
from specpilot.models.base import CausalLM, FloatArray, ForwardItem, KVCache, catch_up

_STEP_TOKENS = 2
"""A first pass over more than this is prefill and a step: after a full accept two tokens are fed (the
last drafted one and the bonus token), and that still takes the time of a step."""


@dataclass(slots=True)
class _Chain:
    """One request's block while it grows."""

    item: DraftItem
    place: int
    cache: KVCache
    depth: int
    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    rows: list[DoubleArray] = field(default_factory=list)
    ranked: list[list[tuple[int, float]]] = field(default_factory=list)
    fed: int = 0
    first_ms: float = 0.0
    later_ms: float = 0.0

    @property
    def leaves(self) -> int:
        """How many nodes the plan pays for beside the chain; none where tokens must be samples of q."""
        return 0 if self.item.rule.needs_q else max(0, self.item.max_nodes - self.item.max_draft)

    def extend(self, logits: FloatArray) -> bool:
        """Take the next position's logits; whether its token was kept."""
        item, position = self.item, len(self.tokens) + 1
        step = item.rule.look(logits, len(item.context) + len(self.tokens))
        self.confidences.append(step.confidence)
        if not item.stop.keep(position, step.confidence):
            return False
        self.tokens.append(item.rule.draw(step))
        if item.rule.needs_q and step.q is not None:
            self.rows.append(step.q)
        if self.leaves:
            self.ranked.append(choices(logits))
        return True


class ModelDrafter:
    """Drafts with a :class:`~specpilot.models.base.CausalLM`.

    Its cache is brought in step by :func:`~specpilot.models.base.catch_up`, which covers a rejection, the
    bonus token after a full accept (it must go through the draft as well) and session reuse. A request
    whose stop rule says stop leaves the batch; the others go on.

    Args:
        model: the draft model.
        store: where sessions' caches are kept between requests.
        clock: seconds, monotonic; the stop rule's elapsed times come from it.
    """

    def __init__(
        self,
        model: CausalLM,
        store: CacheStore | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._caches = RequestCaches(model, store)
        self._clock = clock
        self._step_ms = 0.0  # a recent single step, to part a first pass into prefill and step

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def vocab_size(self) -> int:
        """The model's vocabulary size."""
        return self._model.vocab_size

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None = None) -> int:
        """Take up a request; returns how many prompt tokens need no draft prefill."""
        return self._caches.open(request_id, prompt, session_id)

    def close(self, request_id: str) -> None:
        """Let go of a request; its cache goes to its session."""
        self._caches.close(request_id)

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        """One chain per item, drafted in step.

        Where the plan allows more nodes than positions (``max_nodes > max_draft``), the rest of them
        are leaves beside the chain: they cost no draft step.

        An item beyond the draft's own context gets an empty draft: that is no fault.
        """
        start = self._clock()
        growing: list[_Chain] = []
        for place, item in enumerate(items):
            # The last token drafted is never fed, hence the one more.
            depth = min(item.max_draft, item.max_nodes, self._model.context_limit - len(item.context) + 1)
            item.stop.start()
            if depth >= 1 and item.stop.draft_on(1, item.elapsed_ms):
                growing.append(_Chain(item, place, self._caches.of(item.request_id, item.context), depth))
        chains = list(growing)
        while growing:
            growing = self._step(growing, start)
        drafts = [Draft()] * len(items)
        for chain in chains:
            drafts[chain.place] = self._finish(chain)
        return drafts

    def _step(self, growing: list[_Chain], start: float) -> list[_Chain]:
        """One draft step for all; returns those that go on."""
        began = self._clock()
        batch: list[ForwardItem] = []
        widest = 0
        for chain in growing:
            feed = chain.tokens[-1:] or catch_up(chain.cache, chain.item.context)
            chain.fed = chain.fed or len(feed)
            widest = max(widest, len(feed))
            batch.append(ForwardItem(chain.cache, feed, logits_from=len(feed) - 1))
        logits = self._model.forward(batch)
        kept = [chain for chain, rows in zip(growing, logits, strict=True) if chain.extend(rows[0])]
        ended = self._clock()
        # Drawing is part of a step's price, so it is part of its time.
        step_ms = (ended - began) * 1000.0
        for chain in growing:
            if len(chain.confidences) > 1:
                chain.later_ms += step_ms
            else:
                chain.first_ms = step_ms
        if widest <= _STEP_TOKENS:
            self._step_ms = step_ms
        spent_ms = (ended - start) * 1000.0
        return [
            chain
            for chain in kept
            if len(chain.tokens) < chain.depth
            and chain.tokens[-1] not in self._model.eos_token_ids
            and chain.item.stop.draft_on(len(chain.tokens) + 1, chain.item.elapsed_ms + spent_ms)
        ]

    def _finish(self, chain: _Chain) -> Draft:
        prefill_ms, prefill_tokens = 0.0, 0
        if chain.fed > _STEP_TOKENS:
            # The first pass did both; what is beyond the time of a plain step was prefill.
            prefill_tokens = chain.fed - 1
            later = len(chain.confidences) - 1
            step_ms = chain.later_ms / later if later else self._step_ms
            prefill_ms = max(0.0, chain.first_ms - step_ms)
        return Draft(
            block=with_leaves(chain.tokens, chain.ranked, chain.leaves)
            if chain.leaves
            else Block.chain(chain.tokens),
            confidences=tuple(chain.confidences),
            q=np.asarray(chain.rows, dtype=np.float32) if chain.rows else None,
            draft_ms=chain.first_ms + chain.later_ms - prefill_ms,
            prefill_ms=prefill_ms,
            prefill_tokens=prefill_tokens,
        )
