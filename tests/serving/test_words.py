"""Where a cut suggestion may end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpilot.serving.words import has_word, shown, whole_words


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        (" the committee recomm", " the committee"),
        (" it is done.", " it is done."),
        (" it is done. ", " it is done."),
        (" he didn't kno", " he didn't"),
        (" a well-kno", " a"),
        (" recomm", ""),
        ("", ""),
        (" „ja“", " „ja“"),
        ("日本語の文", "日本語の文"),
        (" naïve caf", " naïve"),
        (" naïve caf\ufffd", " naïve"),  # the first byte of é
        (" it is done. \ufffd", " it is done."),
    ],
)
def test_the_last_word_goes_unless_something_ends_it(text: str, whole: str) -> None:
    assert whole_words(text) == whole
    assert has_word(text) == any(letter.isalnum() for letter in whole)


def test_a_text_that_ran_to_its_end_is_shown_whole() -> None:
    assert shown(" the committee recomm", complete=True) == " the committee recomm"
    assert shown(" the committee recomm", complete=False) == " the committee"
    assert shown(" recomm", complete=False) == " recomm"
    assert shown(" caf\ufffd", complete=True) == " caf\ufffd"


def test_a_character_that_was_cut_is_not_shown() -> None:
    assert shown(" caf\ufffd", complete=False) == " caf"
    assert shown("\ufffd", complete=False) == ""


@given(
    st.text(alphabet="ab é-'. \n日\ufffd", max_size=20), st.text(alphabet="ab é-'. \n日\ufffd", max_size=10)
)
def test_what_is_shown_of_a_growing_text_only_grows(text: str, more: str) -> None:
    assert text.startswith(whole_words(text))
    assert whole_words(text + more).startswith(whole_words(text))
