"""Two samples of texts are compared alike wherever the texts were cut."""

from __future__ import annotations

import random

import pytest

from specpilot.auditing import Answer
from specpilot.auditing.beginnings import END, beginning, homogeneity_table
from specpilot.auditing.distribution import FALSE_ALARM
from specpilot.auditing.endpoint import _distribution
from specpilot.serving.words import shown

WORDS = (" to", " too", " a", " any", " an", ".", " permit", " permission", " U", " (un", "\n", "ly")
SHARES = (12, 3, 9, 4, 3, 6, 4, 4, 1, 2, 2, 2)


def test_beginnings_by_hand() -> None:
    found = [
        beginning(text, ended=False) for text in (" to a", " to", "", ".", "\n", "\n\nThe end", "abcdefgh")
    ]
    assert found == [" to ", " to", "", ".", "\n", "\n\nThe ", "abcdef"]
    assert [beginning(text, ended=True) for text in ("", " to", " to a")] == [END, f" to{END}", " to "]


def test_a_bin_is_a_beginning_that_all_answers_tell() -> None:
    """Trimmed to " to" without speculation, whole with it."""
    ours, theirs = [" to "] * 9 + [" too "] * 3 + ["."] * 8, [" to"] * 12 + ["."] * 8
    assert sorted(homogeneity_table(ours, theirs, 10.0)) == [(8, 8), (12, 12)]
    # Nothing was cut: " to " and " too " differ.
    assert homogeneity_table([" to "] * 20, [" too "] * 20, 10.0) == [(20, 0), (0, 20)]


def test_what_was_cut_too_early_speaks_for_the_server() -> None:
    ours = [" to "] * 10 + [" a "] * 10
    assert homogeneity_table(ours, [" to "] * 8 + [" a "] * 7 + [" "] * 5, 10.0) == [(10, 10), (10, 10)]
    # But only so far: what is left is another beginning, or too much of one.
    assert homogeneity_table(ours, [" to "] * 15 + [" a "] * 1 + [" "] * 4, 10.0) == [(10, 15), (10, 5)]


class Cutting:
    """Draws words and shows a beginning of them: ``fewest`` words, and more while the last one is even.

    Args:
        rng: draws.
        fewest: words that are always there.
        shares: relative, of ``WORDS``.
        trims: leaves out a last word that may not be all there.
    """

    name = "cutting"

    def __init__(
        self, rng: random.Random, fewest: int, shares: tuple[int, ...] = SHARES, *, trims: bool = True
    ) -> None:
        self._rng = rng
        self._fewest = fewest
        self._shares = shares
        self._trims = trims

    def complete(self, prompt: str, max_tokens: int, **settings: object) -> Answer:
        words = self._rng.choices(WORDS, self._shares, k=max_tokens)
        size = self._fewest
        # As acceptance does, this depends on the text.
        while size < max_tokens and len(words[size - 1]) % 2 == 0:
            size += 1
        complete = size == max_tokens or not self._trims
        return Answer(shown("".join(words[:size]), complete=complete), None, "length")


@pytest.mark.parametrize("trims", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), [(2, 1), (1, 3), (3, 2), (1, 1)])
def test_cuts_that_depend_on_the_text_are_no_difference(ours: int, theirs: int, trims: bool) -> None:
    """Forty audits. The seed is fixed; else a p below 1e-4 had odds of 4e-3, eight below 0.05 of 1e-3."""
    rng = random.Random(f"{ours} {theirs} {trims}")
    values = []
    for _ in range(40):
        check = _distribution(Cutting(rng, ours, trims=trims), Cutting(rng, theirs, trims=trims), "", 300)
        assert check.detail["bins"] > 4
        values.append(check.detail["p_value"])
    assert min(values) >= FALSE_ALARM
    assert sum(value < 0.05 for value in values) < 8


def test_other_words_are_seen_behind_cuts() -> None:
    """Of 52 words 4 are " to" for 12, and 10 are "ly" for 2: seen in most audits. The seed is fixed."""
    rng = random.Random(5)
    wrong = (4, *SHARES[1:-1], 10)
    found = [_distribution(Cutting(rng, 2, wrong), Cutting(rng, 1), "", 300).status for _ in range(20)]
    assert found.count("fail") >= 15
