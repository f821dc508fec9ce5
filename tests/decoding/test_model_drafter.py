"""The model drafter's batches, stop questions and times."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from specpilot.control.stop import StopRule
from specpilot.control.tree import TreeRule
from specpilot.decoding.acceptance import Greedy, Rejection
from specpilot.decoding.types import Draft, SamplingParams
from specpilot.drafters.base import DraftItem
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import FloatArray, ForwardItem
from specpilot.targets.scripted import ScriptedLM


class Ticking:
    """A clock that only moves when a model runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(ScriptedLM):
    """A pass takes 1 ms and 0.1 ms for each token beyond the second; remembers what it was fed."""

    def __init__(self, clock: Ticking, eos_token_ids: frozenset[int] = frozenset()) -> None:
        super().__init__(seed=3, eos_token_ids=eos_token_ids)
        self.clock = clock
        self.fed: list[list[int]] = []

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        widths = [len(item.token_ids) for item in items]
        self.fed.append(widths)
        self.clock.now += 1e-3 + 1e-4 * max(0, max(widths) - 2)
        return super().forward(items)


def drafter(eos_token_ids: frozenset[int] = frozenset()) -> tuple[ModelDrafter, Timed]:
    clock = Ticking()
    model = Timed(clock, eos_token_ids)
    return ModelDrafter(model, clock=clock), model


def propose(
    source: ModelDrafter,
    context: Sequence[int],
    depth: int,
    stop: StopRule | None = None,
    elapsed: float = 0.0,
) -> Draft:
    return source.propose([DraftItem("r", context, depth, depth, stop or StopRule(), Greedy(), elapsed)])[0]


def test_prefill_is_told_apart_from_steps() -> None:
    source, model = drafter()
    source.open("r", [1] * 12)
    first = propose(source, [1] * 12, 3)
    assert model.fed == [[12], [1], [1]]
    # The first pass took 2 ms; a step takes 1.
    assert first.prefill_tokens == 11
    assert [first.prefill_ms, first.draft_ms] == pytest.approx([1.0, 3.0])
    context = [1] * 12 + list(first.block.token_ids) + [5]
    # After a full accept the last drafted token and the bonus are fed: a step, no prefill.
    again = propose(source, context, 2)
    assert model.fed[3:] == [[2], [1]]
    assert again.prefill_tokens == 0
    assert [again.prefill_ms, again.draft_ms] == pytest.approx([0.0, 2.0])


def test_a_prefill_with_one_step_uses_the_last_known_step_time() -> None:
    source, _ = drafter()
    source.open("r", [1, 2])
    propose(source, [1, 2], 3)
    source.open("s", [4] * 12)
    draft = source.propose([DraftItem("s", [4] * 12, 1, 1, StopRule(), Greedy())])[0]
    assert [draft.prefill_ms, draft.draft_ms] == pytest.approx([1.0, 1.0])


class Questions(StopRule):
    """Writes down what it is asked."""

    def __init__(self, drafts: int = 99, keeps: int = 99) -> None:
        super().__init__()
        self.drafts, self.keeps = drafts, keeps
        self.log: list[tuple[str, int, float]] = []

    def start(self) -> None:
        self.log.append(("start", 0, 0.0))

    def draft_on(self, position: int, elapsed_ms: float) -> bool:
        self.log.append(("draft", position, round(elapsed_ms, 6)))
        return position <= self.drafts

    def keep(self, position: int, confidence: float) -> bool:
        self.log.append(("keep", position, 0.0))
        return position <= self.keeps


def test_the_stop_rule_is_asked_in_order_with_the_time() -> None:
    source, _ = drafter()
    source.open("r", [1, 2])
    stop = Questions(drafts=2)
    draft = propose(source, [1, 2], 5, stop, elapsed=4.0)
    assert stop.log == [
        ("start", 0, 0.0),
        ("draft", 1, 4.0),
        ("keep", 1, 0.0),
        ("draft", 2, 5.0),
        ("keep", 2, 0.0),
        ("draft", 3, 6.0),
    ]
    assert (len(draft.block), len(draft.confidences)) == (2, 2)


