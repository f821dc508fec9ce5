"""The session store against a plain model of it, under any sequence of calls."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from specpilot.models.base import common_prefix
from specpilot.models.sessions import PER_SESSION, CacheStats, CacheStore

MAX_BYTES, MIN_SHARED = 100, 3


class FakeCache:
    """Just tokens and a size."""

    def __init__(self, token_ids: list[int], nbytes: int) -> None:
        self.token_ids = token_ids
        self.nbytes = nbytes

    def truncate(self, length: int) -> None:
        raise AssertionError("the store must not change a cache")

    def keep_path(self, length: int, rows: object) -> None:
        raise AssertionError("the store must not change a cache")


TOKENS = st.lists(st.integers(0, 1), max_size=8)
SESSIONS = st.sampled_from(["ada", "ada2", "bob"])


class StoreMachine(RuleBasedStateMachine):
    """The model: a list of (session, cache), oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.store = CacheStore(MAX_BYTES, min_shared=MIN_SHARED)
        self.held: list[tuple[str, FakeCache]] = []
        self.hits = self.misses = self.evictions = 0

    @rule(session=SESSIONS, tokens=TOKENS, nbytes=st.integers(0, 120))
    def release(self, session: str, tokens: list[int], nbytes: int) -> None:
        cache = FakeCache(tokens, nbytes)
        self.store.release(session, cache)
        if not tokens:
            return
        self.held.append((session, cache))
        own = [entry for entry in self.held if entry[0] == session]
        if len(own) > PER_SESSION:
            self.held.remove(own[0])
            self.evictions += 1
        while sum(cache.nbytes for _, cache in self.held) > MAX_BYTES:
            self.held.pop(0)
            self.evictions += 1

    @rule(session=SESSIONS, context=TOKENS)
    def acquire(self, session: str, context: list[int]) -> None:
        found = self.store.acquire(session, context)
        shared = [
            (common_prefix(cache.token_ids, context), cache) for owner, cache in self.held if owner == session
        ]
        most = max((count for count, _ in shared), default=0)
        if most < MIN_SHARED:
            assert found is None
            self.misses += 1
            return
        assert found is next(cache for count, cache in shared if count == most)
        self.held = [entry for entry in self.held if entry[1] is not found]  # invisible until released
        self.hits += 1

    @invariant()
    def agrees(self) -> None:
        nbytes = sum(cache.nbytes for _, cache in self.held)
        assert nbytes <= MAX_BYTES
        assert self.store.stats == CacheStats(self.hits, self.misses, self.evictions, len(self.held), nbytes)


StoreMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestStore = StoreMachine.TestCase


def test_two_requests_of_one_session_never_share_a_cache() -> None:
    store = CacheStore(1000, min_shared=1)
    cache = FakeCache([1, 2, 3], 10)
    store.release("s", cache)
    assert store.acquire("s", [1, 2, 3, 4]) is cache
    assert store.acquire("s", [1, 2, 3, 4]) is None
    store.release("s", cache)
    with pytest.raises(ValueError, match="released it already"):
        store.release("s", cache)


def test_a_context_may_be_any_sequence() -> None:
    store = CacheStore(1000, min_shared=3)
    cache = FakeCache([1, 2, 3], 10)
    store.release("s", cache)
    assert store.acquire("s", (1, 2, 3, 4)) is cache


def test_sessions_that_are_gone_leave_nothing_behind() -> None:
    store = CacheStore(100)
    for index in range(1000):
        store.release(f"session {index}", FakeCache([1], 10))
    assert (store.stats.caches, store.stats.bytes) == (10, 100)
    assert len(store._sessions) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_bytes": -1}, "max_bytes: -1"),
        ({"max_bytes": 1, "min_shared": 0}, "min_shared: 0"),
    ],
)
def test_values_out_of_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacheStore(**arguments)
