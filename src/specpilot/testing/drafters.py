"""Conformance of drafters: bounds, the stop rule's order, staying in step with the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from specpilot.control.stop import StopRule
from specpilot.control.tree import TreeRule
from specpilot.decoding.acceptance import Greedy, Rejection
from specpilot.decoding.rule import DraftStep
from specpilot.decoding.types import Draft, SamplingParams
from specpilot.drafters.base import Drafter, DraftItem
from specpilot.testing.check import CONTEXT, Check, close, equal, true


class _Watch(Greedy):
    """Greedy that writes down when a token is drawn."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def draw(self, step: DraftStep) -> int:
        self.log.append("draw")
        return super().draw(step)


class _WatchedStop(StopRule):
    """Stops at the position given, and writes down when it is asked."""

    def __init__(self, log: list[str], last: int) -> None:
        super().__init__()
        self.log = log
        self.last = last

    def keep(self, position: int, confidence: float) -> bool:
        self.log.append("keep")
        return position <= self.last


def drafter_checks(make: Callable[[], Drafter]) -> list[Check]:
    """Checks for a :class:`~specpilot.drafters.base.Drafter`."""

    def item(name: str, context: Sequence[int], depth: int = 4, stop: StopRule | None = None) -> DraftItem:
        return DraftItem(name, context, depth, depth, stop or StopRule(), Greedy())

    def cold(context: Sequence[int], depth: int = 4) -> Draft:
        drafter = make()
        drafter.open("cold", context)
        return drafter.propose([item("cold", context, depth)])[0]

    def bounds() -> None:
        drafter = make()
        drafter.open("a", CONTEXT)
        for depth in (0, 1, 2, 5):
            draft = drafter.propose([item("a", CONTEXT, depth)])[0]
            true(draft.fault is None, f"a fault with nothing wrong: {draft.fault}")
            true(draft.block.depth <= depth, f"{draft.block.depth} tokens for max_draft {depth}")
            true(
                all(0 <= token < drafter.vocab_size for token in draft.block.token_ids),
                f"tokens outside the vocabulary: {draft.block.token_ids}",
            )
            computed = len(draft.confidences)
            true(
                not computed or draft.block.depth <= computed <= draft.block.depth + 1,
                f"{computed} confidences for a block of {draft.block.depth}: one per computed position",
            )

    def stopping() -> None:
        for last in range(4):
            log: list[str] = []
            drafter = make()
            drafter.open("a", CONTEXT)
            rule, stop = _Watch(log), _WatchedStop(log, last)
            draft = drafter.propose([DraftItem("a", CONTEXT, 4, 4, stop, rule)])[0]
            true(draft.block.depth <= last, f"the stop rule said {last}, {draft.block.depth} were proposed")
            if "draw" in log:
                # I4: the question comes before its token is drawn.
                wanted = ["keep", "draw"] * log.count("draw")
                equal(log[: len(wanted)], wanted, "a token was drawn before the stop rule was asked")

    def in_step() -> None:
        drafter = make()
        drafter.open("a", CONTEXT)
        drafted = list(drafter.propose([item("a", CONTEXT)])[0].block.token_ids)
        cases = {"nothing was accepted": [], "one was accepted": drafted[:1], "all were accepted": drafted}
        for what, accepted in cases.items():
            context = [*CONTEXT, *accepted, 6]
            drafter = make()
            drafter.open("a", CONTEXT)
            drafter.propose([item("a", CONTEXT)])
            again = drafter.propose([item("a", context)])[0]
            fresh = cold(context)
            equal(again.block, fresh.block, f"after {what} the next block differs from a fresh drafter's")
            close(again.confidences, fresh.confidences, f"after {what} confidences differ from fresh ones")

    def trees() -> None:
        drafter = make()
        drafter.open("a", CONTEXT)
        draft = drafter.propose([DraftItem("a", CONTEXT, 3, 9, StopRule(), Greedy(), tree=TreeRule())])[0]
        block = draft.block
        true(len(block) <= 9, f"{len(block)} nodes for max_nodes 9")
        true(block.depth <= 3, f"{block.depth} positions deep for max_draft 3")
        siblings = [(parent, token) for parent, token in zip(block.parents, block.token_ids, strict=True)]
        equal(len(set(siblings)), len(siblings), "a node has the same child twice")
        first = [token for parent, token in siblings if parent < 0]
        # Whatever of the tree was fed to the drafter's model must not pass for a context of its tokens in a
        # row.
        for after in (first[:1], first[:2], first[1:2], list(block.token_ids[:3]), list(reversed(first[:2]))):
            context = [*CONTEXT, *after, 6]
            drafter = make()
            drafter.open("a", CONTEXT)
            drafter.propose([DraftItem("a", CONTEXT, 3, 9, StopRule(), Greedy(), tree=TreeRule())])
            again = drafter.propose([item("a", context)])[0]
            fresh = cold(context)
            equal(
                again.block, fresh.block, f"after a tree and {after} the next block differs from a fresh one"
            )
            close(again.confidences, fresh.confidences, "after a tree confidences differ from fresh ones")

    def batch() -> None:
        drafter = make()
        parts = {"a": (CONTEXT, 4), "b": ((6,), 2), "c": ((2, 2, 1), 0), "d": ((3, 4), 3)}
        for name, (context, _) in parts.items():
            drafter.open(name, context)
        drafts = drafter.propose([item(name, *part) for name, part in parts.items()])
        for got, (context, depth) in zip(drafts, parts.values(), strict=True):
            equal(got.block, cold(context, depth).block, "a batch differs from one at a time")

    def rows() -> None:
        drafter = make()
        drafter.open("a", CONTEXT)
        rule = Rejection(SamplingParams(temperature=0.8), np.random.default_rng(1))
        draft = drafter.propose([DraftItem("a", CONTEXT, 4, 4, StopRule(), rule)])[0]
        if draft.q is None:  # chosen, not drawn: to be judged by the Deterministic rule
            return
        equal(draft.q.shape, (len(draft.block), drafter.vocab_size), "q must have one row per proposed token")
        close(draft.q.sum(axis=1), np.ones(len(draft.block)), "q rows are no distributions")
        drawn = draft.q[np.arange(len(draft.block)), list(draft.block.token_ids)]
        true(bool((drawn > 0.0).all()), "a proposed token has probability 0 in the q it was drawn from")

    def lifecycle() -> None:
        drafter = make()
        drafter.close("never opened")
        drafter.open("a", CONTEXT)
        drafter.close("a")
        drafter.open("a", CONTEXT)  # the id is free again

    named = (
        ("bounds", bounds),
        ("stopping", stopping),
        ("in-step", in_step),
        ("trees", trees),
        ("batch", batch),
        ("q-rows", rows),
        ("lifecycle", lifecycle),
    )
    return [Check(f"drafter:{name}", run) for name, run in named]
