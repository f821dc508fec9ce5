"""A toy language model with exact, seeded distributions over a small vocabulary, for tests and docs.

It is a causal language model like any other (draft or target) and takes microseconds. Its keys and
values are not decoration: what a row predicts is computed from *all* the rows that it can see in the cache,
so a stale, missing or misplaced row changes the answer, as it does in a transformer.

>>> target = ScriptedLM(vocab_size=8, seed=1)
>>> draft = target.variant(noise=0.5, name="draft")
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specpilot.models.base import ContextLimitError, FloatArray, ForwardItem

_MASK = (1 << 64) - 1
_MOODS = 64
"""Rows of the table that stands for everything but the last tokens."""


class ScriptedCache:
    """One value per row: the token and a hash of it with its position, as a stand-in for key and value."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.values: list[int] = []

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens held, in row order."""
        return self.tokens

    @property
    def nbytes(self) -> int:
        """Sixteen bytes a row."""
        return 16 * len(self.tokens)

    def truncate(self, length: int) -> None:
        """Roll back to the first ``length`` rows.

        Raises:
            ValueError: if there are not so many.
        """
        if not 0 <= length <= len(self.tokens):
            raise ValueError(
                f"length: {length} is not in 0…{len(self.tokens)}; a cache cannot grow by truncation"
            )
        del self.tokens[length:], self.values[length:]

    def keep_path(self, length: int, rows: Sequence[int]) -> None:
        """Keep the first ``length`` rows, then ``rows``.

        Raises:
            ValueError: unless ``rows`` ascend, behind the first ``length``, among those held.
        """
        if any(not length <= row < len(self.tokens) for row in rows) or list(rows) != sorted(set(rows)):
            raise ValueError(f"rows: {list(rows)} are not ascending in {length}…{len(self.tokens) - 1}")
        self.tokens[length:] = [self.tokens[row] for row in rows]
        self.values[length:] = [self.values[row] for row in rows]


class ScriptedLM:
    """Logits = table[last ``order`` tokens] + ``memory`` · table[hash of all that is seen] + noise.

    Args:
        vocab_size: V ≥ 2.
        order: how many last tokens the main table looks at (V**order rows), ≥ 1.
        seed: of the tables; equal seeds and shapes are equal models.
        scale: spread of the main table's logits; larger is more predictable.
        memory: weight of what the whole visible prefix contributes.
        noise: spread of what is added on top by :meth:`variant`, seeded by ``noise_seed``.
        eos_token_ids: tokens that end an output.
        context_limit: most rows in a cache.
        name: the model's name.

    Raises:
        ValueError: for a vocabulary below 2 or an order below 1.
    """

    def __init__(
        self,
        vocab_size: int = 12,
        *,
        order: int = 2,
        seed: int = 0,
        scale: float = 2.0,
        memory: float = 0.5,
        noise: float = 0.0,
        noise_seed: int = 1,
        eos_token_ids: frozenset[int] = frozenset(),
        context_limit: int = 512,
        name: str = "scripted",
    ) -> None:
        if vocab_size < 2:
            raise ValueError(f"vocab_size: {vocab_size} is not ≥ 2; one token leaves nothing to predict")
        if order < 1:
            raise ValueError(f"order: {order} is not ≥ 1; the last token at least must count")
        self._shape = {"vocab_size": vocab_size, "order": order, "seed": seed}
        self._weights = {"scale": scale, "memory": memory}
        self._name = name
        self._vocab_size = vocab_size
        self._order = order
        self._eos = eos_token_ids
        self._limit = context_limit
        rng = np.random.default_rng([seed, vocab_size, order])
        self._table = scale * rng.standard_normal((vocab_size**order, vocab_size))
        self._moods = memory * rng.standard_normal((_MOODS, vocab_size))
        if noise:
            rng = np.random.default_rng([noise_seed, vocab_size, order])
            self._table = self._table + noise * rng.standard_normal(self._table.shape)

    def variant(self, *, noise: float, noise_seed: int = 1, name: str = "draft") -> ScriptedLM:
        """A model that resembles this one: ``noise`` is the spread of the difference of their logits."""
        return ScriptedLM(
            self._vocab_size,
            order=self._order,
            seed=self._shape["seed"],
            scale=self._weights["scale"],
            memory=self._weights["memory"],
            noise=noise,
            noise_seed=noise_seed,
            eos_token_ids=self._eos,
            context_limit=self._limit,
            name=name,
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._vocab_size

    @property
    def context_limit(self) -> int:
        """Most rows in a cache."""
        return self._limit

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an output."""
        return self._eos

    def new_cache(self) -> ScriptedCache:
        """An empty cache."""
        return ScriptedCache()

    def next_logits(self, context: Sequence[int]) -> FloatArray:
        """The exact logits (vocab,) after ``context``, with no cache: the reference for tests.

        Raises:
            ValueError: if ``context`` is empty.
        """
        if not context:
            raise ValueError("context: it is empty; a model predicts from at least one token")
        seen = sum(_value(token, position) for position, token in enumerate(context)) & _MASK
        return self._logits(list(context[-self._order :]), seen)

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        """One pass; see :meth:`specpilot.models.base.CausalLM.forward`."""
        caches = [self._checked(item) for item in items]
        return [self._run(item, cache) for item, cache in zip(items, caches, strict=True)]

    def _checked(self, item: ForwardItem) -> ScriptedCache:
        if not isinstance(item.cache, ScriptedCache):
            raise ValueError(f"cache: {type(item.cache).__name__} is not a ScriptedCache; use new_cache()")
        size, held = len(item.token_ids), len(item.cache.token_ids)
        if not size:
            raise ValueError("token_ids: there are none; feed at least one token")
        if held + size > self._limit:
            raise ContextLimitError(
                f"token_ids: {held} cached and {size} more exceed the context of {self._limit}"
            )
        for token in item.token_ids:
            if not 0 <= token < self._vocab_size:
                raise ValueError(
                    f"token_ids: {token} is not in 0…{self._vocab_size - 1}; is it another tokenizer's?"
                )
        trunk = held if item.trunk is None else item.trunk
        parents = range(-1, size - 1) if item.parents is None else item.parents
        nodes = held - trunk + size
        if len(parents) != nodes or any(not -1 <= parent < index for index, parent in enumerate(parents)):
            raise ValueError(f"parents: {list(parents)} do not make a tree of {nodes} tokens, parents first")
        if not 0 <= item.logits_from < size:
            raise ValueError(f"logits_from: {item.logits_from} is not in 0…{size - 1}")
        return item.cache

    def _run(self, item: ForwardItem, cache: ScriptedCache) -> FloatArray:
        held = len(cache.tokens)
        trunk = held if item.trunk is None else item.trunk
        parents = range(-1, len(item.token_ids) - 1) if item.parents is None else item.parents
        before = sum(cache.values if item.trunk is None else cache.values[:trunk])
        recent = cache.tokens[:trunk][-self._order :]
        seen: list[int] = []
        last: list[list[int]] = []
        positions: list[int] = []
        rows: list[FloatArray] = []
        earlier = zip(cache.tokens[trunk:], cache.values[trunk:], strict=True)
        for index, parent in enumerate(parents):
            position = trunk if parent < 0 else positions[parent] + 1
            fed = index - (held - trunk)
            if fed < 0:  # an earlier part of the tree: what its row holds counts
                token, value = next(earlier)
            else:
                token = item.token_ids[fed]
                value = _value(token, position)
            seen.append((before if parent < 0 else seen[parent]) + value)
            last.append([*(recent if parent < 0 else last[parent]), token][-self._order :])
            positions.append(position)
            if fed < 0:
                continue
            cache.tokens.append(token)
            cache.values.append(value)
            if fed >= item.logits_from:
                rows.append(self._logits(last[index], seen[index] & _MASK))
        return np.stack(rows)

    def _logits(self, last: Sequence[int], seen: int) -> FloatArray:
        row = 0
        for token in last:
            row = row * self._vocab_size + token
        mood = (seen * 0x9E3779B97F4A7C15 & _MASK) >> 58
        return np.asarray(self._table[row] + self._moods[mood], dtype=np.float32)


def _value(token: int, position: int) -> int:
    """What a row holds: a hash of token and position (splitmix64's finaliser)."""
    value = (token * 0x100000001B3 + position * 0x9E3779B97F4A7C15 + 1) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
