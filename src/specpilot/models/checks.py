"""What every :class:`~specpilot.models.base.CausalLM` must do, as functions that any engine's tests can call.

Each takes a loaded model, feeds it pseudo-random tokens, and raises :class:`CheckFailedError` with the
numbers if the model breaks the protocol. A model's results may depend on how the tokens are cut into passes
only by rounding: ``TOLERANCE`` is the largest difference of two logits allowed, for float32 models with
logits of order 10. The model needs a context of ``MIN_CONTEXT`` rows.

    for check in ALL_CHECKS:
        check(model)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from specpilot.models.base import CausalLM, ContextLimitError, FloatArray, ForwardItem, KVCache

TOLERANCE = 1e-4
MIN_CONTEXT = 48

_TREE = (-1, 0, 0, 1, -1, 4, 2)
"""Three branches that interleave: 0→1→3, 0→2→6, 4→5."""


class CheckFailedError(AssertionError):
    """A model breaks the protocol; the message says where and by how much."""


def check_chain_in_pieces(model: CausalLM) -> None:
    """Feeding tokens in pieces of any size gives the logits of feeding them at once."""
    tokens = _tokens(model, 23, seed=1)
    whole = _feed(model, model.new_cache(), tokens)
    for sizes in ((1,) * 23, (10, 13), (1, 5, 1, 16), (22, 1)):
        cache, rows, start = model.new_cache(), [], 0
        for size in sizes:
            rows.append(_feed(model, cache, tokens[start : start + size]))
            start += size
        _same(np.concatenate(rows), whole, f"a chain fed in pieces of {sizes}")
        _holds(cache, tokens)


def check_truncate(model: CausalLM) -> None:
    """A cache rolled back (also to nothing) and fed other tokens is as good as a fresh one."""
    first, second = _tokens(model, 20, seed=2), _tokens(model, 18, seed=3)
    cache = model.new_cache()
    _feed(model, cache, first)
    for kept in (20, 13, 12, 1, 0):
        cache.truncate(kept)
        _holds(cache, first[:kept])
        rows = _feed(model, cache, second)
        fresh = _feed(model, model.new_cache(), first[:kept] + second)
        _same(rows, fresh[kept:], f"tokens fed after a rollback to {kept} rows")
        cache.truncate(kept)


def check_tree(model: CausalLM) -> None:
    """Each node of a tree gets the logits that it gets when its path is fed as a chain."""
    for held in (0, 9):
        context, nodes = _tokens(model, held, seed=4), _tokens(model, len(_TREE), seed=5)
        cache = model.new_cache()
        if context:
            _feed(model, cache, context)
        (rows,) = model.forward([ForwardItem(cache, nodes, _TREE)])
        for node in range(len(_TREE)):
            chain = context + [nodes[index] for index in _path(node)]
            alone = _feed(model, model.new_cache(), chain)
            _same(rows[node], alone[-1], f"node {node} of a tree behind {held} rows")


def check_keep_path(model: CausalLM) -> None:
    """After one path of a tree was kept, the cache continues like a fresh one."""
    context, nodes, more = (_tokens(model, size, seed=6 + size) for size in (9, len(_TREE), 4))
    for node in (-1, 0, 3, 5, 6):
        path = _path(node)
        cache = model.new_cache()
        _feed(model, cache, context)
        model.forward([ForwardItem(cache, nodes, _TREE)])
        cache.keep_path(len(context), [len(context) + index for index in path])
        kept = context + [nodes[index] for index in path]
        _holds(cache, kept)
        fresh = _feed(model, model.new_cache(), kept + more)
        _same(_feed(model, cache, more), fresh[len(kept) :], f"tokens fed after the path {path} was kept")


def check_batch(model: CausalLM) -> None:
    """Items of different contexts, widths and shapes in one pass get what each gets alone."""
    contexts = [_tokens(model, size, seed=20 + size) for size in (0, 17, 5, 11, 8)]
    feeds = [_tokens(model, size, seed=40 + size) for size in (6, 1, len(_TREE), 3, 1)]
    parents = [None, None, _TREE, (-1, -1, 0), None]
    wanted_from = [5, 0, 2, 0, 0]

    def items(caches: Sequence[KVCache]) -> list[ForwardItem]:
        return [ForwardItem(*item) for item in zip(caches, feeds, parents, wanted_from, strict=True)]

    def fill() -> list[KVCache]:
        caches = [model.new_cache() for _ in contexts]
        for cache, context in zip(caches, contexts, strict=True):
            if context:
                _feed(model, cache, context)
        return caches

    together, apart = fill(), fill()
    batch = model.forward(items(together))
    for index, (rows, item) in enumerate(zip(batch, items(apart), strict=True)):
        (alone,) = model.forward([item])
        _same(rows, alone, f"item {index} of a batch")
        _holds(together[index], contexts[index] + feeds[index])
    # The caches must be as good as the logits: go on with all of them, a token each.
    token = _tokens(model, 1, seed=60)
    for cache in (*together, *apart):
        cache.truncate(len(cache.token_ids) - 1)
    more = model.forward([ForwardItem(cache, token) for cache in together])
    for index, (rows, cache) in enumerate(zip(more, apart, strict=True)):
        if parents[index] is None:  # the last rows of a tree's cache are not one text
            _same(rows, _feed(model, cache, token), f"item {index} of the batch after")


def check_logits_from(model: CausalLM) -> None:
    """Only the rows asked for come back, and they are the caller's to keep."""
    tokens = _tokens(model, 12, seed=70)
    whole = _feed(model, model.new_cache(), tokens)
    if whole.shape != (12, model.vocab_size) or whole.dtype != np.float32:
        raise CheckFailedError(f"logits: {whole.dtype} of shape {whole.shape}, not float32 (12, vocab_size)")
    for start in (1, 7, 11):
        (rows,) = model.forward([ForwardItem(model.new_cache(), tokens, logits_from=start)])
        _same(rows, whole[start:], f"logits from {start}")
    kept = whole.copy()
    _feed(model, model.new_cache(), tokens[::-1])
    if not np.array_equal(kept, whole):
        raise CheckFailedError("logits: a later pass has overwritten an earlier one's result")


