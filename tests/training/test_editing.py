"""Editing examples: faults are planted in clean text, and the answer is that text."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

# The training scripts are not part of the package: they are run from the repository's root.
sys.path.insert(0, str(Path(__file__).parents[2]))

from training.editing import (
    CONFUSIONS,
    INSTRUCTIONS,
    MIX,
    WORDY,
    Example,
    examples,
    pick_passage,
    plant_errors,
    plant_wordiness,
    render_prompt,
)

DOCUMENT = """A heading that is no sentence

The office moved to Second Street because the old building was too small. Visitors can use the side door
until the front is ready. Please call before you come, and bring a card that shows your name.
The team will help you to find the right room, for there are many of them and most look alike.

- a list item
"""


def make(count: int, seed: int) -> list[Example]:
    return examples([DOCUMENT], random.Random(seed), count)


def test_same_seed_same_examples() -> None:
    assert make(50, 3) == make(50, 3)
    assert make(50, 3) != make(50, 4)


def test_answer_is_the_original_and_the_source_is_not() -> None:
    seen = set()
    for example in make(400, 0):
        seen.add(example.task)
        assert example.corrected in DOCUMENT
        assert f"\n\nText: {example.source}\n\nCorrected text: " in example.prompt
        if example.task == "copy":
            assert example.source == example.corrected
        else:
            assert example.source != example.corrected
    assert seen == set(MIX)


def test_replacement_is_undone_by_its_own_instruction() -> None:
    for example in make(400, 1):
        if example.task == "replace":
            old, new = example.prompt.split('"')[1], example.prompt.split('"')[3]
            undone = " ".join(new if word == old else word for word in example.source.split(" "))
            assert undone == example.corrected


@pytest.mark.parametrize("text", ["a", "7", "—", "Yes.", "teh", "a a a", "A 12-word §4 (x) http://a.b/c?d"])
def test_any_text_gets_an_error(text: str) -> None:
    for seed in range(50):
        assert plant_errors(text, random.Random(seed)) != text


def test_errors_stay_few() -> None:
    text = " ".join(["The people in this building received their letters before noon."] * 10)
    for seed in range(20):
        words = plant_errors(text, random.Random(seed)).split(" ")
        assert abs(len(words) - 100) <= 15


def test_wordiness_keeps_capitals_and_punctuation() -> None:
    assert plant_wordiness("Use", random.Random(0)) == "Utilize"
    assert plant_wordiness("(before,", random.Random(0)) == "(prior to,"
    assert plant_wordiness("nothing here fits", random.Random(0)) == "nothing here fits"


def test_tables_change_something() -> None:
    assert all(plain != wordy for plain, wordy in (*WORDY.items(), *CONFUSIONS.items()))


def test_prompt_is_the_documented_template() -> None:
    assert render_prompt("Helo.") == "Fix the errors in this text.\n\nText: Helo.\n\nCorrected text: "
    assert 'Replace "a" with "b"' in render_prompt("a", "replace", old="a", new="b")
    assert set(INSTRUCTIONS) == set(MIX)
    assert sum(MIX.values()) == pytest.approx(1)


def test_a_document_without_sentences_is_refused() -> None:
    assert pick_passage("One two three", random.Random(0)) is None
    with pytest.raises(ValueError, match="too few paragraphs"):
        examples(["One two three"], random.Random(0), 1)
