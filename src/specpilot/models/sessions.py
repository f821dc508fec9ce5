"""Keeps the KV caches of ended requests for later requests of the same session.

A writing assistant calls again and again with nearly the same document; what its last request has cached need
not be prefilled again, and a cold prefill costs more than both target passes of a request.

A cache that is acquired leaves the store: it belongs to the caller until it is released, so two requests of
one session never share rows. Sessions are kept apart by their key alone; a server that has tenants makes the
tenant a part of it. The store never holds more than ``max_bytes``: the least recently used go first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from specpilot.models.base import KVCache, common_prefix

PER_SESSION = 2
"""Most caches kept for one session: they serve a user with two documents open."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counters since the start, and what is held now.

    A miss is an acquisition that found nothing worth reusing; an eviction a cache dropped for space, or
    because its session has newer ones.
    """

    hits: int
    misses: int
    evictions: int
    caches: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    session_id: str
    cache: KVCache
    nbytes: int


class CacheStore:
    """Bounded store of caches by session; safe for concurrent use.

    Args:
        max_bytes: most bytes held, as the caches count themselves (allocated); 0 keeps nothing.
        min_shared: fewest common prefix tokens for which a cache is handed out, ≥ 1. Below, it stays: a
            caller would drop nearly all its rows.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(self, max_bytes: int, *, min_shared: int = 16) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: {max_bytes} is not ≥ 0; 0 keeps nothing")
        if min_shared < 1:
            raise ValueError(f"min_shared: {min_shared} is not ≥ 1; a cache that shares nothing is of no use")
        self._max_bytes = max_bytes
        self._min_shared = min_shared
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by the cache's id, oldest first
        self._sessions: dict[str, list[int]] = {}  # the same, by session
        self._bytes = 0
        self._hits = self._misses = self._evictions = 0
        self._lock = Lock()

    def shared(self, session_id: str, context: Sequence[int]) -> int:
        """How many tokens of ``context`` the session's best cache would spare; nothing is taken out."""
        with self._lock:
            most = max(
                (
                    common_prefix(self._entries[key].cache.token_ids, context)
                    for key in self._sessions.get(session_id, ())
                ),
                default=0,
            )
        return most if most >= self._min_shared else 0

    def acquire(self, session_id: str, context: Sequence[int]) -> KVCache | None:
        """Take out the session's cache that shares most with ``context``; None if none shares enough."""
        with self._lock:
            best, most = None, self._min_shared - 1
            for key in self._sessions.get(session_id, ()):
                shared = common_prefix(self._entries[key].cache.token_ids, context)
                if shared > most:
                    best, most = key, shared
            if best is None:
                self._misses += 1
                return None
            self._hits += 1
            return self._remove(best).cache

    def release(self, session_id: str, cache: KVCache) -> None:
        """Hand a cache in. The caller must not use it any more; it may be dropped at once.

        Raises:
            ValueError: if the store holds it already.
        """
        nbytes = cache.nbytes
        with self._lock:
            if id(cache) in self._entries:
                raise ValueError(f"cache: session {session_id!r} has released it already; acquire one first")
            if not cache.token_ids:
                return
            self._entries[id(cache)] = _Entry(session_id, cache, nbytes)
            self._sessions.setdefault(session_id, []).append(id(cache))
            self._bytes += nbytes
            own = self._sessions[session_id]
            while len(own) > PER_SESSION:
                self._evict(own[0])
            while self._bytes > self._max_bytes:
                self._evict(next(iter(self._entries)))

    @property
    def stats(self) -> CacheStats:
        """Counters and sizes."""
        with self._lock:
            return CacheStats(self._hits, self._misses, self._evictions, len(self._entries), self._bytes)

    def _evict(self, key: int) -> None:
        self._remove(key)
        self._evictions += 1

    def _remove(self, key: int) -> _Entry:
        entry = self._entries.pop(key)
        self._bytes -= entry.nbytes
        own = self._sessions[entry.session_id]
        own.remove(key)
        if not own:  # a dictionary of all sessions ever seen would grow without bound
            del self._sessions[entry.session_id]
        return entry