def test_a_token_not_kept_is_computed_but_not_proposed() -> None:
    source, _ = drafter()
    source.open("r", [1, 2])
    draft = propose(source, [1, 2], 5, Questions(keeps=2))
    assert (len(draft.block), len(draft.confidences)) == (2, 3)


def test_nothing_runs_where_the_rule_says_no_at_once() -> None:
    source, model = drafter()
    source.open("r", [1, 2])
    assert propose(source, [1, 2], 5, Questions(drafts=0)) == Draft()
    assert propose(source, [1, 2], 0) == Draft()
    assert model.fed == []


def test_requests_leave_the_batch_one_by_one() -> None:
    source, model = drafter()
    items = []
    for name, context, depth, keeps in (("a", [1, 2, 3], 4, 99), ("b", [2], 4, 1), ("c", [3, 3], 2, 99)):
        source.open(name, context)
        items.append(DraftItem(name, context, depth, depth, Questions(keeps=keeps), Greedy()))
    drafts = source.propose(items)
    assert model.fed == [[3, 1, 2], [1, 1, 1], [1], [1]]
    assert [len(draft.block) for draft in drafts] == [4, 1, 2]
    # The first step took 1.1 ms, 0.1 of it prefill of "a", the others 1 ms: one for all that made it.
    assert [draft.draft_ms for draft in drafts] == pytest.approx([4.0, 2.0, 2.0])
    assert [draft.prefill_ms for draft in drafts] == pytest.approx([0.1, 0.0, 0.0])


def test_drafting_ends_with_the_end_of_the_text() -> None:
    endless, _ = drafter()
    endless.open("r", [1, 2])
    tokens = propose(endless, [1, 2], 6).block.token_ids
    source, _ = drafter(frozenset({tokens[1]}))
    source.open("r", [1, 2])
    assert propose(source, [1, 2], 6).block.token_ids == tokens[: tokens.index(tokens[1]) + 1]


def test_a_sample_does_not_change_how_long_a_block_takes() -> None:
    """Else a time-out would keep blocks that drew the end of the text, which come sooner, and drop others:
    what is emitted would not follow p.
    """
    everything = frozenset(range(ScriptedLM().vocab_size))
    source, _ = drafter(everything)
    source.open("r", [1, 2])
    rule = Rejection(SamplingParams(temperature=1.0))
    assert len(source.propose([DraftItem("r", [1, 2], 6, 6, StopRule(), rule)])[0].block) == 6


@pytest.mark.parametrize("room", range(1, 10))
def test_a_tree_stays_within_the_drafts_context(room: int) -> None:
    """Nodes that lose their place to better ones have taken rows all the same."""
    rng = random.Random(room)
    for seed in range(30):
        model = ScriptedLM(vocab_size=12, seed=seed, scale=0.7, context_limit=40)
        source = ModelDrafter(model)
        context = [rng.randrange(12) for _ in range(40 - room)]
        source.open("r", context)
        tree = TreeRule(width=6)
        draft = source.propose([DraftItem("r", context, 8, 16, StopRule(), Greedy(), tree=tree)])[0]
        assert 1 <= draft.block.depth <= room + 1


def test_sampled_drafts_carry_the_rows_they_were_drawn_from() -> None:
    source, model = drafter()
    source.open("r", [1, 2])
    rule = Rejection(SamplingParams(temperature=0.7), np.random.default_rng(3))
    draft = source.propose([DraftItem("r", [1, 2], 3, 3, Questions(keeps=2), rule)])[0]
    assert draft.q is not None
    assert draft.q.shape == (2, 12)
    for place in range(2):
        scaled = model.next_logits([1, 2, *draft.block.token_ids[:place]]).astype(np.float64) / 0.7
        expected = np.exp(scaled - scaled.max())
        assert draft.q[place] == pytest.approx(expected / expected.sum(), abs=1e-6)
        assert draft.confidences[place] == pytest.approx(draft.q[place].max(), abs=1e-6)


def test_requests_must_be_open() -> None:
    source, _ = drafter()
    with pytest.raises(ValueError, match="open it first"):
        propose(source, [1], 2)
    source.open("r", [1])
    with pytest.raises(ValueError, match="open already"):
        source.open("r", [1])
