"""The KV cache that each request holds in one model, and its way from and back to the session store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specpilot.models.base import CausalLM, KVCache, common_prefix


class CacheStore(Protocol):
    """Keeps the caches of ended requests for later ones of the same session."""

    def acquire(self, session_id: str, context: Sequence[int]) -> KVCache | None:
        """Take out a cache worth reusing for ``context``, if there is one; it is then the caller's."""
        ...

    def release(self, session_id: str, cache: KVCache) -> None:
        """Hand a cache in; it may be dropped."""
        ...


@dataclass(slots=True)
class _Held:
    cache: KVCache
    session_id: str | None


class RequestCaches:
    """One cache per open request of one model."""

    def __init__(self, model: CausalLM, store: CacheStore | None = None) -> None:
        self._model = model
        self._store = store
        self._held: dict[str, _Held] = {}

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None) -> int:
        """Take up a request; returns how many prompt tokens need no prefill.

        Raises:
            ValueError: if the id is in use.
        """
        if request_id in self._held:
            raise ValueError(f"request_id: {request_id!r} is open already; ids are used once at a time")
        cache = self._acquire(session_id, prompt)
        held = _Held(self._model.new_cache() if cache is None else cache, session_id)
        self._held[request_id] = held
        return max(0, min(common_prefix(held.cache.token_ids, prompt), len(prompt) - 1))

    def of(self, request_id: str, context: Sequence[int]) -> KVCache:
        """The request's cache.

        One that is still empty asks the store once more: the session's earlier request may have ended
        while this one was waiting.

        Raises:
            ValueError: for a request that is not open.
        """
        held = self._held.get(request_id)
        if held is None:
            raise ValueError(f"request_id: {request_id!r} is not open; open it first")
        if not held.cache.token_ids:
            held.cache = self._acquire(held.session_id, context) or held.cache
        return held.cache

    def close(self, request_id: str) -> None:
        """Let go of a request; its cache goes to the store if it has a session."""
        held = self._held.pop(request_id, None)
        if held is not None and held.session_id is not None and self._store is not None:
            self._store.release(held.session_id, held.cache)

    def _acquire(self, session_id: str | None, context: Sequence[int]) -> KVCache | None:
        if session_id is None or self._store is None:
            return None
        return self._store.acquire(session_id, context)
