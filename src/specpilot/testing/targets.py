"""Conformance of targets: verification in parallel, commits, trees, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specpilot.decoding.types import EMPTY_BLOCK, Block
from specpilot.models.base import FloatArray
from specpilot.targets.base import Target, VerifyItem
from specpilot.testing.check import BLOCK, CONTEXT, TREE, Check, close, equal, raises


def target_checks(make: Callable[[], Target]) -> list[Check]:
    """Checks for a :class:`~specpilot.targets.base.Target`."""

    def logits(target: Target, request_id: str, context: Sequence[int], block: Block) -> FloatArray:
        return target.verify([VerifyItem(request_id, context, block)])[0].logits

    def plain(target: Target, context: Sequence[int]) -> FloatArray:
        """The row after ``context``, cold."""
        target.open("plain", context)
        row = logits(target, "plain", context, EMPTY_BLOCK)
        target.commit("plain", [])
        target.close("plain")
        return row

    def parallel() -> None:
        target = make()
        target.open("a", CONTEXT)
        got = logits(target, "a", CONTEXT, Block.chain(BLOCK))
        equal(got.shape, (len(BLOCK) + 1, target.vocab_size), "logits have the wrong shape")
        for size in range(len(BLOCK) + 1):
            expected = plain(target, [*CONTEXT, *BLOCK[:size]])[0]
            close(got[size], expected, f"row {size} of a verified block differs from a pass without it")

    def commit() -> None:
        for accepted in range(len(BLOCK) + 1):
            target = make()
            target.open("a", CONTEXT)
            logits(target, "a", CONTEXT, Block.chain(BLOCK))
            target.commit("a", list(range(accepted)))
            context = [*CONTEXT, *BLOCK[:accepted], 0]
            got = target.verify([VerifyItem("a", context, Block.chain([2]))])[0]
            close(got.logits[:1], plain(target, context), f"after {accepted} accepted, the next pass differs")
            equal(got.context_tokens, len(context) - 1, "committed rows are computed again")

    def tree() -> None:
        target = make()
        if not target.capabilities.trees:
            return
        target.open("a", CONTEXT)
        got = logits(target, "a", CONTEXT, TREE)
        for node, path in ((2, [4, 4]), (4, [6, 1, 2])):
            expected = plain(target, [*CONTEXT, *path])[0]
            close(got[node + 1], expected, f"the row after tree node {node} differs from its path as a chain")
        target.commit("a", [1, 3])
        context = [*CONTEXT, 6, 1, 5]
        after = logits(target, "a", context, EMPTY_BLOCK)
        close(after, plain(target, context), "after a branch was committed the next pass differs")

    def batch() -> None:
        target = make()
        if target.capabilities.max_batch < 2:
            return
        parts = {
            "a": (CONTEXT, Block.chain(BLOCK)),
            "b": ((6,), EMPTY_BLOCK),
            "c": ((2, 2), Block.chain([3])),
        }
        for name, (context, _) in parts.items():
            target.open(name, context)
        together = target.verify([VerifyItem(name, *part) for name, part in parts.items()])
        for got, (context, block) in zip(together, parts.values(), strict=True):
            target.open("alone", context)
            close(got.logits, logits(target, "alone", context, block), "a batch differs from one at a time")
            target.close("alone")

    def lifecycle() -> None:
        target = make()
        target.close("never opened")
        raises(lambda: logits(target, "x", CONTEXT, EMPTY_BLOCK), "verifying a request that is not open")
        target.open("a", CONTEXT)
        target.close("a")
        target.open("a", CONTEXT)  # the id is free again

    named = (
        ("parallel", parallel),
        ("commit", commit),
        ("tree", tree),
        ("batch", batch),
        ("lifecycle", lifecycle),
    )
    return [Check(f"target:{name}", run) for name, run in named]
