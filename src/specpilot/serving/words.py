"""Where a suggestion that was cut may end on the screen: after its last whole word."""

from __future__ import annotations

import re

# Scripts that write no spaces between words (Thai, Lao, Chinese, Japanese) may end after any character.
_SPACELESS = "\u0e00-\u0eff\u2e80-\u9fff"
_CUT = "\ufffd"
"""What stands for a character whose bytes are not all there."""
_UNFINISHED = re.compile(rf"(?:(?![{_SPACELESS}])[\w'’{_CUT}-])+$")


def whole_words(text: str) -> str:
    """``text`` without a last word that may not be all there, and without white space at the end.

    The space goes with the word behind it: tokenizers of the GPT family write it as the word's first byte, so
    the text that is left ends where a token ends. What is shown of a text that grows only grows.

    >>> whole_words(" the committee recomm")
    ' the committee'
    >>> whole_words(" it is done.")
    ' it is done.'
    """
    tail = _UNFINISHED.search(text)
    return (text if tail is None else text[: tail.start()]).rstrip()


def has_word(text: str) -> bool:
    """Whether a cut ``text`` has a whole word to show."""
    return any(character.isalnum() for character in whole_words(text))


def shown(text: str, *, complete: bool) -> str:
    """What is shown of a verified text: all of it if it ran to its own end, else its whole words.

    A text that has no whole word is shown as it is, less a character that was cut: it is verified, and
    nothing at all would help nobody.
    """
    return text if complete else whole_words(text) or text.rstrip(_CUT)
