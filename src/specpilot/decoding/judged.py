"""What a verified path says of proposals that it did not follow: no exploration is needed to know it."""

from __future__ import annotations

from collections.abc import Sequence

from specpilot.decoding.types import Acceptance, Draft
from specpilot.models.base import common_prefix


def judged_ranks(draft: Draft, accepted: Acceptance) -> tuple[tuple[int, float, bool], ...]:
    """(rank, share, right) of the draft's further choices that were judged.

    At each node of the path (the root first) the target's token is known. Where it is not the draft's first
    choice, the choices proposed beside it are judged best first, up to the right one.
    """
    block = draft.block
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(block.parents):
        if draft.ranks[node]:  # looked-up text has no rank
            children.setdefault(parent, []).append(node)
    result: list[tuple[int, float, bool]] = []
    at = -1
    for follows in (*accepted.path, None):
        offered = sorted(children.get(at, ()), key=lambda node: draft.ranks[node])
        known = follows is None or draft.ranks[follows] > 0
        if known and (not offered or follows != offered[0]):
            for node in offered[1:]:
                result.append((draft.ranks[node], draft.shares[node], node == follows))
                if node == follows:
                    break
        if follows is not None:
            at = follows
    return tuple(result)


def judged_lookup(looked_up: tuple[Sequence[int], float], emitted: Sequence[int]) -> tuple[float, int, int]:
    """(confidence, right, judged): how far looked-up text agrees with what was emitted."""
    found, confidence = looked_up
    right = common_prefix(list(found), list(emitted))
    return confidence, right, min(right + 1, len(found), len(emitted))
