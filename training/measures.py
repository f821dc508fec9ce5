"""The figures of a model card that are plain arithmetic on tokens and agreement bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from training.corpus import END_ID


def until_end(tokens: Sequence[int]) -> list[int]:
    """The tokens up to and including the first end-of-text."""
    listed = list(tokens)
    return listed[: listed.index(END_ID) + 1] if END_ID in listed else listed


def by_position(
    bits: Sequence[Sequence[bool]], block: int
) -> tuple[list[int], list[float | None], list[float]]:
    """(times reached, conditional agreement, survival) for positions 1 … ``block``.

    A block starts where the one before it ended: after its accepted tokens and the one that the target adds.
    Position i is reached when all earlier ones of the block agreed; blocks that the continuation is too short
    for are left out, so that every position of a block could have been reached. Conditional agreement is
    None where a position was never reached.
    """
    reached, agreed = [0] * block, [0] * block
    for row in bits:
        start = 0
        while start + block <= len(row):
            accepted = 0
            for place in range(block):
                reached[place] += 1
                if not row[start + place]:
                    break
                agreed[place] += 1
                accepted += 1
            start += accepted + 1
    blocks = max(1, reached[0])
    conditional = [a / r if r else None for a, r in zip(agreed, reached, strict=True)]
    return reached, conditional, [a / blocks for a in agreed]


def tokens_per_pass(bits: Sequence[Sequence[bool]], block: int) -> float:
    """Mean tokens that one target pass yields with chains of ``block``: accepted ones and one of its own."""
    _, _, survival = by_position(bits, block)
    return 1 + sum(survival)


def loops(tokens: Sequence[int]) -> bool:
    """Whether some four tokens in a row occur three times or more (overlaps count)."""
    grams = Counter(tuple(tokens[place : place + 4]) for place in range(len(tokens) - 3))
    return bool(grams) and max(grams.values()) >= 3


def common_prefix(output: Sequence[int], reference: Sequence[int]) -> int:
    """Tokens that both begin with."""
    for place, (left, right) in enumerate(zip(output, reference, strict=False)):
        if left != right:
            return place
    return min(len(output), len(reference))


def longest_common(output: Sequence[int], reference: Sequence[int]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(reference) + 1)
    for left in output:
        diagonal = 0
        for place, right in enumerate(reference, start=1):
            above = row[place]
            row[place] = diagonal + 1 if left == right else max(above, row[place - 1])
            diagonal = above
    return row[-1]
