"""Typing what was suggested: the verified rest costs no target pass, and is what the target would say."""

from __future__ import annotations

import re
from typing import Any

import pytest
from live_server import Running, Serve, scripted_pair

from specpilot.serving.words import whole_words
from specpilot.testing import plain_greedy

PROMPTS = (
    "You can apply for a permit",
    "The committee recommends that",
    "Thank you for your message. I will",
    "In the first part of this report we",
)


def suggest(run: Running, prompt: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    reply = run.post({"prompt": prompt, **fields})
    assert reply.status == 200, reply.body
    return reply.json["choices"][0]["text"], reply.json["specpilot"]


def passes(run: Running) -> int:
    with run.server.engine.lock:
        return run.server.controller.ledger.passes_started


def words(text: str) -> list[str]:
    """The text in pieces that each end with a word: ' one', ' two,' …"""
    return re.findall(r"^\S+|\s+\S+", text)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "coupled"])
def test_typing_through_a_suggestion_costs_no_pass(bundled: Running, sampling: dict[str, Any]) -> None:
    user = "typist" + ("-seeded" if sampling else "")
    typed_through = 0
    for prompt in PROMPTS:
        whole, account = suggest(bundled, prompt, user=user, **sampling)
        assert account["target_passes"] > 0
        parts = words(whole)
        for count in range(1, len(parts)):
            typed = "".join(parts[:count])
            before = passes(bundled)
            rest, account = suggest(bundled, prompt + typed, user=user, **sampling)
            if account["carried_tokens"] and account["cached"]:
                assert typed + rest == whole
                assert passes(bundled) == before
                assert (account["target_passes"], account["cycles"]) == (0, 0)
                assert account["e2e_ms"] >= 0.0
                typed_through += 1
    # The tokenizer may split typed text otherwise than the model did; that is rare.
    assert typed_through >= 5


def test_what_is_served_is_what_the_target_would_say(bundled: Running) -> None:
    pair = bundled.server.pair
    for prompt in PROMPTS:
        whole, _ = suggest(bundled, prompt, user="exact")
        typed = words(whole)[0]
        rest, account = suggest(bundled, prompt + typed, user="exact")
        wanted = pair.decode(plain_greedy(pair.target, pair.encode(prompt + typed), 24))
        assert wanted.startswith(rest), account


def test_the_hidden_tail_is_kept_and_carried_on(bundled: Running) -> None:
    """What was verified beyond the last whole word starts the next suggestion: fewer tokens to decode."""
    pair = bundled.server.pair
    carried = 0
    for prompt in PROMPTS:
        options = {"user": "tail", "max_tokens": 40}
        shown, account = suggest(bundled, prompt, **options)
        full, _ = suggest(bundled, prompt, whole_words=False, **options)
        assert full.startswith(shown)
        assert shown == whole_words(full)
        hidden = full[len(shown) :]
        more, account = suggest(bundled, prompt + shown, **options)
        wanted = pair.decode(plain_greedy(pair.target, pair.encode(prompt + shown), 40))
        assert wanted.startswith(more)
        if account["carried_tokens"]:
            assert account["target_passes"] > 0
            assert more.startswith(hidden.rstrip())
            assert account["verified_tokens"] > account["carried_tokens"]
            carried += 1
    assert carried


def test_unseeded_samples_are_not_served_again(bundled: Running) -> None:
    for _ in range(2):
        _, account = suggest(bundled, PROMPTS[0], user="sampler", temperature=0.7)
        assert (account["cached"], account["carried_tokens"]) == (False, 0)


def test_other_parameters_are_another_text(bundled: Running) -> None:
    options: dict[str, Any] = {"user": "params", "temperature": 0.9}
    suggest(bundled, PROMPTS[0], seed=1, **options)
    _, account = suggest(bundled, PROMPTS[0], seed=2, **options)
    assert not account["carried_tokens"]
    _, account = suggest(bundled, PROMPTS[0], seed=1, top_k=5, **options)
    assert not account["carried_tokens"]
    _, account = suggest(bundled, PROMPTS[0], seed=1, **options)
    assert account["carried_tokens"]


def test_limits_of_the_second_request_hold(bundled: Running) -> None:
    options: dict[str, Any] = {"user": "limits", "whole_words": False}
    whole, first = suggest(bundled, PROMPTS[0], **options)
    assert first["verified_tokens"] > 3
    two, account = suggest(bundled, PROMPTS[0], max_tokens=2, **options)
    assert account["cached"]
    assert (account["stop_cause"], account["verified_tokens"]) == ("max_tokens", 2)
    assert whole.startswith(two)
    word = whole.split()[1]
    stopped, account = suggest(bundled, PROMPTS[0], stop=word, **options)
    assert (account["cached"], account["stop_cause"]) == (True, "stop")
    assert stopped == whole[: whole.index(word)]


def test_a_short_request_does_not_shorten_the_next(bundled: Running) -> None:
    options: dict[str, Any] = {"user": "short"}
    suggest(bundled, PROMPTS[1], max_tokens=2, **options)
    text, account = suggest(bundled, PROMPTS[1], max_tokens=24, **options)
    assert (account["carried_tokens"], account["cached"]) == (2, False)
    pair = bundled.server.pair
    assert pair.decode(plain_greedy(pair.target, pair.encode(PROMPTS[1]), 24)).startswith(text)
    assert account["verified_tokens"] > 2


def test_a_streamed_answer_from_the_cache(bundled: Running) -> None:
    whole, _ = suggest(bundled, PROMPTS[2], user="stream")
    before = passes(bundled)
    reply = bundled.post({"prompt": PROMPTS[2], "user": "stream", "stream": True})
    assert b'"cached":true' in reply.body
    assert passes(bundled) == before
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert whole.split()[0].encode() in reply.body


def test_it_can_be_declined_and_switched_off(bundled: Running, serve: Serve) -> None:
    from specpilot.serving.config import ServerConfig

    for _ in range(2):
        _, account = suggest(bundled, PROMPTS[3], user="declines", continuation=False)
        assert (account["cached"], account["carried_tokens"]) == (False, 0)
    off = serve(scripted_pair(), ServerConfig(port=0, measure=False, continuation_tokens=0))
    for _ in range(2):
        _, account = suggest(off, "abc", whole_words=False)
        assert not account["cached"]
