"""Loading a tokenizer, and refusing a pair that does not share one."""

from __future__ import annotations

from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers")

from specpilot.decoding.text import TextStream  # noqa: E402
from specpilot.models.tokenizer import Tokenizer, check_same_vocabulary  # noqa: E402


def write_bytes_tokenizer(folder: Path, *words: str) -> Path:
    """A byte-level tokenizer without merges, so that a word's tokens are its bytes."""
    folder.mkdir(exist_ok=True)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|end|>": 0, **{token: index + 1 for index, token in enumerate(alphabet)}}
    for word in words:
        vocabulary[word] = len(vocabulary)
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    made.enable_truncation(4)
    made.enable_padding(length=8)
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_round_trip_without_the_files_truncation_and_padding(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_bytes_tokenizer(tmp_path / "one"))
    text = "Gruß aus Zürich – naïve 🙂"
    assert len(tokenizer.encode(text)) == len(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([*tokenizer.encode("end"), 0]) == "end"
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.token(0)) == ("one", 257, "<|end|>")
    assert tokenizer.token(257) is None
    assert tokenizer.special_ids == {0}


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    """Such text comes from broken JSON escapes and from arguments that are no UTF-8."""
    tokenizer = Tokenizer(write_bytes_tokenizer(tmp_path / "one"))
    with pytest.raises(ValueError, match=r"prompt: character 1, .*, is half of a surrogate pair"):
        tokenizer.encode("a\ud800b")


def test_it_streams_characters_of_several_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_bytes_tokenizer(tmp_path / "one"))
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in tokenizer.encode("a🙂b")] == ["a", "", "", "", "🙂", "b"]


def test_special_tokens_around_a_prompt_can_be_left_out(tmp_path: Path) -> None:
    folder = write_bytes_tokenizer(tmp_path / "one")
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    made.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(folder)
    assert tokenizer.encode("ab") == [0, *tokenizer.encode("ab", add_special_tokens=False)]


def test_one_vocabulary(tmp_path: Path) -> None:
    one = Tokenizer(write_bytes_tokenizer(tmp_path / "one"))
    two = Tokenizer(write_bytes_tokenizer(tmp_path / "two") / "tokenizer.json")
    assert one.fingerprint == two.fingerprint
    check_same_vocabulary(one, two)
    assert two.name == "two"


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    one = Tokenizer(write_bytes_tokenizer(tmp_path / "one", "red", "green"))
    two = Tokenizer(write_bytes_tokenizer(tmp_path / "two", "red", "blue", "black"))
    three = Tokenizer(write_bytes_tokenizer(tmp_path / "three", "red"))
    with pytest.raises(
        ValueError, match=r"token 258 is 'green' in one \(259 tokens\), 'blue' in two \(260\)"
    ):
        check_same_vocabulary(one, two)
    with pytest.raises(ValueError, match=r"token 258 is 'green' in one .* missing in three"):
        check_same_vocabulary(one, three)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json: does not exist"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
        Tokenizer(tmp_path)
