"""Requests: fitting prompts, text from tokens, where an output ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpilot.control.types import StopCause
from specpilot.decoding.request import DecodingRequest, fit_prompt
from specpilot.decoding.text import StopStrings, TextStream
from specpilot.models.base import ContextLimitError


class Bytes:
    """A byte-level tokenizer: token i is byte i, so characters may span tokens. 0 is special."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token for token in token_ids if token).decode("utf-8", errors="replace")


class Words:
    """Joins with spaces: what a token adds depends on whether it comes first."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in token_ids)


@given(st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=12))
def test_streamed_text_is_the_whole_text(text: str) -> None:
    stream = TextStream(Bytes())
    pieces = [stream.push(token) for token in text.encode()]
    pieces.append(stream.flush())
    assert "".join(pieces) == text


def test_characters_are_held_until_complete() -> None:
    stream = TextStream(Bytes())
    assert [stream.push(token) for token in "né€".encode()] == ["n", "", "é", "", "", "€"]
    stream.push("é".encode()[0])
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_a_character_that_the_prompt_breaks_off_is_shown_once_it_is_whole() -> None:
    """A prompt given as tokens may end inside one."""
    first, second = "é".encode()
    stream = TextStream(Bytes(), [first])
    assert stream.push(second) == "é"
    assert stream.push(ord("a")) == "a"
    whole = TextStream(Bytes(), [first, second])
    assert whole.push(ord("a")) == "a"
    cut = DecodingRequest("r", [*"日".encode()[:2]], 10, detokenizer=Bytes())
    cut.emit([*"日".encode()[2:], *b" end"])
    assert cut.text == "日 end"


def test_text_that_depends_on_the_token_before() -> None:
    stream = TextStream(Words())
    assert [stream.push(token) for token in (1, 2, 3)] == ["w1", " w2", " w3"]
    # A continuation keeps the space between the prompt and its first word.
    request = DecodingRequest("r", [8, 9], 2, detokenizer=Words())
    request.emit([1, 2])
    assert request.text == " w1 w2"


@given(
    st.lists(st.text("ab", max_size=3), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
)
def test_stop_strings_do_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    finder = StopStrings(stops)
    given_out = "".join(finder.push(piece) for piece in pieces)
    if finder.found is None:
        assert not any(stop in whole for stop in stops)
        assert given_out + finder.flush() == whole
    else:
        assert given_out + finder.found == whole[: len(given_out + finder.found)]
        assert not any(stop in given_out for stop in stops)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stop\[1\]"):
        StopStrings(["a", ""])


def request(max_tokens: int = 10, stop: Sequence[str] = ()) -> DecodingRequest:
    return DecodingRequest("r", [1], max_tokens, eos_token_ids=frozenset({0}), stop=stop, detokenizer=Bytes())


def test_the_end_token_is_output_but_no_text() -> None:
    ended = request()
    assert ended.emit([*b"ab", 0, *b"cd"]) == 3
    assert (ended.ended, ended.output, ended.text) == (StopCause.EOS, [97, 98, 0], "ab")


def test_a_stop_string_spans_blocks() -> None:
    ended = request(stop=["bcd"])
    assert ended.emit(b"ab") == 2
    assert ended.text == "a"
    assert ended.emit(b"cde") == 2
    assert (ended.ended, ended.output, ended.text) == (StopCause.STOP, list(b"abcd"), "a")


def test_what_might_have_become_a_stop_string_is_text_after_all() -> None:
    cut = request(max_tokens=3, stop=["bcd"])
    cut.emit(b"abcd")
    assert (cut.ended, cut.text) == (StopCause.MAX_TOKENS, "abc")
    budget = request(stop=["bcd"])
    budget.emit(b"abc")
    budget.end(StopCause.BUDGET)
    budget.end(StopCause.ERROR, "late")
    assert (budget.ended, budget.text, budget.error) == (StopCause.BUDGET, "abc", None)


def test_the_end_token_comes_before_stop_and_length() -> None:
    both = DecodingRequest("r", [1], 1, eos_token_ids=frozenset({97}), stop=["a"], detokenizer=Bytes())
    both.emit(b"a")
    assert both.ended is StopCause.EOS
    stopped = request(max_tokens=1, stop=["a"])
    stopped.emit(b"a")
    assert stopped.ended is StopCause.STOP


def test_requests_are_checked() -> None:
    with pytest.raises(ValueError, match="prompt"):
        DecodingRequest("r", [], 1)
    with pytest.raises(ValueError, match="max_tokens"):
        DecodingRequest("r", [1], 0)
    with pytest.raises(ValueError, match="stop"):
        DecodingRequest("r", [1], 1, stop=["a"])


def test_prompts_are_fitted() -> None:
    def fit(prompt: list[int], max_tokens: int, truncate: bool = False) -> list[int]:
        return fit_prompt(prompt, max_tokens, context_limit=8, start_token=9, truncate=truncate)

    assert fit([], 4) == [9]
    assert fit([1], 4) == [1]
    assert fit([1, 2, 3, 4], 4) == [1, 2, 3, 4]
    with pytest.raises(ContextLimitError, match=r"5 tokens and max_tokens 4 exceed the context of 8"):
        fit([1, 2, 3, 4, 5], 4)
    assert fit([1, 2, 3, 4, 5], 4, truncate=True) == [2, 3, 4, 5]
    with pytest.raises(ContextLimitError, match=r"max_tokens: 8"):
        fit([1], 8, truncate=True)
    with pytest.raises(ValueError, match="BOS"):
        fit_prompt([], 4, context_limit=8, start_token=None)
