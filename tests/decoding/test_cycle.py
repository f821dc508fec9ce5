"""The cycle on scripted models: greedy output is the target's own, wherever blocks begin and end."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpilot.control.stop import StopRule
from specpilot.control.types import Binding, CycleOutcome, CyclePlan, Reason, StopCause
from specpilot.decoding.acceptance import Greedy
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.loop import duration_ms
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.text import StopStrings
from specpilot.decoding.types import Acceptance, Block, Draft, Verification
from specpilot.drafters.base import Drafter, DraftItem
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import FloatArray, ForwardItem, KVCache
from specpilot.targets.base import VerifyItem
from specpilot.targets.model import ModelTarget
from specpilot.targets.scripted import ScriptedLM
from specpilot.testing import StaticController, decode, plain_greedy
from specpilot.trace.cycles import CycleEvidence

LETTERS = "abcdefghij. "


class Letters:
    """A tokenizer of one letter per token."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(LETTERS[token] for token in token_ids)


class Store:
    """The simplest session store: everything is kept."""

    def __init__(self) -> None:
        self.caches: dict[str, KVCache] = {}

    def acquire(self, session_id: str, context: Sequence[int]) -> KVCache | None:
        return self.caches.pop(session_id, None)

    def release(self, session_id: str, cache: KVCache) -> None:
        self.caches[session_id] = cache


class Counting(ScriptedLM):
    """Counts its forward passes and the tokens in them."""

    def __init__(self, seed: int = 0, **options: float) -> None:
        super().__init__(seed=seed, **options)  # type: ignore[arg-type]
        self.widths: list[int] = []

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        self.widths.append(sum(len(item.token_ids) for item in items))
        return super().forward(items)


def plan(
    request_id: str, depth: int, cycle_id: int = 1, nodes: int | None = None, stop: StopRule | None = None
) -> CyclePlan:
    nodes = depth if nodes is None else nodes
    return CyclePlan(cycle_id, request_id, depth, nodes, stop or StopRule(), 1e9, False, Reason(Binding.MAX))


def one_cycle(
    target: ScriptedLM, drafter: Drafter | None, request: DecodingRequest, depth: int
) -> CycleOutcome:
    executor = LiveExecutor(ModelTarget(target), drafter, keep_details=True)
    executor.add(request)
    executor.open(request.request_id)
    return executor.run([plan(request.request_id, depth)])[0]


@dataclass
class Scripted(Drafter):
    """Proposes what it is told, whatever the context."""

    block: Block
    vocab_size: int = 12
    name: str = "told"
    opened: list[str] = field(default_factory=list)

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None = None) -> int:
        self.opened.append(request_id)
        return 0

    def close(self, request_id: str) -> None:
        self.opened.remove(request_id)

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        return [Draft(self.block, (0.5,) * self.block.depth) for _ in items]


prompts = st.lists(st.integers(0, 11), min_size=1, max_size=9)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_greedy_output_is_the_targets_own(data: st.DataObject) -> None:
    """Any τ sequence, stop rule, batch size, end of text, length limit and draft quality."""
    eos = frozenset(data.draw(st.sets(st.integers(0, 11), max_size=2), "eos"))
    target = ScriptedLM(seed=data.draw(st.integers(0, 5), "seed"), eos_token_ids=eos)
    draft = target.variant(noise=data.draw(st.sampled_from([0.0, 0.5, 3.0]), "noise"))
    depths = data.draw(st.lists(st.integers(0, 10), min_size=1, max_size=6), "depths")
    keeps = data.draw(st.sampled_from([(), (0.5,), (0.3, 0.3, 0.2), (1.0,)]), "keep_at")
    requests = [
        DecodingRequest(
            f"r{index}",
            data.draw(prompts, "prompt"),
            data.draw(st.integers(1, 16), "max_tokens"),
            eos_token_ids=eos,
        )
        for index in range(data.draw(st.integers(1, 4), "requests"))
    ]
    decode(
        ModelTarget(target),
        ModelDrafter(draft),
        requests,
        StaticController(
            lambda name, cycle: depths[(cycle + int(name[1:])) % len(depths)],
            lambda name, cycle: StopRule(intercept=0.0, keep_at=keeps),
        ),
        max_batch=data.draw(st.integers(1, 4), "max_batch"),
    )
    for request in requests:
        expected = plain_greedy(target, request.prompt, request.max_tokens)
        assert request.output == expected
        assert request.ended is (StopCause.EOS if expected[-1] in eos else StopCause.MAX_TOKENS)
        # I5: emitted = accepted path + one own token, fewer only in the last cycle.
        for detail in request.details[:-1]:
            assert detail.emitted == (*detail.accepted, detail.own)
        assert [token for detail in request.details for token in detail.emitted] == expected


