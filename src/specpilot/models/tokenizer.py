"""Text to tokens and back with the ``tokenizers`` library; a check that a pair shares one vocabulary."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import tokenizers


class Tokenizer:
    """The ``tokenizer.json`` of a Hugging Face folder.

    Args:
        folder: holds ``tokenizer.json``, or is that file.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        path = Path(folder)
        if path.name != "tokenizer.json":
            path = path / "tokenizer.json"
        self._name = path.absolute().parent.name
        if not path.is_file():
            raise ValueError(
                f"{path}: does not exist; save a fast tokenizer there (tokenizer.save_pretrained)"
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{path}: is not a tokenizer.json ({error})") from None
        # Some files carry their training's settings, which would cut or fill prompts in silence.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self._size = max(ids.values(), default=-1) + 1
        self._tokens: list[str | None] = [None] * self._size
        for token, index in ids.items():
            self._tokens[index] = token
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(index for index, token in added.items() if token.special)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._name

    @property
    def vocab_size(self) -> int:
        """The largest token id plus one. A model may have more rows (padding), never fewer."""
        return self._size

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are no text (end of text, …)."""
        return self._special

    @property
    def fingerprint(self) -> str:
        """Equal for two tokenizers exactly if every id stands for the same token."""
        text = "\0".join("" if token is None else f"+{token}" for token in self._tokens)
        return hashlib.sha256(text.encode()).hexdigest()

    def token(self, token_id: int) -> str | None:
        """The token of an id as the vocabulary spells it; None for an id that has none."""
        return self._tokens[token_id] if 0 <= token_id < self._size else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; with the special tokens (BOS) that the tokenizer puts around a prompt.

        Raises:
            ValueError: for text with a lone surrogate (from broken escapes, or bytes that are no UTF-8).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"prompt: character {error.start}, {text[error.start]!a}, is half of a surrogate pair; give "
                "valid Unicode"
            ) from None
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids``; special tokens give none, an unfinished character U+FFFD."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text


def check_same_vocabulary(target: Tokenizer, draft: Tokenizer) -> None:
    """Refuse a pair in which a token id means two things: every draft would be nonsense to the target.

    Raises:
        ValueError: naming the first difference.
    """
    if target.fingerprint == draft.fingerprint:
        return
    size = max(target.vocab_size, draft.vocab_size)
    first = next(index for index in range(size) if target.token(index) != draft.token(index))
    raise ValueError(
        f"draft: its tokenizer is not the target's: token {first} is {_shown(target.token(first))} in "
        f"{target.name} ({target.vocab_size} tokens), {_shown(draft.token(first))} in {draft.name} "
        f"({draft.vocab_size}); take a draft model that was trained with the target's tokenizer"
    )


def _shown(token: str | None) -> str:
    return "missing" if token is None else repr(token)
