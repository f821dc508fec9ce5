"""Fields of a body: each is honoured or refused by name, never silently ignored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from live_server import EOS, UNHURRIED, Gated, Letters, Serve, scripted, scripted_pair

from specpilot.models.base import FloatArray, ForwardItem
from specpilot.pair import Pair
from specpilot.serving.chat import ChatFormat
from specpilot.testing import plain_greedy

EXACT = {"continuation": False, "whole_words": False, "max_tokens": int(UNHURRIED.pass_budget)}
"""No more tokens than passes: the budget cuts nothing, so that the same prompt gives the same text."""


def test_a_prompt_in_each_of_its_forms(serve: Serve) -> None:
    run = serve(scripted_pair())
    forms: list[object] = ["abc", ["abc"], [0, 1, 2], [[0, 1, 2]]]
    answers = [run.post({"prompt": form, **EXACT}).json["choices"][0]["text"] for form in forms]
    assert len(answers[0]) > 0
    assert len(set(answers)) == 1
    empties: list[object] = ["", [], [""], [[]]]
    for empty in empties:
        assert run.post({"prompt": empty, **EXACT}).status == 200


@pytest.mark.parametrize(
    "prompt", [["a", "b"], [[0], [1]], [True], [1.5], [-1], [99], [["a"]], [0, "a"], None, {}, 3], ids=str
)
def test_a_prompt_in_no_form(serve: Serve, prompt: object) -> None:
    reply = serve(scripted_pair()).post({"prompt": prompt})
    assert reply.status == 400
    assert reply.error["param"].split("[")[0] == "prompt"
    assert reply.error["message"].startswith("prompt")
    assert "valid string" not in reply.error["message"]


CHAT = {"messages": [{"role": "user", "content": "ab"}]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": "ab", "n": 2}, "n"),
        ("completions", {"prompt": "ab", "best_of": 2}, "best_of"),
        ("completions", {"prompt": "ab", "echo": True}, "echo"),
        ("completions", {"prompt": "ab", "logprobs": 0}, "logprobs"),
        ("completions", {"prompt": "ab", "suffix": "x"}, "suffix"),
        ("completions", {"prompt": "ab", "presence_penalty": 0.5}, "presence_penalty"),
        ("completions", {"prompt": "ab", "logit_bias": {"1": 5}}, "logit_bias"),
        ("completions", {"prompt": "ab", "stop": ["a", ""]}, "stop"),
        ("completions", {"prompt": "ab", "min_p": 0.1}, "min_p"),
        (
            "completions",
            {"prompt": "ab", "stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ("chat/completions", {**CHAT, "logprobs": True}, "logprobs"),
        ("chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {**CHAT, "tools": [{"type": "function"}]}, "tools"),
        ("chat/completions", {**CHAT, "functions": []}, "functions"),
        ("chat/completions", {**CHAT, "max_completion_tokens": 5000}, "max_completion_tokens"),
        ("chat/completions", {**CHAT, "max_tokens": 5000}, "max_tokens"),
        ("chat/completions", {**CHAT, "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_supported_is_refused_by_name(
    serve: Serve, path: str, body: dict[str, Any], param: str
) -> None:
    reply = serve(scripted_pair()).post(body, f"/v1/{path}")
    assert reply.status == 400
    assert reply.error["param"] == param
    assert reply.error["message"].startswith(param)


@pytest.mark.parametrize("stop", [list("abcde"), 5, ["a", None], {}], ids=str)
def test_what_stop_may_be_is_said(serve: Serve, stop: object) -> None:
    reply = serve(scripted_pair()).post({"prompt": "ab", "stop": stop})
    assert (reply.status, reply.error["param"]) == (400, "stop")
    assert "at most 4" in reply.error["message"]


def test_neutral_values_are_taken(serve: Serve) -> None:
    run = serve(scripted_pair())
    neutral = {
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "stop": [],
        "user": "u",
    }
    text = {"prompt": "ab", "best_of": 1, "echo": False, "logprobs": None, "suffix": None}
    assert run.post({**neutral, **text}).status == 200
    chat = {**CHAT, "logprobs": False, "tools": [], "tool_choice": "none", "max_tokens": 4}
    assert run.post({**neutral, **chat, "max_completion_tokens": 4}, "/v1/chat/completions").status == 200


def test_max_tokens_that_nobody_asked_for_refuses_nobody(serve: Serve) -> None:
    """Near the end of the context the default shrinks to what is left; a number asked for does not."""
    run = serve(scripted_pair())
    limit = scripted().context_limit
    reply = run.post({"prompt": "a" * (limit - 3), "whole_words": False})
    assert reply.status == 200
    assert reply.json["usage"]["completion_tokens"] <= 3
    assert run.post({"prompt": "a" * (limit - 1)}).status == 200
    for refused in ({"prompt": "a" * limit}, {"prompt": "a" * (limit - 3), "max_tokens": 4}):
        assert run.post(refused).error["code"] == "context_length_exceeded"


def test_a_greedy_output_is_known_whatever_else_is_said(serve: Serve) -> None:
    """An editor that sends a fresh seed or a top_p with temperature 0 asks for the same text."""
    run = serve(scripted_pair())

    def cached(**fields: object) -> bool:
        found: bool = run.post({"prompt": "abc", "whole_words": False, **fields}).json["specpilot"]["cached"]
        return found

    assert not cached(seed=1)
    assert cached(seed=2, top_p=0.5, top_k=3)
    assert not cached(temperature=0.7, seed=1)
    assert cached(temperature=0.7, seed=1)
    assert not cached(temperature=0.7, seed=2)
    assert not cached(temperature=0.7, seed=1, top_p=0.5)


class Branching(Gated):
    """Notes whether a pass verified a tree."""

    seen = False

    def forward(self, batch: Sequence[ForwardItem]) -> list[FloatArray]:
        self.seen = self.seen or any(
            item.parents is not None and tuple(item.parents) != tuple(range(-1, len(item.parents) - 1))
            for item in batch
        )
        return super().forward(batch)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "seed": 4}])
def test_sampled_requests_are_served_with_trees(serve: Serve, sampling: dict[str, object]) -> None:
    """With a seed and without, where the policy plans trees; rejection sampling would know chains only."""
    for nodes in (16, 0):
        target = Branching(scripted())
        promises = replace(UNHURRIED, pass_budget=6.0, max_nodes=nodes)
        run = serve(scripted_pair(target, scripted().variant(noise=0.8)), promises=promises)
        for prompt in ("abc", "bcd", "cde", "def", "efg", "fgh"):
            body = {"prompt": prompt, "max_tokens": 24, "whole_words": False, **sampling}
            assert run.post(body).status == 200
        assert target.seen == (nodes > 0)


def test_a_participants_name_reaches_the_template(serve: Serve) -> None:
    chat = ChatFormat("{% for m in messages %}{{ m.get('name', 'b') }}{{ m.content }}{% endfor %}")
    assert chat.prompt([{"role": "user", "content": "c", "name": "a"}]) == "ac"
    run = serve(scripted_pair(), chat=chat)
    by_name = {
        name: run.post(
            {"messages": [{"role": "user", "content": "c", **({"name": name} if name else {})}], **EXACT},
            "/v1/chat/completions",
        ).json["choices"][0]["message"]["content"]
        for name in ("", "a")
    }
    assert by_name[""] == run.post({"prompt": "bc", **EXACT}).json["choices"][0]["text"]
    assert by_name["a"] == run.post({"prompt": "ac", **EXACT}).json["choices"][0]["text"]


class Halves(Letters):
    """Each token is one byte of a two-byte character, or half of one of four bytes."""

    PARTS = (b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98\x80")

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(self.PARTS[token % 4] for token in token_ids).decode("utf-8", "replace")


def expected(prompt: str, tokens: int) -> str:
    """The text of so many greedy tokens, of all their bytes at once."""
    found = plain_greedy(scripted(), Letters().encode(prompt), tokens)
    return Halves().decode([token for token in found if token != EOS])


def events(body: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in body.decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_characters_split_across_tokens_arrive_whole(serve: Serve) -> None:
    """Streamed or not; an unfinished character waits for its other half.

    Where the budget cuts depends on the draft lengths, and so on what passes took: each has its own number of
    tokens.
    """
    run = serve(Pair(scripted(), scripted().variant(noise=0.3), Halves()))
    for prompt in ("ab", "cd", "ef", "gh"):
        fields = {"prompt": prompt, "max_tokens": 24, "continuation": False, "whole_words": False}
        answer = run.post(fields).json
        chunks = events(run.post({**fields, "stream": True}).body)
        whole, streamed = answer["choices"][0]["text"], "".join(c["choices"][0]["text"] for c in chunks)
        for text, account in ((whole, answer["specpilot"]), (streamed, chunks[-1]["specpilot"])):
            assert text == expected(prompt, account["verified_tokens"])


def test_usage_is_null_until_its_chunk(serve: Serve) -> None:
    """As OpenAI writes it: with include_usage every chunk has the field, the last one the numbers."""
    run = serve(scripted_pair())
    for path, body in (("/v1/completions", {"prompt": "ab"}), ("/v1/chat/completions", CHAT)):
        asked = {**body, **EXACT, "stream": True, "stream_options": {"include_usage": True}}
        reply = run.post(asked, path)
        assert reply.headers["content-type"].startswith("text/event-stream")
        *chunks, last = events(reply.body)
        assert all(chunk["usage"] is None for chunk in chunks)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] > 0
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons[-1] in ("stop", "length")
        assert set(reasons[:-1]) <= {None}
        plain = events(run.post({**body, **EXACT, "stream": True}, path).body)
        assert all("usage" not in chunk for chunk in plain)
