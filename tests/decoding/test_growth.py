"""A tree's growth by hand: who becomes a node, who is expanded, where drafting stops."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from specpilot.control.stop import StopRule
from specpilot.control.tree import LookupRule, TreeRule
from specpilot.decoding.judged import judged_lookup, judged_ranks
from specpilot.decoding.types import Acceptance, Block, Draft
from specpilot.drafters.growth import Growth

ROOT = [(1, 0.6), (2, 0.75), (3, 0.5)]
"""Chances 0.6, 0.4·0.75 = 0.3, 0.4·0.25·0.5 = 0.05."""


def step(growth: Growth, offered: dict[int, Sequence[tuple[int, float]]]) -> list[int]:
    """Expand the frontier with candidates by node; returns the frontier."""
    frontier = growth.frontier()
    for index in frontier:
        growth.expand(index, offered[index])
    growth.step_done()
    return frontier


def test_best_paths_first() -> None:
    growth = Growth(TreeRule(width=2), StopRule(), 3, 4)
    assert step(growth, {-1: ROOT}) == [-1]
    assert [growth.nodes[index].token for index in growth.chosen] == [1, 2, 3]
    # Nodes 0 (0.6) and 1 (0.3) are expanded: 0.6·0.9 = 0.54, 0.6·0.1·0.5 = 0.03; 0.3·0.5 = 0.15, 0.3·0.5·0.5.
    assert step(growth, {0: [(4, 0.9), (5, 0.5)], 1: [(6, 0.5), (7, 0.5)]}) == [0, 1]
    assert [growth.nodes[index].token for index in growth.chosen] == [1, 4, 2, 6]
    block, nodes, lead = growth.block()
    assert (block, lead) == (Block((1, 4, 2, 6), (-1, 0, -1, 2)), 2)
    assert [node.rank for node in nodes] == [1, 1, 2, 1]
    assert growth.confidences == [0.6, 0.9]


def test_a_node_must_be_worth_its_price() -> None:
    """Prices 0.1, 0.2, 0.4: the second choice (0.3) pays for place 2, nothing pays for place 3."""
    growth = Growth(TreeRule(node_price=(0.1, 0.2, 0.4)), StopRule(), 3, 9)
    step(growth, {-1: ROOT})
    assert [growth.nodes[index].token for index in growth.chosen] == [1, 2]
    dear = Growth(TreeRule(node_price=(0.7,)), StopRule(), 3, 9)
    step(dear, {-1: ROOT})
    assert not dear.chosen
    assert not dear.frontier()
    kept = Growth(TreeRule(node_price=(0.7,), open=True), StopRule(), 3, 9)
    step(kept, {-1: ROOT})
    assert [kept.nodes[index].token for index in kept.chosen] == [1]


def test_no_choice_is_looked_for_that_cannot_pay() -> None:
    """With 0.4·0.25 = 0.1 left after the second, nothing that costs 0.1 can pay."""
    asked: list[int] = []

    def offered() -> Iterator[tuple[int, float]]:
        for token, share in [*ROOT, (4, 0.5), (5, 0.5)]:
            asked.append(token)
            yield token, share

    growth = Growth(TreeRule(node_price=(0.1,)), StopRule(), 3, 9)
    growth.expand(-1, offered())
    growth.step_done()
    assert [growth.nodes[index].token for index in growth.chosen] == [1, 2]
    assert asked == [1, 2]
    cheap = Growth(TreeRule(node_price=(0.01,)), StopRule(), 3, 9)
    asked.clear()
    cheap.expand(-1, offered())
    assert asked == [1, 2, 3, 4, 5]


def test_a_later_choice_never_goes_before_an_earlier_one() -> None:
    """The second is right with 0.8·0.5 = 0.4 where the first is with 0.2: both count as 0.2."""
    growth = Growth(TreeRule(), StopRule(), 3, 9)
    step(growth, {-1: [(1, 0.2), (2, 0.5)]})
    assert [node.reach for node in growth.nodes] == [0.2, 0.2]


def test_drafting_stops_by_the_thresholds_the_deadline_and_the_depth() -> None:
    growth = Growth(TreeRule(), StopRule(draft_at=(0.0, 0.97)), 3, 9)
    step(growth, {-1: ROOT})  # the frontier's paths sum to 0.95
    assert not growth.goes_on(growth.frontier(), 0.0)
    growth.stop.draft_at = (0.0, 0.94)
    assert growth.goes_on(growth.frontier(), 0.0)
    growth.stop.time_limit_ms, growth.stop.step_ms, growth.stop.verify_ms = 20.0, 1.0, 10.0
    assert growth.goes_on(growth.frontier(), 9.0)
    assert not growth.goes_on(growth.frontier(), 9.5)
    growth.stop.time_limit_ms, growth.max_draft = 1e9, 1
    assert not growth.goes_on(growth.frontier(), 0.0)


def test_nothing_is_proposed_behind_an_end() -> None:
    growth = Growth(TreeRule(), StopRule(), 3, 9, frozenset({1}))
    step(growth, {-1: ROOT})
    assert [growth.nodes[index].token for index in growth.frontier()] == [2, 3]


def test_looked_up_text_spares_the_draft_model() -> None:
    """Believed with 0.9 at each position, of which 0.1 is left uncertain."""
    rule = TreeRule(lookup=LookupRule((0.0,), 1.0, 3), first_at=0.2)
    growth = Growth(rule, StopRule(), 5, 9)
    growth.look_up([7, 8, 9, 9], 0.9)
    assert not growth.goes_on(growth.frontier(), 0.0)
    block, nodes, _ = growth.block()
    assert block == Block.chain([7, 8, 9])
    assert [round(node.reach, 3) for node in nodes] == [0.9, 0.81, 0.729]
    rule.first_at = 0.05
    assert growth.goes_on(growth.frontier(), 0.0)


def test_the_drafts_choices_share_what_looked_up_text_leaves() -> None:
    growth = Growth(TreeRule(lookup=LookupRule((0.0,), 1.0, 2)), StopRule(), 5, 9)
    growth.look_up([2, 5], 0.8)
    step(growth, {-1: ROOT})
    reach = {(node.token, node.depth): round(node.reach, 3) for node in growth.nodes}
    # Token 2 is the draft's second choice as well: the larger of 0.8 and 0.3. Others get a fifth.
    assert reach == {(2, 1): 0.8, (5, 2): 0.64, (1, 1): 0.12, (3, 1): 0.01}
    block, nodes, lead = growth.block()
    assert lead == 1
    assert block.token_ids[0] == 1
    assert nodes[0].main


def test_ranks_judged_along_the_path() -> None:
    """1 and 2 beside each other, 3 and 4 below 2; the path is 2, 4: rank 2 twice."""
    draft = Draft(
        Block((1, 2, 3, 4), (-1, -1, 1, 1)), ranks=(1, 2, 1, 2), shares=(0.6, 0.7, 0.5, 0.4), main=1
    )
    assert judged_ranks(draft, Acceptance((1, 3), 9)) == ((2, 0.7, True), (2, 0.4, True))
    # The first choice was right at the root, and nothing was offered behind it.
    assert judged_ranks(draft, Acceptance((0,), 9)) == ()
    # None of the root's choices was right.
    assert judged_ranks(draft, Acceptance((), 9)) == ((2, 0.7, False),)


def test_looked_up_text_is_judged_though_not_proposed() -> None:
    assert judged_lookup(((5, 6, 7), 0.8), [5, 6, 9, 9]) == (0.8, 2, 3)
    assert judged_lookup(((5, 6, 7), 0.8), [5]) == (0.8, 1, 1)
    assert judged_lookup(((5,), 0.8), [5, 6]) == (0.8, 1, 1)


@settings(max_examples=200, deadline=None)
@given(
    rng=st.randoms(use_true_random=False),
    nodes=st.integers(1, 12),
    depth=st.integers(1, 5),
    width=st.integers(1, 4),
    prices=st.lists(st.floats(0.0, 0.3), max_size=6),
    looked_up=st.lists(st.integers(0, 3), max_size=4),
)
def test_every_block_is_a_tree_within_its_bounds(
    rng: random.Random, nodes: int, depth: int, width: int, prices: list[float], looked_up: list[int]
) -> None:
    rule = TreeRule(node_price=tuple(sorted(prices)), width=width, lookup=LookupRule((0.0,), 1.0, depth))
    growth = Growth(rule, StopRule(), depth, nodes)
    growth.look_up(looked_up, 0.6)
    frontier = growth.frontier()
    while growth.goes_on(frontier, 0.0):
        for index in frontier:
            tokens = rng.sample(range(4), 3)
            growth.expand(index, [(token, rng.uniform(0.05, 0.95)) for token in tokens])
        growth.step_done()
        frontier = growth.frontier()
    block, chosen, lead = growth.block()
    assert len(block) <= nodes
    assert block.depth <= depth
    assert growth.steps <= depth
    assert lead <= len(growth.confidences) <= growth.steps
    for node, parent in zip(chosen, block.parents, strict=True):
        assert node.reach <= (1.0 if parent < 0 else chosen[parent].reach) + 1e-12
    siblings = [(parent, token) for parent, token in zip(block.parents, block.token_ids, strict=True)]
    assert len(set(siblings)) == len(siblings)


@given(
    st.lists(st.floats(0.02, 0.98), min_size=1, max_size=6),
    st.floats(0.0, 0.5),
    st.integers(1, 8),
    st.booleans(),
)
def test_a_chain_s_step_is_what_the_general_one_does(
    chances: list[float], price: float, most: int, is_open: bool
) -> None:
    """``extend`` says no, or leaves what ``expand`` with one candidate and ``step_done`` leave."""
    prices = (price / 4.0, price / 2.0, price)
    rule = TreeRule(worth=(1.0, 0.9, 0.8), node_price=prices, side_price=price / 8.0, open=is_open)
    short, whole = Growth(rule, StopRule(), 8, most), Growth(rule, StopRule(), 8, most)
    for growth in (short, whole):  # a tree that branches already at its root
        growth.expand(-1, ROOT)
        growth.step_done()
    for token, chance in enumerate(chances, 10):
        mains = [index for index in short.frontier() if short.nodes[index].main]
        assert short.frontier() == whole.frontier()
        if not mains:
            break
        whole.expand(mains[0], [(token, chance)])
        whole.step_done()
        if not short.extend(mains[0], token, chance):
            short.expand(mains[0], [(token, chance)])
            short.step_done()
        assert short == whole
