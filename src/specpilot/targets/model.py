"""A causal language model as the target: one forward pass verifies everybody's block."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from specpilot.decoding.caches import CacheStore, RequestCaches
from specpilot.decoding.types import Verification
from specpilot.models.base import CausalLM, ForwardItem, KVCache, catch_up
from specpilot.targets.base import TargetCapabilities, VerifyItem


class ModelTarget:
    """Verifies blocks with a :class:`~specpilot.models.base.CausalLM`.

    What of a context is not cached yet (the whole prompt at first, then the one token emitted last) runs in
    the same pass as the block behind it, so a prompt's prefill costs no pass of its own.

    Args:
        model: the target model.
        store: where sessions' caches are kept between requests.
        max_batch: most requests in a pass.
        clock: seconds, monotonic.

    Raises:
        ValueError: if ``max_batch`` is below 1.
    """

    def __init__(
        self,
        model: CausalLM,
        store: CacheStore | None = None,
        *,
        max_batch: int = 64,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch: {max_batch} is not ≥ 1; use 1 for one request at a time")
        self._model = model
        self._caches = RequestCaches(model, store)
        self._capabilities = TargetCapabilities(True, max_batch, model.context_limit)
        self._clock = clock
        self._verified: dict[str, tuple[KVCache, int]] = {}  # and the rows before its block

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def vocab_size(self) -> int:
        """The model's vocabulary size."""
        return self._model.vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an output."""
        return self._model.eos_token_ids

    @property
    def capabilities(self) -> TargetCapabilities:
        """What it can do."""
        return self._capabilities

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None = None) -> int:
        """Take up a request; returns how many prompt tokens need no prefill (session reuse)."""
        return self._caches.open(request_id, prompt, session_id)

    def verify(self, items: Sequence[VerifyItem]) -> list[Verification]:
        """One forward pass over all items.

        Raises:
            ValueError: for a request that is not open, or more items than ``max_batch``.
            ContextLimitError: if an item would exceed the context.
        """
        if len(items) > self._capabilities.max_batch:
            raise ValueError(
                f"items: {len(items)} is not in 1…{self._capabilities.max_batch}; "
                "verify fewer requests at once"
            )
        cached: list[int] = []
        batch: list[ForwardItem] = []
        for item in items:
            cache = self._caches.of(item.request_id, item.context)
            feed = catch_up(cache, item.context)
            cached.append(len(cache.token_ids))
            batch.append(_forward_item(cache, feed, item))
            self._verified[item.request_id] = (cache, len(item.context))
        start = self._clock()
        logits = self._model.forward(batch)
        verify_ms = (self._clock() - start) * 1000.0
        return [
            Verification(rows, held, len(part.token_ids), verify_ms)
            for rows, held, part in zip(logits, cached, batch, strict=True)
        ]

    def commit(self, request_id: str, path: Sequence[int]) -> None:
        """Keep the rows of the context and of the accepted ``path`` of the last block.

        Raises:
            ValueError: if nothing of the request was verified since the last commit.
        """
        try:
            cache, length = self._verified.pop(request_id)
        except KeyError:
            raise ValueError(f"request_id: {request_id!r} has no verified block; verify one first") from None
        if list(path) == list(range(len(path))):
            cache.truncate(length + len(path))
        else:
            cache.keep_path(length, [length + node for node in path])

    def close(self, request_id: str) -> None:
        """Let go of a request; its cache goes to its session."""
        verified = self._verified.pop(request_id, None)
        if verified is not None:
            # Its block was never committed. A tree's nodes are no text that a later prompt may go on from.
            cache, length = verified
            cache.truncate(min(length, len(cache.token_ids)))
        self._caches.close(request_id)


def _forward_item(cache: KVCache, feed: list[int], item: VerifyItem) -> ForwardItem:
    block = item.block
    last = len(feed) - 1
    parents = None
    if not block.is_chain:
        parents = [
            *range(-1, last),
            *(last if parent < 0 else len(feed) + parent for parent in block.parents),
        ]
    return ForwardItem(cache, [*feed, *block.token_ids], parents, logits_from=last)