@settings(max_examples=80, deadline=None)
@given(
    depths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=3),
    prompt=prompts,
    seed=st.integers(0, 3),
)
def test_stop_strings_end_the_text_where_they_first_occur(
    depths: list[int], stops: list[str], prompt: list[int], seed: int
) -> None:
    target = ScriptedLM(seed=seed)
    request = DecodingRequest("r", prompt, 20, stop=stops, detokenizer=Letters())
    decode(
        ModelTarget(target),
        ModelDrafter(target.variant(noise=0.4)),
        [request],
        StaticController(lambda name, cycle: depths[cycle % len(depths)]),
    )
    full = plain_greedy(target, prompt, 20)
    text = Letters().decode(full)
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not ends:
        assert (request.ended, request.output, request.text) == (StopCause.MAX_TOKENS, full, text)
        return
    # The output ends with the token that completes the first stop string; the text before it.
    assert request.ended is StopCause.STOP
    assert request.output == full[: min(ends)]
    cut = text[: min(ends)]
    assert request.text == cut[: min(cut.find(stop) for stop in stops if stop in cut)]


def test_prompt_and_first_block_are_one_pass() -> None:
    target = Counting(seed=2)
    request = DecodingRequest("r", [1, 2, 3, 4], 8)
    outcome = one_cycle(target, ModelDrafter(target.variant(noise=0.3)), request, 3)
    assert target.widths == [4 + 3]
    assert (outcome.verified_tokens, outcome.context_tokens, outcome.batch_size) == (7, 0, 1)
    assert outcome.batch_tokens == 0


def test_a_shared_pass_is_accounted_for_everybody() -> None:
    target = Counting(seed=2)
    executor = LiveExecutor(ModelTarget(target), ModelDrafter(target.variant(noise=0.3)))
    for name, prompt in (("a", [1, 2, 3]), ("b", [4])):
        executor.add(DecodingRequest(name, prompt, 8))
        executor.open(name)
    first, second = executor.run([plan("a", 2, 1), plan("b", 0, 2)])
    assert target.widths == [3 + 2 + 1]
    assert (first.batch_size, first.batch_tokens, second.batch_tokens) == (2, 6, 6)
    assert (first.verified_tokens, second.verified_tokens) == (5, 1)
    assert (second.drafted, second.proposed, second.emitted) == (0, 0, 1)


def test_the_parts_of_a_shared_cycle_add_up_to_its_time() -> None:
    """The clock moves by 1 ms at each look, whoever looks: whatever is charged must have passed once."""
    looks = itertools.count()

    def clock() -> float:
        return next(looks) / 1000.0

    target = ScriptedLM(seed=2)
    drafter = ModelDrafter(target.variant(noise=0.3), clock=clock)
    executor = LiveExecutor(ModelTarget(target, clock=clock), drafter, clock=clock)
    for name in ("a", "b", "c"):
        executor.add(DecodingRequest(name, [1, 2, 3], 8))
        executor.open(name)
    before = next(looks)
    outcomes = executor.run([plan("a", 2, 1), plan("b", 3, 2), plan("c", 0, 3)])
    took_ms = next(looks) - before - 2.0  # the first look and the last one are the cycle's own
    assert duration_ms(outcomes) == pytest.approx(took_ms)


def test_a_draft_that_proposes_the_end() -> None:
    model = ScriptedLM(seed=3)
    expected = plain_greedy(model, [1], 6)
    eos = frozenset({expected[2]})
    target = ScriptedLM(seed=3, eos_token_ids=eos)
    end = expected.index(expected[2])
    request = DecodingRequest("r", [1], 6, eos_token_ids=eos)
    outcome = one_cycle(target, Scripted(Block.chain(expected[:5])), request, 5)
    assert request.output == expected[: end + 1]
    # Accepted tokens beyond the end were never emitted and do not count; there is no bonus token.
    assert (outcome.accepted, outcome.emitted, outcome.ended) == (end + 1, end + 1, StopCause.EOS)
    wrong = DecodingRequest("r", [1], 6, eos_token_ids=frozenset({11}))
    drafted = [11, *expected[1:4]] if expected[0] != 11 else [0]
    outcome = one_cycle(ScriptedLM(seed=3), Scripted(Block.chain(drafted)), wrong, 4)
    assert (outcome.accepted, outcome.emitted, outcome.ended) == (0, 1, None)


