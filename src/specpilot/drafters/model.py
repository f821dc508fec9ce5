"""A small causal language model as the drafter: chains and token trees, step by step, in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from specpilot.decoding.caches import CacheStore, RequestCaches
from specpilot.decoding.distribution import DoubleArray
from specpilot.decoding.types import Block, Draft
from specpilot.drafters.base import DraftItem
from specpilot.drafters.growth import Growth
from specpilot.drafters.lookup import LookupDrafter
from specpilot.models.base import CausalLM, FloatArray, ForwardItem, KVCache, catch_up

_STEP_TOKENS = 2
"""A first pass over more than this is prefill and a step: after a full accept two tokens are fed (the
last drafted one and the bonus token), and that still takes the time of a step."""
LOOKUP = LookupDrafter.name
LookedUp = tuple[tuple[int, ...], float]
"""``looked_up``, as a :class:`Draft` has it."""
_Times = tuple[float, float, int]
"""``draft_ms``, ``prefill_ms``, ``prefill_tokens``, as a :class:`Draft` has them."""


class _Growing(Protocol):
    """One request's block while it grows."""

    item: DraftItem
    place: int
    fed: int
    first_ms: float
    later_ms: float
    cold: int
    """Tokens that the first step's prefill was for, those of all blocks."""

    @property
    def steps(self) -> int:
        """Draft steps made."""
        ...

    def feed(self) -> ForwardItem:
        """What the next draft step runs over."""
        ...

    def take(self, logits: FloatArray) -> bool:
        """Take that step's logits; whether the stop rule kept what came of it."""
        ...

    def goes_on(self, elapsed_ms: float) -> bool:
        """Whether to run another step, ``elapsed_ms`` into the cycle."""
        ...

    def draft(self, times: _Times) -> Draft:
        """The block, and what it took."""
        ...


@dataclass(slots=True)
class _Chain:
    """A chain."""

    item: DraftItem
    place: int
    cache: KVCache
    depth: int
    eos_token_ids: frozenset[int]
    looked_up: LookedUp | None = None
    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    rows: list[DoubleArray] = field(default_factory=list)
    fed: int = 0
    first_ms: float = 0.0
    later_ms: float = 0.0
    cold: int = 0

    @property
    def steps(self) -> int:
        return len(self.confidences)

    def feed(self) -> ForwardItem:
        feed = self.tokens[-1:] or catch_up(self.cache, self.item.context)
        self.fed = self.fed or len(feed)
        return ForwardItem(self.cache, feed, logits_from=len(feed) - 1)

    def take(self, logits: FloatArray) -> bool:
        item, position = self.item, len(self.tokens) + 1
        step = item.rule.look(logits[0], len(item.context) + len(self.tokens))
        self.confidences.append(step.confidence)
        if not item.stop.keep(position, step.confidence):
            return False
        self.tokens.append(item.rule.draw(step))
        if item.rule.needs_q and step.q is not None:
            self.rows.append(step.q)
        return True

    def goes_on(self, elapsed_ms: float) -> bool:
        return (
            len(self.tokens) < self.depth
            # A sample of q must not change how long the block takes: a time-out would keep some, drop others.
            and (self.item.rule.needs_q or self.tokens[-1] not in self.eos_token_ids)
            and self.item.stop.draft_on(len(self.tokens) + 1, elapsed_ms)
        )

    def draft(self, times: _Times) -> Draft:
        q = np.asarray(self.rows, dtype=np.float32) if self.rows else None
        return Draft(Block.chain(self.tokens), tuple(self.confidences), q, *times, looked_up=self.looked_up)


