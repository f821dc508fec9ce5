"""Beginnings of texts that may be cut anywhere, in bins that no cut can shift.

An answer is a beginning of the text that its server would have written without a budget or a deadline, and
how much of it comes back depends on that text and on speculation. So only the longer text can be compared,
by questions of the form "does it begin so?". An answer that is long enough says yes or no; one that ends
before is counted where it makes the two sides most alike, so that cuts never make a server wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

LONGEST = 6
"""Characters of a beginning, at most."""
END = "\x03"
"""Stands behind a text that ended by itself: nothing would have followed."""
_FIRST_WORD = re.compile(r"\s*\S*\s?")


def beginning(text: str, *, ended: bool) -> str:
    """At most ``LONGEST`` characters of the first word, with the space behind it where that came back.

    >>> beginning(" to a per", ended=False), beginning(" to", ended=False), beginning(" to", ended=True)
    (' to ', ' to', ' to\\x03')
    """
    found = _FIRST_WORD.match(text + END if ended else text)
    return "" if found is None else found.group()[:LONGEST]


def homogeneity_table(
    ours: Sequence[str], theirs: Sequence[str], least_count: float
) -> list[tuple[int, int]]:
    """(ours, theirs) in each bin that holds anything; what is in no frequent bin shares the last one.

    Args:
        ours: beginnings of one side.
        theirs: as many of the other side.
        least_count: how often a beginning has to come, both sides together, to be a bin.
    """
    sides = Counter(ours), Counter(theirs)
    frequent = [text for text, times in (sides[0] + sides[1]).items() if times >= least_count]
    # Where " to" is often cut there, " to " cannot be told from " too": both begin with " to".
    bins = [text for text in frequent if not any(text != b and text.startswith(b) for b in frequent)]
    counts = [[0, 0] for _ in [*bins, "others"]]
    unclear: list[tuple[int, list[int]]] = []
    for side, found in enumerate(sides):
        for text, times in found.items():
            inside = [index for index, b in enumerate(bins) if text.startswith(b)]
            possible = [index for index, b in enumerate(bins) if b.startswith(text)]
            if inside or not possible:
                counts[inside[0] if inside else -1][side] += times
            else:
                unclear += [(side, [*possible, len(bins)])] * times
    for side, possible in unclear:
        counts[min(possible, key=lambda index: _strain(counts[index], side))][side] += 1
    return [(one, other) for one, other in counts if one + other]


def _strain(count: Sequence[int], side: int) -> float:
    """What one more on a ``side`` adds to the χ² of two samples of one size, in a bin of this ``count``."""
    one, other = count[side], count[1 - side]
    before = (one - other) ** 2 / (one + other) if one + other else 0.0
    return (one + 1 - other) ** 2 / (one + 1 + other) - before
