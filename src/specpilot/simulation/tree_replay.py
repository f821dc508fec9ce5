"""A token tree over an agreement trace: the same growth as live, from recorded choices instead of a model.

On the true continuation everything is known: what the draft's first choices were, how likely each, and
which was right; so is what looked-up text would have proposed. What the draft would say behind a *wrong*
node is not: the choices at the same output position are taken instead, and counted. They can only change
which wrong nodes compete for a place in the tree, never whether a right one that is in it is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from specpilot.control.types import CyclePlan
from specpilot.decoding.judged import judged_ranks
from specpilot.decoding.types import Acceptance, Draft
from specpilot.drafters.growth import Growth
from specpilot.simulation.costs import EngineCosts
from specpilot.trace.agreement import AgreementTrace

RIGHT = 0
"""Stands for the target's own token, whatever it is; other candidates get numbers of their own."""
END = -1
"""Stands for it where it is the EOS with which the output ends: nothing is proposed after it."""


@dataclass(slots=True)
class TreeCycle:
    """What a tree did: as in :class:`~specpilot.control.types.CycleOutcome`."""

    steps: int = 0
    nodes: int = 0
    main: int = 0
    accepted: int = 0
    side_accepted: int = 0
    draft_ms: float = 0.0
    confidences: tuple[float, ...] = ()
    side_judged: tuple[tuple[int, float, bool], ...] = ()
    side_worth: float | None = None
    lookup_judged: tuple[float, int, int] | None = None
    off_path: int = 0

    @property
    def looked_up(self) -> bool:
        """Whether all of the block was looked up."""
        return self.nodes > 0 and self.steps == 0


@dataclass(slots=True)
class _Tree:
    trace: AgreementTrace
    start: int
    growth: Growth
    on_path: set[int] = field(default_factory=lambda: {-1})
    off_path: int = 0
    numbers: int = RIGHT

    def look_up(self, right: int, confidence: float, count: int) -> None:
        tokens = [self._right(place) if place < right else self._number() for place in range(count)]
        self.growth.look_up(tokens, confidence)
        self._note(0)

    def expand(self, index: int) -> None:
        """Give a node the candidates that were recorded at its output position."""
        trace, depth = self.trace, 0 if index < 0 else self.growth.nodes[index].depth
        position = self.start + depth
        known = index in self.on_path and position < len(trace.agree)
        self.off_path += not known
        at = min(position, len(trace.agree) - 1)
        right = (trace.rank or ())[at] if known else -1
        confidence = (trace.confidence or ())[at]
        wanted = self.growth.choices_wanted(index, confidence)
        shares = (confidence, *(trace.shares or ())[at])[:wanted]
        first = len(self.growth.nodes)
        self.growth.expand(
            index,
            [
                (self._right(depth) if rank == right else self._number(), share)
                for rank, share in enumerate(shares)
            ],
        )
        self._note(first)

    def _right(self, depth: int) -> int:
        """The target's own token so far behind the start."""
        last = self.start + depth == len(self.trace.agree) - 1
        return END if last and self.trace.ended == "eos" else RIGHT

    def _number(self) -> int:
        self.numbers += 1
        return self.numbers

    def _note(self, first: int) -> None:
        """Which of the nodes from this one on are on the true continuation."""
        nodes = self.growth.nodes
        for index in range(first, len(nodes)):
            if nodes[index].token in (RIGHT, END) and nodes[index].parent in self.on_path:
                self.on_path.add(index)


def replay_tree(
    plan: CyclePlan,
    trace: AgreementTrace,
    start: int,
    left: int,
    costs: EngineCosts,
    times_ms: tuple[float, float],
) -> TreeCycle:
    """One cycle with a tree.

    Args:
        plan: with a tree rule.
        trace: with confidences, ranks and shares.
        start: output position of the first token.
        left: tokens that may still be emitted.
        costs: the engine's times.
        times_ms: (the draft's prefill, one draft step).

    Raises:
        ValueError: if the plan has no tree rule, or the trace no confidences, ranks or shares.
    """
    rule = plan.tree
    if rule is None or trace.shares is None or trace.rank is None or trace.confidence is None:
        raise ValueError("trace: no shares or ranks for a tree; record it with this version")
    growth = Growth(rule, plan.stop, plan.max_draft, plan.max_nodes, frozenset({END}))
    tree = _Tree(trace, start, growth)
    result = TreeCycle()
    plan.stop.start()
    found = 0
    confidence, right = (0.0, 0) if trace.lookup is None else trace.lookup[start]
    if rule.lookup is not None and confidence > 0.0:
        found = min(rule.lookup.depth, plan.max_draft)
        tree.look_up(right, confidence, found)
    prefill_ms, step_ms = times_ms
    frontier = growth.frontier()
    while growth.goes_on(frontier, prefill_ms + result.draft_ms):
        for index in frontier:
            tree.expand(index)
        if not growth.steps:
            result.draft_ms = costs.draft_start
        result.draft_ms += step_ms + costs.draft_forward(len(frontier)) - costs.draft_forward(1)
        growth.step_done()
        frontier = growth.frontier()
    block, nodes, lead = growth.block()
    places = {id(node): place for place, node in enumerate(nodes)}
    path = sorted(
        (places[id(growth.nodes[index])] for index in growth.chosen if index in tree.on_path),
        key=lambda place: nodes[place].depth,
    )
    result.steps, result.nodes = growth.steps, len(block)
    result.main = lead if growth.steps else len(block)
    shown = path[: min(left, len(path))]
    result.accepted = sum(place < result.main for place in shown)
    result.side_accepted = len(shown) - result.accepted
    result.off_path = tree.off_path
    if growth.steps:
        result.confidences = tuple(growth.confidences[: lead + 1])
        result.side_worth = growth.side_worth(nodes)
        ranks, shares = [node.rank for node in nodes], [node.share for node in nodes]
        draft = Draft(block, ranks=tuple(ranks), shares=tuple(shares))
        result.side_judged = judged_ranks(draft, Acceptance(tuple(path), RIGHT))
    else:
        result.confidences = tuple(node.share for node in nodes)
    if found:
        emitted = min(len(shown) + 1, left)
        right = min(right, found, emitted)
        result.lookup_judged = (confidence, right, min(right + 1, found, emitted))
    return result