@dataclass(slots=True)
class _Tree:
    """A token tree; its nodes are fed to the draft model behind the context's rows, part by part."""

    item: DraftItem
    place: int
    cache: KVCache
    growth: Growth
    room: int  # rows that the cache has left behind the context's
    looked_up: LookedUp | None = None
    frontier: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)  # of the rows behind the context's
    straight: bool = True  # whether those rows are a chain
    fed: int = 0
    first_ms: float = 0.0
    later_ms: float = 0.0
    cold: int = 0

    @property
    def steps(self) -> int:
        return self.growth.steps

    def feed(self) -> ForwardItem:
        if not self.fed:
            feed = catch_up(self.cache, self.item.context)
            self.fed = len(feed)
            return ForwardItem(self.cache, feed, logits_from=len(feed) - 1)
        nodes, rows = self.growth.nodes, self.parents
        for index in self.frontier:
            parent = nodes[index].parent
            above = -1 if parent < 0 else nodes[parent].row
            nodes[index].row = len(rows)
            self.straight = self.straight and above == len(rows) - 1
            rows.append(above)
        tokens = [nodes[index].token for index in self.frontier]
        if self.straight:  # no mask to be made: it costs what a chain's step does
            return ForwardItem(self.cache, tokens)
        return ForwardItem(self.cache, tokens, tuple(rows), trunk=len(self.item.context))

    def take(self, logits: FloatArray) -> bool:
        rule, growth, context = self.item.rule, self.growth, len(self.item.context)
        positions = [context + (growth.nodes[index].depth if index >= 0 else 0) for index in self.frontier]
        alone = len(positions) == 1
        looks = [rule.look(logits[0], positions[0])] if alone else rule.look_all(logits, positions)
        for index, step, row in zip(self.frontier, looks, logits, strict=True):
            count = growth.choices_wanted(index, step.confidence)
            # As in a chain, for that is what most steps are where time is dear.
            if alone and count == 1 and growth.extend(index, rule.draw(step), step.confidence):
                return True
            growth.expand(index, rule.choices(step, row, count))
        growth.step_done()
        return True

    def goes_on(self, elapsed_ms: float) -> bool:
        frontier = self.growth.frontier()
        # Rows of nodes that have lost their place since are taken, too.
        self.frontier = frontier[: self.room - len(self.parents)] if self.fed else frontier
        return self.growth.goes_on(self.frontier, elapsed_ms)

    def draft(self, times: _Times) -> Draft:
        growth = self.growth
        held = len(self.item.context)
        if self.parents:
            # The rows of other branches must not be taken for those of an accepted path.
            main = sorted(held + node.row for node in growth.nodes if node.main and node.row >= 0)
            self.cache.keep_path(held, main)
        block, nodes, lead = growth.block()
        if not growth.steps:  # all of it was looked up
            shares = tuple(node.share for node in nodes)
            return Draft(
                block, shares, None, *times, looked_up=self.looked_up, drafter=LOOKUP if nodes else None
            )
        return Draft(
            block,
            tuple(growth.confidences[: lead + 1]),
            None,
            *times,
            main=lead,
            ranks=tuple(node.rank for node in nodes),
            shares=tuple(node.share for node in nodes),
            steps=growth.steps,
            side_worth=growth.side_worth(nodes),
            looked_up=self.looked_up,
        )


