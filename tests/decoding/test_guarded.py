"""Whatever a drafter does, the cycle gets an answer: exceptions, hangs, wrong vocabularies, nonsense."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from specpilot.control.stop import StopRule
from specpilot.decoding.acceptance import Greedy, Rejection
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.rule import AcceptanceRule
from specpilot.decoding.types import Block, Draft, SamplingParams
from specpilot.drafters.base import DraftItem
from specpilot.drafters.guarded import GuardedDrafter
from specpilot.drafters.model import ModelDrafter
from specpilot.targets.model import ModelTarget
from specpilot.targets.scripted import ScriptedLM
from specpilot.testing import StaticController, decode, plain_greedy

VOCAB = 12
GOOD = Draft(Block.chain([3]), (0.5,))


@dataclass
class Fake:
    """A drafter that does what ``answer`` does."""

    answer: Callable[[], Any]
    vocab_size: int = VOCAB
    name: str = "fake"
    events: list[str] = field(default_factory=list)

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None = None) -> int:
        self.events.append(f"open {request_id}")
        return 2

    def close(self, request_id: str) -> None:
        self.events.append(f"close {request_id}")

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        self.events.append("propose")
        result: list[Draft] = self.answer()
        return result


def item(rule: AcceptanceRule | None = None, depth: int = 2) -> DraftItem:
    return DraftItem("r", [1, 2], depth, depth, StopRule(), rule or Greedy())


def fault(answer: Callable[[], Any], rule: AcceptanceRule | None = None) -> str | None:
    draft = GuardedDrafter(Fake(answer), None, VOCAB).propose([item(rule)])[0]
    assert draft.fault is None or len(draft.block) == 0
    return draft.fault


def test_a_good_draft_passes_untouched() -> None:
    assert GuardedDrafter(Fake(lambda: [GOOD]), None, VOCAB).propose([item()]) == [GOOD]


NAN: Any = float("nan")


def tree(**changed: Any) -> list[Draft]:
    """Two choices beside each other, changed."""
    draft = Draft(
        Block((3, 4), (-1, -1)), (0.5,), main=1, ranks=(1, 2), shares=(0.5, 0.25), steps=1, side_worth=0.25
    )
    return [replace(draft, **changed)]


@pytest.mark.parametrize(
    "good", [tree(), tree(ranks=(1, 0)), tree(ranks=(0, 0)), tree(looked_up=((3,), 0.5))]
)
def test_a_good_tree_passes_untouched(good: list[Draft]) -> None:
    assert GuardedDrafter(Fake(lambda: good), None, VOCAB).propose([item()]) == good


BAD: dict[str, tuple[Any, str]] = {
    "too few": ([], "malformed: 0 drafts for 1 requests"),
    "not drafts": ([None], "malformed"),
    "not a list": (None, "exception: TypeError"),
    "token too large": ([Draft(Block.chain([VOCAB]), (0.5,))], "vocabulary: token 12"),
    "token negative": ([Draft(Block.chain([-1]), (0.5,))], "vocabulary: token -1"),
    "too deep": ([Draft(Block.chain([1, 2, 3]), (0.5,) * 3)], "malformed: 3 tokens proposed, 2 asked for"),
    "confidence": ([Draft(Block.chain([1]), (float("nan"),))], "malformed: confidence nan"),
    "times": ([Draft(Block.chain([1]), (0.5,), draft_ms=float("inf"))], "malformed: times"),
    "time negative": ([Draft(Block.chain([1]), (0.5,), draft_ms=-50.0)], "malformed: times"),
    "main": ([Draft(Block.chain([1, 2]), (0.5, 0.5), main=5)], "malformed: main 5"),
    "ranks": ([Draft(Block.chain([1, 2]), (0.5, 0.5), ranks=(1,))], "malformed: 1 ranks"),
    "a rank below 0": (tree(ranks=(1, -1)), "malformed: rank -1"),
    "a rank that is none": (tree(ranks=(1, float("nan"))), "malformed: rank nan"),
    "a rank between two": (tree(ranks=(1, 1.5)), "malformed: rank 1.5"),
    "a rank beyond the vocabulary": (tree(ranks=(1, VOCAB + 1)), "malformed: rank 13"),
    "one rank twice": (tree(ranks=(1, 1)), "malformed: rank 1 twice"),
    "a share above 1": (tree(shares=(0.5, 1.5)), "malformed: share 1.5"),
    "a share that is none": (tree(shares=(0.5, float("nan"))), "malformed: share nan"),
    "side worth": (tree(side_worth=float("nan")), "malformed: side_worth nan"),
    "looked up": (tree(looked_up=((3,), 2.0)), "malformed: confidence 2.0 of looked-up text"),
    "looked up without confidence": (tree(looked_up=(3,)), "malformed: ValueError"),
    "looked up text that is none": (tree(looked_up=(None, 0.5)), "malformed: TypeError"),
    "too few confidences": (
        [Draft(Block.chain([1, 2]), (0.5,))],
        "malformed: 1 confidences for 2 tokens",
    ),
    "too many confidences": (
        [Draft(Block.chain([1]), (0.5,) * 3)],
        "malformed: 3 confidences for 1 tokens",
    ),
    "tokens that are no numbers of tokens": (
        [Draft(Block.chain([1.0]), (0.5,))],  # type: ignore[list-item]
        "malformed: TypeError",
    ),
    "prefill": ([Draft(Block.chain([1]), (0.5,), prefill_tokens=-1)], "malformed: -1 prefill tokens"),
    "steps that are no number": ([Draft(Block.chain([1]), (0.5,), steps=NAN)], "malformed: nan steps"),
    "steps": ([Draft(Block.chain([1]), (0.5,), steps=-1)], "malformed: -1 steps"),
    "tokens with fault": ([Draft(Block.chain([1]), fault="x")], "malformed: tokens proposed"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_drafts_are_faults(name: str) -> None:
    answer, message = BAD[name]
    assert (fault(lambda: answer) or "").startswith(message)


def test_a_bad_draft_is_its_own_requests_fault() -> None:
    guarded = GuardedDrafter(Fake(lambda: [GOOD, Draft(Block.chain([99]))]), None, VOCAB)
    good, bad = guarded.propose([item(), item()])
    assert good == GOOD
    assert bad.fault is not None


def test_missing_q_is_a_fault_where_the_rule_needs_it() -> None:
    rule = Rejection(SamplingParams(temperature=1.0))
    assert (fault(lambda: [GOOD], rule) or "").startswith("malformed: q of shape None")


def test_a_tree_is_a_fault_where_the_rule_takes_chains() -> None:
    rule = Rejection(SamplingParams(temperature=1.0))
    q = np.full((2, VOCAB), 1.0 / VOCAB)
    assert (fault(lambda: tree(q=q), rule) or "").startswith("malformed: a tree, rejection takes chains")


EVEN = np.full(VOCAB, 1.0 / VOCAB)
BAD_Q = {
    "not normalised": (2.0 * EVEN, "malformed: q at place 1 sums to 2.0, not to 1"),
    "logits": (np.arange(VOCAB, dtype=float) - 5.0, "malformed: q at place 1 sums to 6.0, not to 1"),
    "no numbers": (np.where(np.arange(VOCAB) == 5, NAN, EVEN), "malformed: q at place 1 sums to nan"),
    "below 0": (np.eye(VOCAB)[3] + 0.1 * (np.eye(VOCAB)[1] - np.eye(VOCAB)[2]), "malformed: q at place 1"),
    "of another token": (np.eye(VOCAB)[4], "malformed: token 3 at place 1 has no chance under its q"),
}


@pytest.mark.parametrize("name", BAD_Q)
def test_a_q_that_the_token_was_not_drawn_from_is_a_fault(name: str) -> None:
    """Rejection sampling would accept by it all the same, and what it emits would not follow p."""
    rule = Rejection(SamplingParams(temperature=1.0))
    row, message = BAD_Q[name]
    draft = Draft(Block.chain([3, 3]), (0.5, 0.5), q=np.stack([EVEN, row]))
    assert (fault(lambda: [draft], rule) or "").startswith(message)


def test_an_exception_is_a_fault() -> None:
    def fail() -> Any:
        raise RuntimeError("planted")

    assert fault(fail) == "exception: RuntimeError: planted"


def test_another_vocabulary_is_never_asked() -> None:
    inner = Fake(lambda: [GOOD], vocab_size=VOCAB + 1)
    draft = GuardedDrafter(inner, None, VOCAB).propose([item()])[0]
    assert (draft.fault or "").startswith("vocabulary: 13 tokens, the target has 12")
    assert inner.events == []


def test_a_hang_is_left_alone_until_it_returns() -> None:
    release = threading.Event()
    hang = [True]

    def answer() -> Any:
        if hang[0]:
            release.wait(30.0)
        return [GOOD]

    inner = Fake(answer)
    # Long enough for a thread to get its turn on a busy machine.
    guarded = GuardedDrafter(inner, 1000.0, VOCAB)
    assert guarded.open("r", [1]) == 2
    assert (guarded.propose([item()])[0].fault or "").startswith("time-out: no answer within 1000 ms")
    # While it hangs: answered at once, and the inner drafter is not asked again.
    for _ in range(3):
        assert (guarded.propose([item()])[0].fault or "").startswith("time-out: an earlier call")
    assert guarded.open("late", [1]) == 0
    guarded.close("r")
    assert inner.events == ["open r", "propose"]
    hang[0] = False
    release.set()
    while guarded.propose([item()])[0].fault is not None:
        pass
    # What came meanwhile was done first, in order.
    assert inner.events[:4] == ["open r", "propose", "open late", "close r"]
    assert guarded.propose([item()]) == [GOOD]


def test_a_call_that_never_returns_is_given_up_for_a_fresh_drafter() -> None:
    """Ten time-outs of patience on a clock that the test moves: 10 · 20 ms, then twice that."""
    release = threading.Event()
    now_s = [0.0]
    made: list[Fake] = []

    def hangs() -> Any:
        release.wait(30.0)
        return [GOOD]

    answers: list[Callable[[], Any]] = [hangs, lambda: [GOOD]]

    def fresh() -> Fake:
        made.append(Fake(answers[len(made)]))
        return made[-1]

    old = Fake(hangs)
    guarded = GuardedDrafter(old, 20.0, VOCAB, fresh=fresh, clock=lambda: now_s[0])
    guarded.open("r", [1])
    guarded.open("over", [1])
    guarded.close("over")
    assert (guarded.propose([item()])[0].fault or "").startswith("time-out: no answer")
    guarded.open("late", [1])
    now_s[0] = 0.19
    assert (guarded.propose([item()])[0].fault or "").startswith("time-out: an earlier call")
    assert not made
    now_s[0] = 0.21  # the first fresh one hangs as well
    assert (guarded.propose([item()])[0].fault or "").startswith("time-out: no answer")
    now_s[0] = 0.21 + 0.39
    assert (guarded.propose([item()])[0].fault or "").startswith("time-out: an earlier call")
    now_s[0] = 0.21 + 0.41
    assert guarded.propose([item()]) == [GOOD]
    assert [one.events for one in made] == [["open r", "open late", "propose"]] * 2
    release.set()
    assert guarded.propose([item()]) == [GOOD]
    assert old.events == ["open r", "open over", "close over", "propose"]  # given nothing more to do


def test_only_so_many_calls_are_left_hanging() -> None:
    release = threading.Event()
    now_s = [0.0]
    hanging = [True]
    made: list[Fake] = []

    def answer() -> Any:
        if hanging[0]:
            release.wait(30.0)
        return [GOOD]

    def fresh() -> Fake:
        made.append(Fake(answer))
        return made[-1]

    guarded = GuardedDrafter(Fake(answer), 10.0, VOCAB, fresh=fresh, clock=lambda: now_s[0])
    for _ in range(8):
        assert guarded.propose([item()])[0].fault is not None
        now_s[0] += 1000.0
    assert len(made) == 4
    hanging[0] = False
    release.set()
    while guarded.propose([item()])[0].fault is not None:
        pass


def test_the_worker_thread_ends_with_the_drafter() -> None:
    others = set(threading.enumerate())  # of tests before this one in the same process
    guarded = GuardedDrafter(Fake(lambda: [GOOD]), 1000.0, VOCAB)
    guarded.propose([item()])
    workers = [
        thread
        for thread in threading.enumerate()
        if thread.name == "specpilot-drafter" and thread not in others
    ]
    assert workers
    del guarded
    for thread in workers:
        thread.join(5.0)
    assert not any(thread.is_alive() for thread in workers)


@pytest.mark.parametrize("timeout_ms", [0.0, -1.0, float("nan")])
def test_a_time_out_must_be_positive(timeout_ms: float) -> None:
    with pytest.raises(ValueError, match="timeout_ms"):
        GuardedDrafter(Fake(lambda: []), timeout_ms, VOCAB)


class Hanging(ScriptedLM):
    """Hangs in its third pass until released."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        self.release = threading.Event()
        self.passes = 0

    def forward(self, items: Sequence[Any]) -> list[Any]:
        self.passes += 1
        if self.passes == 3:
            self.release.wait(30.0)
        return super().forward(items)


def test_requests_complete_while_the_drafter_hangs() -> None:
    target, draft = ScriptedLM(seed=1), Hanging()
    drafter = GuardedDrafter(ModelDrafter(draft), 50.0, target.vocab_size)
    requests = [DecodingRequest(f"r{index}", [index + 1], 8) for index in range(3)]
    decode(ModelTarget(target), drafter, requests, StaticController(3))
    for request in requests:
        assert request.output == plain_greedy(target, request.prompt, 8)
    faults = [detail.fault or "" for request in requests for detail in request.details]
    assert sum(fault.startswith("time-out: no answer") for fault in faults) == 1
    draft.release.set()


def test_requests_complete_with_a_drafter_of_another_vocabulary() -> None:
    target = ScriptedLM(seed=1)
    request = DecodingRequest("r", [1], 8)
    decode(ModelTarget(target), ModelDrafter(ScriptedLM(13)), [request], StaticController(3))
    assert request.output == plain_greedy(target, [1], 8)
    assert all((detail.fault or "").startswith("vocabulary") for detail in request.details)
