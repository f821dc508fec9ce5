"""Conformance of causal language models: rollback, ragged batches, trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from specpilot.models.base import CausalLM, FloatArray, ForwardItem, KVCache
from specpilot.testing.check import BLOCK, CONTEXT, TREE, Check, close, equal, raises


def model_checks(make: Callable[[], CausalLM]) -> list[Check]:
    """Checks for a :class:`~specpilot.models.base.CausalLM`."""

    def rows(model: CausalLM, cache: KVCache, tokens: Sequence[int], start: int = 0) -> FloatArray:
        return model.forward([ForwardItem(cache, tokens, logits_from=start)])[0]

    def one_by_one(model: CausalLM, tokens: Sequence[int]) -> FloatArray:
        cache = model.new_cache()
        return np.concatenate([rows(model, cache, [token]) for token in tokens])

    def split() -> None:
        model = make()
        tokens = [*CONTEXT, *BLOCK]
        cache = model.new_cache()
        first = rows(model, cache, tokens[:4])
        rest = rows(model, cache, tokens[4:], start=2)
        expected = one_by_one(model, tokens)
        close(first, expected[:4], "a pass over several tokens differs from one token at a time")
        close(rest, expected[6:], "a later pass, or logits_from, differs from one token at a time")
        equal(list(cache.token_ids), tokens, "the cache does not hold the tokens that were fed")

    def rollback() -> None:
        model = make()
        cache = model.new_cache()
        rows(model, cache, [*CONTEXT, *BLOCK])
        cache.truncate(len(CONTEXT))
        again = rows(model, cache, [6, 0])
        close(again, one_by_one(model, [*CONTEXT, 6, 0])[-2:], "after truncate the dropped rows still count")

    def batch() -> None:
        model = make()
        parts: list[tuple[list[int], list[int]]] = [([], [3]), (list(CONTEXT), [2, 6, 0]), ([7, 7], [1, 5])]
        caches = [model.new_cache() for _ in parts]
        for cache, (held, _) in zip(caches, parts, strict=True):
            if held:
                rows(model, cache, held)
        items = [ForwardItem(cache, fed) for cache, (_, fed) in zip(caches, parts, strict=True)]
        for got, (held, fed) in zip(model.forward(items), parts, strict=True):
            expected = one_by_one(model, [*held, *fed])[len(held) :]
            close(got, expected, "in a ragged batch a sequence differs from running it alone")

    def tree() -> None:
        model = make()
        cache = model.new_cache()
        rows(model, cache, CONTEXT)
        got = model.forward([ForwardItem(cache, TREE.token_ids, TREE.parents)])[0]
        branch = one_by_one(model, [*CONTEXT, 6, 1, 2])[-3:]
        close(got[[1, 3, 4]], branch, "a branch of a tree differs from the same tokens as a chain")
        held = len(CONTEXT)
        cache.keep_path(held, [held + 1, held + 3])
        equal(list(cache.token_ids), [*CONTEXT, 6, 1], "keep_path does not keep the path's tokens")
        close(rows(model, cache, [2]), branch[-1:], "after keep_path the rows of other branches still count")

    def tree_in_parts() -> None:
        model = make()
        cache = model.new_cache()
        rows(model, cache, CONTEXT)
        whole = model.forward([ForwardItem(cache, TREE.token_ids, TREE.parents)])[0]
        held = len(CONTEXT)
        for cut in range(1, len(TREE)):
            cache.truncate(held)
            model.forward([ForwardItem(cache, TREE.token_ids[:cut], TREE.parents[:cut])])
            got = model.forward([ForwardItem(cache, TREE.token_ids[cut:], TREE.parents, trunk=held)])[0]
            close(got, whole[cut:], f"a tree fed in two parts, {cut} nodes first, differs from one pass")

    def limits() -> None:
        model = make()
        cache = model.new_cache()
        raises(lambda: rows(model, cache, []), "an empty item")
        raises(lambda: rows(model, cache, [model.vocab_size]), "a token outside the vocabulary")
        raises(lambda: rows(model, cache, [1] * (model.context_limit + 1)), "more than the context limit")
        equal(len(cache.token_ids), 0, "a pass that failed has left rows in the cache")

    named = (
        ("split", split),
        ("rollback", rollback),
        ("batch", batch),
        ("tree", tree),
        ("parts", tree_in_parts),
        ("limits", limits),
    )
    return [Check(f"model:{name}", run) for name, run in named]