class ModelDrafter:
    """Drafts with a :class:`~specpilot.models.base.CausalLM`.

    Its cache is brought in step by :func:`~specpilot.models.base.catch_up`, which covers a rejection, the
    bonus token after a full accept (it must go through the draft as well) and session reuse. A request
    whose stop rule says stop leaves the batch; the others go on.

    Where the plan has a tree rule the block may branch. With ``lookup`` text that was seen before is then a
    path of the same tree, and where it is likely enough the draft model is not asked at all.

    Args:
        model: the draft model.
        store: where sessions' caches are kept between requests.
        lookup: prompt lookup beside the model; used in trees only.
        clock: seconds, monotonic; the stop rule's elapsed times come from it.
    """

    def __init__(
        self,
        model: CausalLM,
        store: CacheStore | None = None,
        *,
        lookup: LookupDrafter | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._caches = RequestCaches(model, store)
        self._lookup = lookup
        self._clock = clock
        self._step_ms = 0.0  # a recent single step, to part a first pass into prefill and step

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def vocab_size(self) -> int:
        """The model's vocabulary size."""
        return self._model.vocab_size

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None = None) -> int:
        """Take up a request; returns how many prompt tokens need no draft prefill."""
        if self._lookup is not None:
            self._lookup.open(request_id, prompt, session_id)
        return self._caches.open(request_id, prompt, session_id)

    def close(self, request_id: str) -> None:
        """Let go of a request; its cache goes to its session."""
        if self._lookup is not None:
            self._lookup.close(request_id)
        self._caches.close(request_id)

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        """One block per item, drafted in step: a chain, or a tree where the item has a tree rule.

        Under a rule that needs samples of q (rejection sampling) a block is a chain all the same. An item
        beyond the draft's own context gets an empty draft: that is no fault.
        """
        start = self._clock()
        growing: list[_Growing] = []
        blocks: list[_Growing] = []
        for place, item in enumerate(items):
            item.stop.start()
            block = self._begin(place, item)
            if block is None:
                continue
            blocks.append(block)
            spent_ms = (self._clock() - start) * 1000.0
            if isinstance(block, _Chain):
                wanted = item.stop.draft_on(1, item.elapsed_ms + spent_ms)
            else:
                wanted = block.goes_on(item.elapsed_ms + spent_ms)
            if wanted:
                growing.append(block)
        first = True
        while growing:
            growing = self._step(growing, start, first)
            first = False
        drafts = [Draft()] * len(items)
        for block in blocks:
            drafts[block.place] = self._finish(block)
        return drafts

    def _begin(self, place: int, item: DraftItem) -> _Growing | None:
        # The last token drafted is never fed, hence the one more.
        room = self._model.context_limit - len(item.context) + 1
        depth = min(item.max_draft, item.max_nodes, room)
        if depth < 1:
            return None
        eos = self._model.eos_token_ids
        cache = self._caches.of(item.request_id, item.context)
        rule = None if item.rule.needs_q else item.tree
        # What a chain does not propose is judged too: it says whether going over to trees is worth it.
        most = depth
        if rule is not None:
            most = min(rule.lookup.depth, depth) if rule.lookup is not None else 0
        looked_up: LookedUp | None = None
        if self._lookup is not None and most:
            found, confidence = self._lookup.find(item.request_id, item.context, most)
            looked_up = (tuple(found), confidence) if found else None
        if rule is None:
            return _Chain(item, place, cache, depth, eos, looked_up)
        if looked_up is None and not rule.branching:  # the same block, without a tree's bookkeeping
            depth = min(depth, rule.model_depth)
            return _Chain(item, place, cache, depth, eos) if depth else None
        growth = Growth(rule, item.stop, depth, min(item.max_nodes, room), eos)
        if looked_up is not None:
            growth.look_up(*looked_up)
        return _Tree(item, place, cache, growth, room - 1, looked_up)

    def _step(self, growing: list[_Growing], start: float, first: bool) -> list[_Growing]:
        """One draft step for all, everybody's ``first`` or nobody's; returns those that go on."""
        began = self._clock()
        logits = self._model.forward([block.feed() for block in growing])
        kept = [block for block, rows in zip(growing, logits, strict=True) if block.take(rows)]
        ended = self._clock()
        # Drawing is part of a step's price, so it is part of its time.
        step_ms = (ended - began) * 1000.0
        cold = sum([_prefilled(block) for block in growing]) if first else 0
        for block in growing:
            if first:
                block.first_ms, block.cold = step_ms, cold
            else:
                block.later_ms += step_ms
        if not cold:
            self._step_ms = step_ms
        spent_ms = (ended - start) * 1000.0
        return [block for block in kept if block.goes_on(block.item.elapsed_ms + spent_ms)]

    def _finish(self, block: _Growing) -> Draft:
        prefill_ms, beyond_ms, prefill_tokens = 0.0, 0.0, 0
        if block.steps and block.cold:
            # The first pass did both; what is beyond the time of a plain step was prefill, by its tokens.
            prefill_tokens = _prefilled(block)
            later = block.steps - 1
            step_ms = block.later_ms / later if later else self._step_ms
            beyond_ms = max(0.0, block.first_ms - step_ms)
            prefill_ms = beyond_ms * prefill_tokens / block.cold
        return block.draft((block.first_ms + block.later_ms - beyond_ms, prefill_ms, prefill_tokens))


def _prefilled(block: _Growing) -> int:
    """Tokens that a block's first step brought into the draft's cache beside the one it drafts from."""
    return block.fed - 1 if block.fed > _STEP_TOKENS else 0