def test_a_block_longer_than_what_is_left() -> None:
    model = ScriptedLM(seed=4)
    expected = plain_greedy(model, [2, 2], 9)
    for limit in range(1, 6):
        request = DecodingRequest("r", [2, 2], limit)
        outcome = one_cycle(model, Scripted(Block.chain(expected[:8])), request, 8)
        assert request.output == expected[:limit]
        assert (outcome.emitted, outcome.ended) == (limit, StopCause.MAX_TOKENS)


def test_trees_are_followed_and_committed() -> None:
    model = ScriptedLM(seed=6)
    expected = plain_greedy(model, [5, 1], 8)
    off = (expected[0] + 1) % 12
    block = Block((off, expected[0], off, expected[1], expected[2]), (-1, -1, 0, 1, 3))
    target = Counting(seed=6)
    executor = LiveExecutor(ModelTarget(target), Scripted(block), keep_details=True)
    request = DecodingRequest("r", [5, 1], 8)
    executor.add(request)
    executor.open("r")
    outcome = executor.run([plan("r", 3, nodes=5)])[0]
    # The block's first node is wrong and no other continues it: the path is beside the main chain.
    assert (outcome.drafted, outcome.proposed, outcome.accepted, outcome.emitted) == (3, 1, 0, 4)
    assert (outcome.side_proposed, outcome.side_accepted) == (4, 3)
    assert request.details[0].own_kind == "bonus"
    while request.ended is None:
        executor.run([plan("r", 0)])
    assert request.output == expected
    # Each plain cycle fed one token: the tree's rows had been moved up, not computed again.
    assert target.widths[1:] == [1] * (len(target.widths) - 1)


def test_own_token_is_named() -> None:
    model = ScriptedLM(seed=4)
    expected = plain_greedy(model, [2], 4)
    wrong = [token for token in range(12) if token not in expected][:1]
    cases: list[tuple[list[int], str]] = [([], "plain"), (expected[:2], "bonus"), (wrong, "recovered")]
    for block, kind in cases:
        request = DecodingRequest("r", [2], 8)
        one_cycle(model, Scripted(Block.chain(block)), request, len(block))
        assert request.details[0].own_kind == kind


def test_the_context_limit_bounds_the_block() -> None:
    target = ScriptedLM(seed=1, context_limit=8)
    request = DecodingRequest("r", [1, 2, 3], 5)
    decode(ModelTarget(target), ModelDrafter(target.variant(noise=0.2)), [request], StaticController(10))
    assert request.output == plain_greedy(ScriptedLM(seed=1), [1, 2, 3], 5)


def test_a_draft_with_a_shorter_context_stops_drafting() -> None:
    target = ScriptedLM(seed=1)
    draft = ScriptedLM(seed=1, context_limit=6)
    request = DecodingRequest("r", [1, 2, 3], 12)
    decode(ModelTarget(target), ModelDrafter(draft), [request], StaticController(4))
    assert request.output == plain_greedy(target, [1, 2, 3], 12)
    assert {detail.fault for detail in request.details} == {None}
    assert len(request.details[-1].block) == 0


@pytest.mark.parametrize("depth", [0, 3])
def test_sessions_reuse_caches_and_change_nothing(depth: int) -> None:
    target, draft = Counting(seed=8), Counting(seed=8, noise=0.4)
    stores = Store(), Store()
    document = [1, 2, 3, 4, 5, 6, 7, 8]
    # Typed on; an edit in the middle; a shorter text; the first output taken over.
    first = DecodingRequest("a", document, 6, session_id="s")
    decode(ModelTarget(target, stores[0]), ModelDrafter(draft, stores[1]), [first], StaticController(depth))
    texts = [[*document, 9, 9], [*document[:4], 0, 1], document[:3], [*document, *first.output]]
    for index, prompt in enumerate(texts):
        cold = plain_greedy(ScriptedLM(seed=8), prompt, 6)
        shared = target_rows(stores[0], prompt)
        target.widths.clear()
        request = DecodingRequest(f"b{index}", prompt, 6, session_id="s")
        decode(
            ModelTarget(target, stores[0]), ModelDrafter(draft, stores[1]), [request], StaticController(depth)
        )
        assert request.output == cold
        assert target.widths[0] == len(prompt) - shared + len(request.details[0].block)


