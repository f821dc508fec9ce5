"""The continuation cache: exact, bounded, apart by scope."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import Reply, Serve, scripted_pair

from specpilot.control.types import StopCause
from specpilot.serving.config import ServerConfig
from specpilot.serving.continuation import ContinuationCache, Rest

BUDGET, EOS = StopCause.BUDGET, StopCause.EOS


def test_what_was_verified_is_served_as_it_is_typed() -> None:
    cache = ContinuationCache(100)
    cache.put("me", [1, 2, 3], [4, 5, 6], BUDGET)
    assert cache.get("me", [1, 2, 3]) == Rest((4, 5, 6), BUDGET)
    assert cache.get("me", [1, 2, 3, 4]) == Rest((5, 6), BUDGET)
    assert cache.get("me", [1, 2, 3, 4, 5]) == Rest((6,), BUDGET)
    # All typed, something else typed, a shorter prompt, somebody else: nothing is known.
    assert cache.get("me", [1, 2, 3, 4, 5, 6]) is None
    assert cache.get("me", [1, 2, 3, 7]) is None
    assert cache.get("me", [1, 2]) is None
    assert cache.get("you", [1, 2, 3]) is None


def test_the_same_tail_in_another_text_is_no_match() -> None:
    tail = list(range(10, 20))
    cache = ContinuationCache(1000)
    cache.put("me", [1, *tail], [30, 31], BUDGET)
    assert cache.get("me", [2, *tail]) is None
    # Both have the same key; the one written last is found, though the other is longer.
    cache.put("me", [2, *tail], [40], BUDGET)
    assert cache.get("me", [2, *tail]) == Rest((40,), BUDGET)
    assert cache.get("me", [1, *tail]) is None


def test_the_one_that_knows_more_stays() -> None:
    cache = ContinuationCache(1000)
    cache.put("me", [1], [2, 3, 4], BUDGET)
    cache.put("me", [1, 2], [3], BUDGET)
    assert cache.get("me", [1, 2]) == Rest((3, 4), BUDGET)
    assert len(cache) == 1
    cache.put("me", [1, 2, 3], [4, 5], EOS)
    assert cache.get("me", [1, 2]) == Rest((3, 4), BUDGET)
    assert cache.get("me", [1, 2, 3]) == Rest((4, 5), EOS)


def test_what_a_request_itself_limited_does_not_bind_the_next() -> None:
    cache = ContinuationCache(1000)
    cache.put("me", [1], [2, 3], StopCause.MAX_TOKENS)
    assert cache.get("me", [1]) == Rest((2, 3), StopCause.MAX_TOKENS, lasting=False)
    assert cache.get("me", [1, 2]) == Rest((3,), StopCause.MAX_TOKENS)


def test_what_was_cut_by_its_requests_own_limits_does_not_bind_the_next() -> None:
    """One that asked for no drafts, or for an answer within 50 ms, knows less than another may get."""
    cache = ContinuationCache(1000)
    cache.put("me", [1], [2, 3], BUDGET, limited=True)
    assert cache.get("me", [1]) == Rest((2, 3), BUDGET, lasting=False)
    assert cache.get("me", [1, 2]) == Rest((3,), BUDGET)
    cache.put("me", [1], [2, 3, 4], BUDGET)
    assert cache.get("me", [1]) == Rest((2, 3, 4), BUDGET)


@pytest.mark.parametrize("cause", [StopCause.CANCELLED, StopCause.ERROR])
def test_what_was_broken_off_is_only_a_start(cause: StopCause) -> None:
    """An editor that cancels and asks again gets more than the word that was verified by then."""
    cache = ContinuationCache(1000)
    cache.put("me", [1], [2, 3], cause)
    assert cache.get("me", [1]) == Rest((2, 3), cause, lasting=False)
    # Typing on through what a stream had shown of it costs no pass.
    assert cache.get("me", [1, 2]) == Rest((3,), cause)


def test_many_small_entries_are_bounded_too() -> None:
    """An entry costs memory beyond its tokens: a scope's names alone may be half a kilobyte."""
    cache = ContinuationCache(1_000_000, max_entries=3)
    for prompt in range(10, 20):
        cache.put("me", [prompt], [1], BUDGET)
    assert len(cache) == 3
    assert cache.get("me", [16]) is None
    assert cache.get("me", [17]) is not None
    with pytest.raises(ValueError, match="max_entries: 0"):
        ContinuationCache(1, max_entries=0)


def test_least_recently_used_goes_first() -> None:
    cache = ContinuationCache(9)
    cache.put("me", [1, 2], [3], BUDGET)
    cache.put("me", [4, 5], [6], BUDGET)
    cache.put("me", [7, 8], [9], BUDGET)
    assert cache.tokens == 9
    assert cache.get("me", [1, 2]) is not None
    cache.put("me", [10, 11], [12], BUDGET)
    assert cache.get("me", [4, 5]) is None
    assert cache.get("me", [1, 2]) is not None
    assert cache.tokens == 9


def test_off_and_misused() -> None:
    cache = ContinuationCache(0)
    cache.put("me", [1], [2], BUDGET)
    assert cache.get("me", [1]) is None
    with pytest.raises(ValueError, match="max_tokens: -1"):
        ContinuationCache(-1)


TOKENS = st.lists(st.integers(0, 1), max_size=12)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), TOKENS, TOKENS), max_size=12),
    st.integers(0, 60),
    st.tuples(st.sampled_from("ab"), TOKENS),
)
def test_never_more_than_allowed_never_another_text(
    puts: list[tuple[str, list[int], list[int]]], limit: int, ask: tuple[str, list[int]]
) -> None:
    """Whatever was put in: the bound holds, and an answer continues a text of its own scope."""
    cache = ContinuationCache(limit)
    for scope, prompt, output in puts:
        cache.put(scope, prompt, output, BUDGET)
        assert cache.tokens <= limit
    rest = cache.get(*ask)
    if rest is not None:
        scope, prompt = ask
        assert rest.tokens
        assert any(
            own == scope and [*prompt, *rest.tokens] == [*start, *output] and len(start) <= len(prompt)
            for own, start, output in puts
        )
    # Dropping everything leaves no trace.
    for entry in list(cache._entries.values()):
        cache._drop(entry)
    assert (cache.tokens, cache._index) == (0, {})


def test_text_held_back_for_a_stop_string_is_in_a_served_rest(serve: Serve) -> None:
    """The last letter might begin the stop string; it does not, and belongs to the answer as in any other."""
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False))
    ask: dict[str, Any] = {"prompt": "ab", "max_tokens": 24, "whole_words": False}
    first = run.post(ask).json
    text = first["choices"][0]["text"]
    assert first["specpilot"]["stop_cause"] == "budget"
    ask["stop"] = [text[-1] + "@never@"]
    for streamed in (False, True):
        again = run.post(ask | {"stream": streamed})
        assert again.status == 200
        assert text[-1] == last_letter(again, streamed=streamed)


def last_letter(answer: Reply, *, streamed: bool) -> str:
    if not streamed:
        assert answer.json["specpilot"]["cached"]
        return str(answer.json["choices"][0]["text"])[-1]
    events = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)[-1]
