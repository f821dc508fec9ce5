"""Text of ended requests: found again, per tenant, bounded."""

from __future__ import annotations

import random

import pytest

from specpilot.control.stop import StopRule
from specpilot.decoding.acceptance import Greedy
from specpilot.drafters.base import DraftItem
from specpilot.drafters.lookup import LookupDrafter, SuffixAutomaton
from specpilot.drafters.memory import LONGEST_MATCH, TenantMemory


def test_match_is_the_longest_suffix_that_occurs() -> None:
    """Against a search by hand over random texts."""
    rng = random.Random(1)
    for _ in range(200):
        text = [rng.randrange(3) for _ in range(rng.randint(1, 30))]
        query = [rng.randrange(3) for _ in range(rng.randint(1, 12))]
        automaton = SuffixAutomaton()
        for token in text:
            automaton.extend(token)
        length, end = automaton.match(query)
        suffixes = (query[len(query) - size :] for size in range(len(query), 0, -1))
        best = next((s for s in suffixes if any(text[i : i + len(s)] == s for i in range(len(text)))), [])
        assert length == len(best)
        assert text[end - length : end] == best


def test_what_followed_is_found_again() -> None:
    memory = TenantMemory(100)
    memory.add("s", [1, 2, 3, 4, 5])
    assert memory.find("s", [9, 2, 3], 8) == ([4, 5], 2)
    assert memory.find("s", [9, 9], 8) == ([], 0)
    assert memory.find("s", [4, 5], 8) == ([], 0)  # nothing followed


def test_a_growing_document_is_kept_once() -> None:
    memory = TenantMemory(100)
    memory.add("s", [1, 2, 3])
    memory.add("s", [1, 2, 3, 4, 5])
    assert memory.tokens == len([1, 2, 3, -1, 4, 5, -1])


def test_one_tenants_text_is_never_proposed_to_another() -> None:
    memory = TenantMemory(100, tenant_of=lambda session: session.split("/")[0])
    memory.add("a/1", [1, 2, 3, 4])
    assert memory.find("a/2", [1, 2], 4) == ([3, 4], 2)
    assert memory.find("b/1", [1, 2], 4) == ([], 0)


def test_it_is_bounded() -> None:
    rng = random.Random(2)
    memory = TenantMemory(64, tenants=3)
    for number in range(200):
        memory.add(f"t{rng.randrange(8)}", [rng.randrange(50) for _ in range(rng.randint(1, 40))] + [number])
        assert memory.tokens <= 3 * 64
    # The latest text of a tenant is still there.
    memory.add("t0", [7, 8, 9, 10])
    assert memory.find("t0", [7, 8], 2)[0] == [9, 10]


def test_the_drafter_remembers_sessions() -> None:
    drafter = LookupDrafter(100, memory=TenantMemory())

    def proposed(request: str, session: str | None) -> tuple[int, ...]:
        context = [50, 2, 3]
        drafter.open(request, context, session)
        draft = drafter.propose([DraftItem(request, context, 4, 4, StopRule(), Greedy())])[0]
        drafter.close(request)
        return draft.block.token_ids

    drafter.open("first", [1, 2, 3, 4, 5, 6], "s")
    drafter.close("first")
    assert proposed("second", "s") == (4, 5, 6)
    assert proposed("third", "other") == ()
    assert proposed("fourth", None) == ()


def test_a_longer_match_in_the_requests_own_text_wins() -> None:
    drafter = LookupDrafter(100, memory=TenantMemory())
    drafter.open("first", [2, 3, 40], "s")
    drafter.close("first")
    context = [1, 2, 3, 5, 1, 2, 3]
    drafter.open("second", context, "s")
    assert drafter.find("second", context, 1) == ([5], 0.75)


def test_matches_are_cut() -> None:
    memory = TenantMemory(1000)
    text = list(range(100))
    memory.add("s", text)
    assert memory.find("s", text[:80], 1) == ([80], LONGEST_MATCH)


@pytest.mark.parametrize("bounds", [(1, 1), (8, 0)])
def test_bad_bounds(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"tokens|tenants"):
        TenantMemory(*bounds)