def test_an_opened_request_says_what_is_cached() -> None:
    store = Store()
    target = ModelTarget(ScriptedLM(seed=8), store)
    request = DecodingRequest("a", [1, 2, 3, 4, 5, 6], 3, session_id="s")
    decode(target, None, [request], StaticController(0))
    assert target.open("b", request.context, "s") == 8  # the last token has never been fed
    target.close("b")
    assert target.open("c", request.prompt, "s") == 5  # the last one is fed again, for its logits
    assert target.open("d", request.prompt) == 0


def target_rows(store: Store, prompt: Sequence[int]) -> int:
    """Rows of the stored cache that a request with this prompt can reuse."""
    held = store.caches["s"].token_ids
    shared = 0
    while shared < min(len(held), len(prompt) - 1) and held[shared] == prompt[shared]:
        shared += 1
    return shared


def test_a_waiting_request_of_a_session_finds_the_cache_late() -> None:
    target, store = Counting(seed=8), Store()
    requests = [DecodingRequest(name, [1, 2, 3, 4, 5, 6], 3, session_id="s") for name in ("a", "b")]
    # Both are opened before the first has run; the second one finds the cache when its turn comes.
    decode(ModelTarget(target, store), None, requests, StaticController(0))
    assert requests[0].output == requests[1].output
    assert target.widths == [6, 1, 1, 1, 1, 1]


# --- faults ---------------------------------------------------------------------------------------