def check_errors(model: CausalLM) -> None:
    """Bad input is refused, with nothing changed: also what stands beside it in the batch."""
    tokens = _tokens(model, 5, seed=80)
    cache, neighbour = model.new_cache(), model.new_cache()
    _feed(model, cache, tokens)
    limit, vocab = model.context_limit, model.vocab_size
    bad: list[tuple[str, type[ValueError], Callable[[], object]]] = [
        ("no tokens", ValueError, lambda: model.forward([ForwardItem(cache, [])])),
        ("a token ≥ vocab_size", ValueError, lambda: model.forward([ForwardItem(cache, [0, vocab])])),
        ("a negative token", ValueError, lambda: model.forward([ForwardItem(cache, [-1])])),
        (
            "a parent behind its child",
            ValueError,
            lambda: model.forward([ForwardItem(cache, [0, 1], [-1, 1])]),
        ),
        ("a parent below −1", ValueError, lambda: model.forward([ForwardItem(cache, [0], [-2])])),
        ("too few parents", ValueError, lambda: model.forward([ForwardItem(cache, [0, 1], [-1])])),
        ("logits_from = T", ValueError, lambda: model.forward([ForwardItem(cache, [0], logits_from=1)])),
        (
            "a cache twice",
            ValueError,
            lambda: model.forward([ForwardItem(cache, [0]), ForwardItem(cache, [1])]),
        ),
        (
            "more rows than the context",
            ContextLimitError,
            lambda: model.forward([ForwardItem(neighbour, [1]), ForwardItem(cache, [0] * (limit - 4))]),
        ),
        ("truncate beyond the end", ValueError, lambda: cache.truncate(6)),
        ("truncate below 0", ValueError, lambda: cache.truncate(-1)),
        ("a path not ascending", ValueError, lambda: cache.keep_path(1, [3, 2])),
        ("a path before length", ValueError, lambda: cache.keep_path(2, [1])),
        ("a path beyond the end", ValueError, lambda: cache.keep_path(2, [5])),
    ]
    for what, kind, call in bad:
        try:
            call()
        except kind:
            pass
        else:
            raise CheckFailedError(f"{what}: no {kind.__name__}")
        _holds(cache, tokens)
        _holds(neighbour, [])
    rows = _feed(model, cache, tokens)
    fresh = _feed(model, model.new_cache(), tokens + tokens)
    _same(rows, fresh[5:], "tokens fed after refused calls")


def check_context_limit(model: CausalLM) -> None:
    """The context can be filled to its last row. Slow for models with a long context."""
    tokens = _tokens(model, model.context_limit, seed=90)
    cache = model.new_cache()
    model.forward([ForwardItem(cache, tokens[:-2], logits_from=len(tokens) - 3)])
    rows = _feed(model, cache, tokens[-2:])
    if not np.isfinite(rows).all():
        raise CheckFailedError("logits: not finite at the end of the context")
    try:
        _feed(model, cache, tokens[:1])
    except ContextLimitError:
        return
    raise CheckFailedError("a full cache: no ContextLimitError")


ALL_CHECKS: tuple[Callable[[CausalLM], None], ...] = (
    check_chain_in_pieces,
    check_truncate,
    check_tree,
    check_keep_path,
    check_batch,
    check_logits_from,
    check_errors,
    check_context_limit,
)


def _tokens(model: CausalLM, size: int, seed: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(model.vocab_size, size=size).tolist()
    return drawn


def _feed(model: CausalLM, cache: KVCache, tokens: list[int]) -> FloatArray:
    (rows,) = model.forward([ForwardItem(cache, tokens)])
    return rows


def _path(node: int) -> list[int]:
    """The nodes from the root of ``_TREE`` to ``node``."""
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = _TREE[node]
    return path


def _holds(cache: KVCache, tokens: list[int]) -> None:
    if list(cache.token_ids) != tokens:
        raise CheckFailedError(f"token_ids: {list(cache.token_ids)}, not {tokens}")


def _same(found: FloatArray, wanted: FloatArray, what: str) -> None:
    if found.shape != wanted.shape:
        raise CheckFailedError(f"{what}: logits of shape {found.shape}, not {wanted.shape}")
    difference = float(np.abs(found - wanted).max())
    if not difference <= TOLERANCE:  # also NaN
        raise CheckFailedError(f"{what}: logits differ by {difference:.2e}, more than {TOLERANCE:.0e}")
