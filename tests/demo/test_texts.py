"""Prompts cut from given texts: the rule, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.texts import cut, read_documents

from specpilot.demo.workload import WORDS


def words(start: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(start, start + count))


def test_prompts_begin_with_paragraphs_and_have_their_class_s_words() -> None:
    """Completions take 8, 11, 14 … words: paragraphs of 10, 5, 12 and 3 words begin at 0, 10, 15 and 27."""
    document = "\n\n".join([words(0, 10), words(10, 5), words(15, 12), words(27, 3)])
    assert [prompt.text.split() for prompt in cut([document], "completion")] == [
        words(0, 8).split(),
        words(10, 11).split(),
    ]
    # The next would begin at 27 and has no 14 words; line breaks are kept.
    assert cut([document], "completion")[1].text == f"{words(10, 5)}\n\n{words(15, 6)}"


def test_lengths_go_on_over_documents() -> None:
    prompts = cut([words(0, 9), words(0, 8), words(0, 40)], "completion")
    assert [(prompt.key, len(prompt.text.split())) for prompt in prompts] == [
        ("completion-0000-00000", 8),
        ("completion-0002-00000", 11),  # eight words are no more than a prompt of eleven
    ]


def test_a_prompt_stops_inside_a_sentence() -> None:
    text = "One two three four five six seven. Eight. nine"
    assert cut([text], "completion")[0].text == "One two three four five six"
    only_ends = "a. b. c. d. e. f. g. h. i."
    assert cut([only_ends], "completion")[0].text == "a. b. c. d."


def test_the_same_text_gives_the_same_prompts() -> None:
    document = "\n\n".join(words(100 * part, 97) for part in range(20))
    for label, lengths in WORDS.items():
        prompts = cut([document] * 3, label)
        assert prompts == cut([document] * 3, label)
        assert len({prompt.key for prompt in prompts}) == len(prompts)
        assert [len(prompt.text.split()) for prompt in prompts[: len(lengths)]] == list(lengths)[
            : len(prompts)
        ]
        assert all(prompt.text in document for prompt in prompts)


def test_bad_class() -> None:
    with pytest.raises(ValueError, match="class: 'rewrite'"):
        cut(["a b c"], "rewrite")


def test_documents_of_a_folder_and_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.md").write_text("first", encoding="utf-8")
    (tmp_path / "c.pdf").write_text("no text", encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    assert read_documents(tmp_path) == ["first", "second"]
    file = tmp_path / "all"
    file.write_text("\n<|doc|>\n".join(f"text {number}" for number in range(10)), encoding="utf-8")
    assert len(read_documents(file)) == 1
    assert len(read_documents(file, "<|doc|>")) == 10
    # As training holds them out: the last share, at least one.
    assert read_documents(file, "<|doc|>", 0.2) == ["text 8", "text 9"]
    assert read_documents(file, "<|doc|>", 0.015) == ["text 9"]


def test_bad_documents(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text"):
        read_documents(tmp_path)
    with pytest.raises(ValueError, match="hold-out"):
        read_documents(tmp_path, "<|doc|>", 0.1)
    file = tmp_path / "one.txt"
    file.write_text("a<|doc|>b", encoding="utf-8")
    with pytest.raises(ValueError, match="separator"):
        read_documents(file, None, 0.1)
    with pytest.raises(ValueError, match=r"0\.015"):
        read_documents(file, "<|doc|>", 1.5)
