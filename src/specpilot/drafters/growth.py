"""A token tree while it grows: candidates, what is worth a node, what is worth a draft step.

Step by step: the best nodes that have no candidates yet are expanded together in one draft step, each with
the draft's next choices as candidates; what becomes a node is settled best first over all candidates, so
that a later step's good paths displace an earlier one's poor ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from specpilot.control.stop import StopRule
from specpilot.control.tree import RANKS, TreeRule, first_chance
from specpilot.decoding.types import Block

EVEN_SHARE = 0.5
"""What a second choice is taken to hold of the probability that the first leaves, before it is looked at:
looking has its price too."""


@dataclass(slots=True)
class Node:
    """A candidate: ``reach`` is the probability that its path is accepted.

    ``rank`` and ``share`` as in :mod:`specpilot.control.tree`; rank 0 is text that was looked up.
    ``covered`` is the probability that the node's successor is the one looked up. ``side``: the draft model
    proposes it beside its first choices.
    """

    token: int
    parent: int
    depth: int
    reach: float
    rank: int
    share: float
    main: bool = False
    side: bool = False
    covered: float = 0.0
    expanded: bool = False
    row: int = -1  # among the rows fed to the draft model


@dataclass(slots=True)
class Growth:
    """One request's tree.

    Args:
        rule: what nodes are worth and cost.
        stop: calibration of the first choice, thresholds on further steps, the deadline.
        max_draft: deepest node.
        max_nodes: most nodes.
        ends: tokens after which nothing is proposed.
    """

    rule: TreeRule
    stop: StopRule
    max_draft: int
    max_nodes: int
    ends: frozenset[int] = frozenset()
    nodes: list[Node] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    root_covered: float = 0.0
    floor: float = 0.0
    """The least reach among the nodes of a tree that is full: what is below it has no place."""
    steps: int = 0
    """Draft steps made."""
    chosen: list[int] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)
    """Candidates that have not been weighed yet; one that was weighed and not chosen is out for good."""
    least: float = 0.0
    """The price of the cheapest node: what is worth no more is never chosen."""

    def __post_init__(self) -> None:
        self.least = min(self.rule.node_price, default=0.0)

    def look_up(self, tokens: Sequence[int], confidence: float) -> None:
        """Take text that followed the same words before as a path; before the first level."""
        rule = self.rule.lookup
        if rule is None:
            return
        reach, parent = 1.0, -1
        for depth, token in enumerate(tokens[: min(rule.depth, self.max_draft)], 1):
            chance = rule.chance(depth, confidence)
            self._cover(parent, chance)
            reach *= chance
            parent = self._add(Node(token, parent, depth, reach, 0, confidence))
        self._choose()

    def frontier(self) -> list[int]:
        """The nodes to expand in the next draft step (−1: the root), best first."""
        if not self.steps:
            return [-1]
        leaves = [index for index in self.chosen if self._can_expand(self.nodes[index])]
        if len(leaves) > 1:
            leaves.sort(key=lambda index: -self._uncovered(index))
        return leaves[: self.rule.width if self.rule.branching else 1]

    def goes_on(self, frontier: Sequence[int], elapsed_ms: float) -> bool:
        """Whether a draft step over ``frontier`` is worth its time and fits the deadline."""
        step = self.steps + 1
        if not frontier or step > min(self.max_draft, self.rule.model_depth):
            return False
        # The thresholds are on the probability that the step's tokens are asked for at all.
        self.stop.survival = sum(self._uncovered(index) for index in frontier)
        if step == 1 and self.root_covered and self.stop.survival < self.rule.first_at:
            return False
        return self.stop.draft_on(step, elapsed_ms)

    def expand(self, index: int, candidates: Iterable[tuple[int, float]]) -> None:
        """Add a node's candidates, best first: (token, confidence) for the first, (token, share) for the
        others. No more of them are asked for than can be worth their price.
        """
        if index < 0:
            depth, reach, covered, main = 1, 1.0, self.root_covered, True
        else:
            parent = self.nodes[index]
            depth, reach, covered, main = parent.depth + 1, parent.reach, parent.covered, parent.main
            parent.expanded = True
        rule, floor, least = self.rule, self.floor, self.least
        chance = left = 1.0  # of the choice before; that none of them is right
        for rank, (token, share) in enumerate(candidates, 1):
            if rank == 1:
                chance = first_chance(self.stop, share)
                left -= chance
                if main:
                    self.confidences.append(share)
            else:
                right = rule.right(rank, share)
                # A later choice never goes before an earlier one: siblings are taken in the draft's order.
                chance = min(left * right, chance)
                left *= 1.0 - right
            known = self.children.get((index, token))
            leads = main and rank == 1
            if known is not None:  # what was looked up is the draft's choice as well
                node = self.nodes[known]
                node.rank, node.share, node.main = rank, share, leads
                node.reach = max(node.reach, reach * chance)
                continue
            own = reach * chance * (1.0 - covered)
            if leads or (own > floor and rule.value(depth, own) > least + rule.side_price):
                self._add(Node(token, index, depth, own, rank, share, leads, not leads))
            if not covered:  # nothing was looked up here, and what comes next is no likelier than this
                most = reach * min(left, chance)
                if most <= floor or rule.value(depth, most) <= least + rule.side_price:
                    break

    def extend(self, index: int, token: int, confidence: float) -> bool:
        """Add the draft's first choice after a node of its own chain, and nothing else, as the step's one
        node: what :meth:`expand` and :meth:`step_done` would do, where nothing has to be sorted for it.
        False, and nothing is done, where something has.
        """
        nodes, rule = self.nodes, self.rule
        parent = nodes[index] if index >= 0 else None
        if (
            (parent is not None and not parent.main)
            or self.root_covered
            or self.fresh
            or len(self.chosen) + 1 >= self.max_nodes
        ):
            return False
        depth, reach = (1, 1.0) if parent is None else (parent.depth + 1, parent.reach)
        reach *= first_chance(self.stop, confidence)
        if self.chosen:
            last = nodes[self.chosen[-1]]
            if not last.main if rule.open else reach >= last.reach:
                return False
        self.confidences.append(confidence)
        if parent is not None:
            parent.expanded = True
        at = self._add(Node(token, index, depth, reach, 1, confidence, True))
        self.fresh.clear()
        if rule.open or rule.value(depth, reach) > rule.price(len(self.chosen) + 1, side=False):
            self.chosen.append(at)
        self.steps += 1
        return True

    def step_done(self) -> None:
        """All nodes of a draft step are expanded."""
        self.steps += 1
        self._choose()

    def block(self) -> tuple[Block, list[Node], int]:
        """The block, its nodes, and how many of them lead it as the draft's own chain."""
        lead = [index for index in self.chosen if self.nodes[index].main]
        lead.sort(key=lambda index: self.nodes[index].depth)
        order = [*lead, *(index for index in self.chosen if not self.nodes[index].main)]
        place = {index: at for at, index in enumerate(order)}
        nodes = [self.nodes[index] for index in order]
        parents = tuple(-1 if node.parent < 0 else place[node.parent] for node in nodes)
        return Block(tuple(node.token for node in nodes), parents), nodes, len(lead)

    def side_worth(self, nodes: Iterable[Node]) -> float | None:
        """What those of ``nodes`` that the draft proposes beside its first choices are worth, in tokens; None
        where it was not asked for any.
        """
        if not self.rule.branching:
            return None
        return sum([self.rule.value(node.depth, node.reach) for node in nodes if node.side])

    def _add(self, node: Node) -> int:
        index = len(self.nodes)
        self.nodes.append(node)
        self.children[node.parent, node.token] = index
        self.fresh.append(index)
        return index

    def _cover(self, index: int, chance: float) -> None:
        if index < 0:
            self.root_covered = chance
        else:
            self.nodes[index].covered = chance

    def choices_wanted(self, index: int, confidence: float) -> int:
        """How many choices of a node are worth looking at: one where a second could not pay for itself."""
        if not self.rule.branching:
            return 1
        node = None if index < 0 else self.nodes[index]
        depth = 1 if node is None else node.depth + 1
        left = self._uncovered(index) * (1.0 - first_chance(self.stop, confidence))
        left *= self.rule.right(2, EVEN_SHARE)
        return RANKS if left > self.floor and self._pays(depth, left, side=True) else 1

    def _pays(self, depth: int, reach: float, *, side: bool) -> bool:
        """Whether one node more would be worth its price."""
        return self.rule.value(depth, reach) > self.rule.price(len(self.chosen) + 1, side=side)

    def _can_expand(self, node: Node) -> bool:
        """Whether to ask the draft model what follows; its cache must hold what comes before."""
        if node.expanded or node.depth >= self.max_draft or node.token in self.ends:
            return False
        if node.parent >= 0 and not self.nodes[node.parent].expanded:
            return False
        # What follows is no likelier than the node itself.
        forced = self.rule.open and node.main
        return forced or (node.reach > self.floor and self._pays(node.depth + 1, node.reach, side=node.side))

    def _uncovered(self, index: int) -> float:
        """The probability that what the draft model adds behind this node is asked for."""
        if index < 0:
            return 1.0 - self.root_covered
        node = self.nodes[index]
        return node.reach * (1.0 - node.covered)

    def _choose(self) -> None:
        """Settle which candidates are nodes: best first, parents first, while worth their price."""
        rule, nodes = self.rule, self.nodes
        worth, prices = rule.worth, rule.node_price
        deepest, dearest = len(worth) - 1, len(prices) - 1
        # Of candidates alike the earlier goes first.
        ranked = [
            (not (rule.open and node.main), -node.reach, node.depth, node.rank, at)
            for at in (*self.chosen, *self.fresh)
            for node in (nodes[at],)
        ]
        ranked.sort()
        self.fresh.clear()
        chosen: list[int] = []
        taken = {-1}
        for optional, against, depth, _, index in ranked:
            if nodes[index].parent not in taken:
                continue
            if optional:
                # TreeRule.value and TreeRule.price written out: this runs for every candidate of every step.
                value = -against * worth[min(depth - 1, deepest)] if worth else -against
                price = prices[min(len(chosen), dearest)] if prices else 0.0
                if value <= (price + rule.side_price if nodes[index].side else price):
                    continue
            chosen.append(index)
            taken.add(index)
            if len(chosen) >= self.max_nodes:
                break
        self.chosen = chosen
        self.floor = nodes[chosen[-1]].reach if len(chosen) >= self.max_nodes and not rule.open else 0.0
