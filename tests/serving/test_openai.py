"""The official openai client against a running server: sync, async, streaming, errors."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import openai
import pytest
from live_server import UNHURRIED, Running, Serve, scripted_pair

from specpilot.serving.words import whole_words
from specpilot.testing import plain_greedy

PROMPT = "You can apply for a permit"


def client(run: Running, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{run.url}/v1", api_key="none", max_retries=0, **options)


def block(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_extra["specpilot"]
    return found


def greedy(run: Running, prompt: str, tokens: int) -> str:
    pair = run.server.pair
    text: str = pair.decode(plain_greedy(pair.target, pair.encode(prompt), tokens))
    return text


def test_models(bundled: Running) -> None:
    assert [model.id for model in client(bundled).models.list()] == ["specpilot"]
    assert client(bundled).models.retrieve("specpilot").owned_by == "specpilot"


def test_a_completion_is_a_prefix_of_plain_greedy(bundled: Running) -> None:
    answer = client(bundled).completions.create(
        model="specpilot", prompt=PROMPT, max_tokens=24, temperature=0, extra_body={"continuation": False}
    )
    choice = answer.choices[0]
    account = block(answer)
    assert choice.text
    assert greedy(bundled, PROMPT, 24).startswith(choice.text)
    assert choice.finish_reason == "length"
    assert account["stop_cause"] == "budget"
    assert account["target_passes"] == account["cycles"] >= 3
    assert account["verified_tokens"] == answer.usage.completion_tokens  # type: ignore[union-attr]
    assert account["tokens_per_pass"] == pytest.approx(
        account["verified_tokens"] / account["cycles"], abs=1e-3
    )
    assert not account["cached"]


def test_max_tokens_and_stop_end_exactly(bundled: Running) -> None:
    two = client(bundled).completions.create(
        model="specpilot", prompt=PROMPT, max_tokens=2, extra_body={"continuation": False}
    )
    assert two.choices[0].text == greedy(bundled, PROMPT, 2)
    assert block(two)["stop_cause"] == "max_tokens"
    full = greedy(bundled, PROMPT, 12)
    word = full.split()[1]
    stopped = client(bundled).completions.create(
        model="specpilot", prompt=PROMPT, stop=[word], extra_body={"continuation": False}
    )
    assert stopped.choices[0].text == full[: full.index(word)]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_stream_gives_the_same_text_in_whole_words(bundled: Running) -> None:
    options: dict[str, Any] = {
        "model": "specpilot",
        "prompt": PROMPT,
        "extra_body": {"continuation": False, "session_id": "stream"},
    }
    whole = client(bundled).completions.create(**options)
    chunks = list(
        client(bundled).completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    # Each is cut where its own passes ended, at a word.
    for one in (text, whole.choices[0].text):
        assert one
        full = greedy(bundled, PROMPT, 40)
        assert full.startswith(one)
        assert one == whole_words(one + " ")
        assert not full[len(one)].isalnum()
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    account = block(chunks[-2])
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == account["verified_tokens"]
    assert account["target_passes"] >= 3


def test_a_chat_streamed_and_not(bundled: Running) -> None:
    options: dict[str, Any] = {
        "model": "specpilot",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 3,
        "extra_body": {"continuation": False},
    }
    answer = client(bundled).chat.completions.create(**options)
    text = answer.choices[0].message.content
    assert text
    assert greedy(bundled, PROMPT, 3) == text
    chunks = list(client(bundled).chat.completions.create(**options, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


def test_many_at_once_from_the_async_client(bundled: Running) -> None:
    """Requests share passes; each still gets its own text."""
    prompts = [f"{PROMPT} number {index}" for index in range(8)]

    async def ask() -> list[str]:
        many = openai.AsyncOpenAI(base_url=f"{bundled.url}/v1", api_key="none", max_retries=0)
        async with many:
            asks = [many.completions.create(model="specpilot", prompt=prompt) for prompt in prompts]
            answers = await asyncio.gather(*asks)
            # The same again comes from the continuation cache.
            stream = await many.completions.create(model="specpilot", prompt=prompts[0], stream=True)
            pieces = [chunk.choices[0].text async for chunk in stream if chunk.choices]
        assert "".join(pieces) == answers[0].choices[0].text
        return [answer.choices[0].text for answer in answers]

    for prompt, text in zip(prompts, asyncio.run(ask()), strict=True):
        assert text
        assert greedy(bundled, prompt, 24).startswith(text)


def test_seeded_sampling_repeats(bundled: Running) -> None:
    def ask(seed: int, max_draft: int) -> str:
        extra = {"continuation": False, "speculation": {"max_draft": max_draft}}
        answer = client(bundled).completions.create(
            model="specpilot", prompt=PROMPT, temperature=0.9, seed=seed, max_tokens=3, extra_body=extra
        )
        return answer.choices[0].text

    # Three tokens in three passes: the same text with and without speculation.
    assert ask(7, 8) == ask(7, 0)
    assert len({ask(seed, 4) for seed in range(6)}) > 1


def test_speculation_off(bundled: Running) -> None:
    extra = {"continuation": False, "speculation": {"mode": "off", "explain": True}}
    answer = client(bundled).completions.create(model="specpilot", prompt=PROMPT, extra_body=extra)
    account = block(answer)
    assert account["drafted_tokens"] == 0
    assert account["tokens_per_pass"] == 1.0
    assert {cycle["own_kind"] for cycle in account["cycle_details"]} == {"plain"}


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("temperature", {"temperature": -1}),
        ("temperature", {"temperature": "hot"}),
        ("temperature", {"temperature": 2.5}),
        ("top_p", {"top_p": 0}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 100_000}),
        ("max_tokens", {"max_tokens": True}),
        ("n", {"n": 2}),
        ("stop", {"stop": ""}),
        ("stop", {"stop": ["a"] * 5}),
        ("logprobs", {"logprobs": 3}),
        ("prompt", {"prompt": "word " * 2000}),
        ("prompt", {"prompt": [1, 2, 99_999]}),
        ("prompt", {"prompt": ["a", "b"]}),
        ("slo_ms", {"slo_ms": 0}),
        ("speculation.mode", {"speculation": {"mode": "fast"}}),
        ("speculation.tree", {"speculation": {"tree": True}}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("temprature", {"temprature": 1}),
    ],
)
def test_a_bad_field_is_named(bundled: Running, field: str, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client(bundled).completions.create(model="specpilot", prompt="a", extra_body=body)
    error = caught.value.body
    assert isinstance(error, dict)
    assert error["param"] == field or error["param"].startswith(f"{field}["), error
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]


def test_an_unknown_model(bundled: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client(bundled).completions.create(model="gpt-4", prompt="a")
    assert caught.value.code == "model_not_found"


def test_usage_in_every_chunk_where_asked_for(serve: Serve) -> None:
    """Load tools ask for vLLM's ``continuous_usage_stats``: counts that grow to the answer's own."""
    run = serve(scripted_pair())
    for path, body in (
        ("/v1/completions", {"prompt": "ab"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "ab"}]}),
    ):
        options = {"include_usage": True, "continuous_usage_stats": True}
        fields = {"max_tokens": 12, "continuation": False, "whole_words": False, "stream": True}
        raw = run.post({**body, **fields, "stream_options": options}, path).body.decode()
        chunks = [json.loads(line[6:]) for line in raw.split("\n\n") if line and "[DONE]" not in line]
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[-1] == counts[-2] > 0
        assert chunks[-1]["choices"] == []
        for chunk in chunks:
            usage = chunk["usage"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_trees_and_looked_up_text_are_still_plain_greedy(serve: Serve) -> None:
    """With token trees every answer is a prefix of the target's own text, and the ledger holds."""
    promises = replace(UNHURRIED, max_nodes=16, lookup_depth=12)
    run = serve(scripted_pair(), promises=promises)
    texts = ["ab. ab. ab", "cde", "jihgfedcba"]
    with client(run) as api:
        for turn in range(12):
            answer = api.completions.create(
                model="specpilot",
                prompt=texts[turn % 3],
                max_tokens=24,
                temperature=0,
                extra_body={"continuation": False, "session_id": "s"},
            )
            assert greedy(run, texts[turn % 3], 24).startswith(answer.choices[0].text)
            assert block(answer)["target_passes"] >= 1
    ledger = run.server.controller.ledger
    assert ledger.passes_started <= 3 * ledger.admitted