class Failing(ScriptedLM):
    """Raises on the passes chosen."""

    def __init__(self, when: Callable[[Sequence[ForwardItem]], bool], seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.when = when

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        if self.when(items):
            raise RuntimeError("planted")
        return super().forward(items)


def test_a_failing_draft_model_costs_no_request() -> None:
    target = ScriptedLM(seed=1)
    calls = iter(range(1000))
    draft = Failing(lambda items: next(calls) % 7 == 4, seed=1)
    requests = [DecodingRequest(f"r{index}", [index, 3], 10) for index in range(4)]
    decode(ModelTarget(target), ModelDrafter(draft), requests, StaticController(3), max_batch=2)
    for request in requests:
        assert request.output == plain_greedy(target, request.prompt, 10)
        assert request.ended is StopCause.MAX_TOKENS
    faults = [detail.fault for request in requests for detail in request.details]
    assert "exception: RuntimeError: planted" in faults
    assert None in faults


def test_a_failing_target_ends_the_requests_of_that_pass_only() -> None:
    target = Failing(lambda items: any(2 in item.token_ids[:1] for item in items), seed=1)
    healthy = ScriptedLM(seed=1)
    requests = [DecodingRequest(name, prompt, 1) for name, prompt in (("a", [1]), ("b", [2]), ("c", [3]))]
    result = decode(ModelTarget(target), None, requests, StaticController(0))
    causes = {summary.request_id: summary.cause for summary in result.summaries}
    assert causes == {"a": StopCause.MAX_TOKENS, "b": StopCause.ERROR, "c": StopCause.MAX_TOKENS}
    assert requests[1].error == "RuntimeError: planted"
    assert requests[1].output == []
    for request in (requests[0], requests[2]):
        assert request.output == plain_greedy(healthy, request.prompt, 1)


def test_a_failing_rule_ends_its_own_request_only() -> None:
    from specpilot.decoding.acceptance import Rejection
    from specpilot.decoding.types import SamplingParams

    target = ScriptedLM(seed=1)
    tree = Block((1, 2), (-1, -1))
    executor = LiveExecutor(ModelTarget(target), Scripted(tree))
    # Rejection needs q, and gets a tree: the guard calls that a fault of the draft, no error.
    sampled = DecodingRequest("s", [1], 4, rule=Rejection(SamplingParams(temperature=1.0)))
    greedy = DecodingRequest("g", [1], 4)
    for request in (sampled, greedy):
        executor.add(request)
        executor.open(request.request_id)
    first, second = executor.run([plan("s", 2, 1), plan("g", 2, 2)])
    assert first.draft_fault is not None
    assert first.emitted == 1
    assert second.draft_fault is None


class Choking(Letters):
    """Letters until the text has this many, then an exception."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.calls += 1
        if self.calls > self.most:
            raise RuntimeError("planted")
        return super().decode(token_ids)


def beside(
    request: DecodingRequest, drafter: Drafter | None, cycles: int = 1, **options: Any
) -> tuple[list[CycleOutcome], DecodingRequest]:
    """The request's outcomes in passes shared with another; the other one, which must be served in full."""
    target = ScriptedLM(seed=1)
    executor = LiveExecutor(ModelTarget(target), drafter, keep_details=True, **options)
    other = DecodingRequest("other", [3, 4], 4 * cycles)
    for one in (request, other):
        executor.add(one)
        executor.open(one.request_id)
    outcomes: list[CycleOutcome] = []
    while request.ended is None and len(outcomes) < cycles:
        number = 2 * len(outcomes)
        mine, its = executor.run([plan(request.request_id, 3, number), plan("other", 3, number + 1)])
        outcomes.append(mine)
        assert its.batch_size == 2
        assert its.ended is None or its.ended is StopCause.MAX_TOKENS
    while other.ended is None:
        executor.run([plan("other", 3)])
    assert other.output == plain_greedy(target, [3, 4], 4 * cycles)
    return outcomes, other


@pytest.mark.parametrize("most", range(1, 10))
def test_a_text_that_cannot_be_made_ends_its_own_request_only(most: int) -> None:
    """The tokenizer fails in the middle of a block: what was appended until then is verified, and counts."""
    target = ScriptedLM(seed=1)
    expected = plain_greedy(target, [1], 4)
    request = DecodingRequest("r", [1], 20, detokenizer=Choking(most))
    (outcome,), _ = beside(request, Scripted(Block.chain(expected[:3])))
    if most == 9:
        assert (outcome.ended, outcome.emitted) == (None, 4)
        return
    assert outcome.ended is StopCause.ERROR
    assert request.error == "RuntimeError: planted"
    assert 0 < outcome.emitted == request.emitted <= 4
    assert outcome.accepted == min(outcome.emitted, 3)
    assert request.output == expected[: outcome.emitted]
    assert Letters().decode(request.output).startswith(request.text)


def test_held_back_text_that_cannot_be_made_is_an_error() -> None:
    """At the end of the output, too: the request ends, and is closed, all the same."""
    model = ScriptedLM(seed=1)
    expected = plain_greedy(model, [1], 2)
    # One call for the prompt's last token and two for each token that is not the last, then the flush fails.
    executor = LiveExecutor(ModelTarget(model), None)
    request = DecodingRequest("r", [1], 2, detokenizer=Choking(5))
    executor.add(request)
    executor.open("r")
    executor.run([plan("r", 0)])
    (last,) = executor.run([plan("r", 0)])
    assert (last.ended, last.emitted, request.output) == (StopCause.ERROR, 1, expected)
    assert request.error == "RuntimeError: planted"
    executor.close("r", StopCause.ERROR)
    left = DecodingRequest("r", [1], 2, detokenizer=Choking(1))
    executor.add(left)
    executor.open("r")
    executor.close("r", StopCause.CANCELLED)
    executor.add(DecodingRequest("r", [1], 2))  # the id is free: nothing was left behind
    assert (left.ended, left.error) == (StopCause.CANCELLED, "RuntimeError: planted")


@pytest.mark.parametrize("judge", ["judged_ranks", "judged_lookup"])
def test_a_block_that_cannot_be_judged_ends_its_own_request_only(
    judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain_greedy(ScriptedLM(seed=1), [1], 4)

    class Ranked(Scripted):
        def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
            drafts = super().propose(items)
            if len(items) == 2:
                looked_up = (tuple(expected[:2]), 0.5)
                drafts[0] = replace(drafts[0], ranks=(1, 1, 1), shares=(0.5,) * 3, looked_up=looked_up)
            return drafts

    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(f"specpilot.decoding.cycle.{judge}", broken)
    request = DecodingRequest("r", [1], 20)
    (outcome,), _ = beside(request, Ranked(Block.chain(expected[:3])))
    assert (outcome.ended, request.error) == (StopCause.ERROR, "RuntimeError: planted")
    assert (outcome.accepted, outcome.emitted, request.output) == (3, 4, expected)
    assert request.details[0].emitted == tuple(expected)


def test_a_path_that_is_none_ends_its_own_request_only() -> None:
    class Lost(Greedy):
        def accept(
            self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
        ) -> Acceptance:
            return Acceptance((0, 7), 1)

    request = DecodingRequest("r", [1], 20, rule=Lost())
    (outcome,), _ = beside(request, Scripted(Block.chain([2])))
    assert (outcome.ended, outcome.emitted, request.output) == (StopCause.ERROR, 0, [])


def test_a_failing_sink_of_evidence_costs_no_token(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever writes a trace only looks on: the cycle's evidence is lost, and the log says so."""
    told: list[int] = []

    def sink(cycle_id: int, evidence: CycleEvidence) -> None:
        told.append(cycle_id)
        if cycle_id % 2 == 0:
            raise OSError("disk full")

    target = ScriptedLM(seed=1)
    request = DecodingRequest("r", [1], 9)
    outcomes, _ = beside(request, ModelDrafter(target.variant(noise=0.3)), cycles=9, evidence=sink)
    assert request.ended is StopCause.MAX_TOKENS
    assert request.error is None
    assert request.output == plain_greedy(target, [1], 9)
    assert sum(outcome.emitted for outcome in outcomes) == 9
    assert len(told) >= 2 * len(outcomes)
    assert "disk full" in caplog.text
    assert "cycle 0" in caplog.text


def test_a_target_that_answers_for_too_few_fails_the_pass() -> None:
    class Short(ModelTarget):
        def verify(self, items: Sequence[VerifyItem]) -> list[Verification]:
            return super().verify(items)[:1]

    executor = LiveExecutor(Short(ScriptedLM(seed=1)), None)
    requests = [DecodingRequest(name, [1], 4) for name in ("a", "b")]
    for request in requests:
        executor.add(request)
        executor.open(request.request_id)
    outcomes = executor.run([plan("a", 0, 1), plan("b", 0, 2)])
    assert [outcome.ended for outcome in outcomes] == [StopCause.ERROR] * 2
    assert [request.output for request in requests] == [[], []]
    assert "1 answers for 2 requests" in str(requests[0].error)


def test_a_block_that_was_never_judged_leaves_no_rows_to_its_session() -> None:
    """A tree's nodes stand side by side in the cache: they are no text that a later prompt may go on from."""

    class Broken(Greedy):
        def accept(
            self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
        ) -> Acceptance:
            raise RuntimeError("planted")

    target, store = ScriptedLM(seed=1), Store()
    document = [1, 2, 3, 4]
    executor = LiveExecutor(ModelTarget(target, store), Scripted(Block((5, 6), (-1, -1))))
    request = DecodingRequest("a", document, 4, session_id="s", rule=Broken())
    executor.add(request)
    executor.open("a")
    (outcome,) = executor.run([plan("a", 2)])
    assert outcome.ended is StopCause.ERROR
    executor.close("a", StopCause.ERROR)
    assert list(store.caches["s"].token_ids) == document
    later = DecodingRequest("b", [*document, 5, 6, 7], 6, session_id="s")
    decode(ModelTarget(target, store), None, [later], StaticController(0))
    assert later.output == plain_greedy(ScriptedLM(seed=1), later.prompt, 6)


def test_requests_must_be_added_and_running() -> None:
    executor = LiveExecutor(ModelTarget(ScriptedLM()), None)
    with pytest.raises(ValueError, match="add the request first"):
        executor.open("nobody")
    request = DecodingRequest("r", [1], 1)
    executor.add(request)
    with pytest.raises(ValueError, match="in flight"):
        executor.add(request)
    executor.open("r")
    executor.run([plan("r", 0)])
    with pytest.raises(ValueError, match="has ended"):
        executor.run([plan("r", 0)])
    executor.close("r", StopCause.MAX_TOKENS)
    executor.close("r", StopCause.MAX_TOKENS)


def test_stop_strings_hold_back_what_may_become_one() -> None:
    stops = StopStrings(["end", "\n\n"])
    assert [stops.push(piece) for piece in ("a e", "n", "x\n", "b", "\n\nmore", "late")] == [
        "a ",
        "",
        "enx",
        "\nb",
        "",
        "",
    ]
    assert stops.found == "\n\n"
