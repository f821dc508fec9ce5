"""Recording: bits, ranks and endings of a toy pair whose tokens can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
import pytest

from specpilot.models.base import FloatArray, ForwardItem
from specpilot.simulation.measure import _costs, _rising, measure_costs
from specpilot.simulation.record import Recorder

VOCAB = 16
EOS = 0


class ToyCache:
    """Remembers tokens; there are no keys and values."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def token_ids(self) -> Sequence[int]:
        return self.tokens

    @property
    def nbytes(self) -> int:
        return 0

    def truncate(self, length: int) -> None:
        del self.tokens[length:]

    def keep_path(self, length: int, rows: Sequence[int]) -> None:
        self.tokens = self.tokens[:length] + [self.tokens[row] for row in rows]


class ToyLM:
    """Next token = ``follow(previous token, position)``, with a logit of 2 over a runner-up of 1."""

    name = "toy"
    vocab_size = VOCAB
    eos_token_ids = frozenset({EOS})

    def __init__(self, follow: Callable[[int, int], int], context_limit: int = 64) -> None:
        self.follow = follow
        self.context_limit = context_limit
        self.passes = 0

    def new_cache(self) -> ToyCache:
        return ToyCache()

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        self.passes += 1
        answers = []
        for item in items:
            cache = item.cache
            assert isinstance(cache, ToyCache)
            rows = np.zeros((len(item.token_ids), VOCAB), dtype=np.float32)
            for index, token in enumerate(item.token_ids):
                cache.tokens.append(token)
                nxt = self.follow(token, len(cache.tokens))
                rows[index, nxt] = 2.0
                rows[index, (nxt + 1) % VOCAB] = 1.0
            answers.append(rows[item.logits_from :])
        return answers


def count_up(token: int, position: int) -> int:
    """5 follows 4; 0 (EOS) follows 15."""
    return (token + 1) % VOCAB


def count_up_but_for_fours(token: int, position: int) -> int:
    """Like :func:`count_up`, wrong after every multiple of four."""
    return (token + (3 if token % 4 == 0 else 1)) % VOCAB


@pytest.fixture
def toy_pair() -> tuple[ToyLM, ToyLM]:
    """(target, draft)."""
    return ToyLM(count_up), ToyLM(count_up_but_for_fours)


Pair = tuple[ToyLM, ToyLM]


def test_bits_against_the_known_pair(toy_pair: Pair) -> None:
    recording = Recorder(*toy_pair).record("a", [2, 3], 8, label="count")
    assert recording.token_ids == (4, 5, 6, 7, 8, 9, 10, 11)
    # The draft errs after 4 and after 8.
    assert recording.trace.agree == (1, 0, 1, 1, 1, 0, 1, 1)
    # It then says token + 3 and, second, token + 4; the right one is further down, among the equals.
    assert recording.trace.rank is not None
    assert recording.trace.rank[0] == 0
    assert recording.trace.rank[1] == 2
    assert recording.trace.margin_target == (1.0,) * 8
    assert recording.trace.ended == "max_tokens"
    assert recording.trace.label == "count"
    assert recording.inconsistent == 0


def test_eos_ends_it_and_counts(toy_pair: Pair) -> None:
    recording = Recorder(*toy_pair).record("a", [12], 8)
    assert recording.token_ids == (13, 14, 15, 0)
    assert recording.trace.ended == "eos"
    assert recording.trace.agree == (0, 1, 1, 1)


def test_the_next_request_reuses_the_caches_and_is_the_same(toy_pair: Pair) -> None:
    recorder = Recorder(*toy_pair)
    recorder.record("a", [2, 3], 4)
    again = recorder.record("b", [2, 3, 4, 5], 4)
    fresh = Recorder(*toy_pair).record("b", [2, 3, 4, 5], 4)
    assert again == fresh


def test_an_inconsistent_engine_is_counted(toy_pair: Pair) -> None:
    class Moody(ToyLM):
        """Says something else in a wide pass."""

        def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
            self.follow = (lambda t, p: 9) if len(items[0].token_ids) > 3 else count_up
            return super().forward(items)

    recording = Recorder(Moody(count_up), toy_pair[1]).record("a", [2], 6)
    assert recording.token_ids == (3, 4, 5, 6, 7, 8)
    assert recording.inconsistent == 6  # the wide pass says 9 everywhere


def test_bad_requests(toy_pair: Pair) -> None:
    recorder = Recorder(*toy_pair)
    with pytest.raises(ValueError, match="max_tokens: 0"):
        recorder.record("a", [1], 0)
    with pytest.raises(ValueError, match="64 tokens leave no room"):
        recorder.record("a", [1] * 64, 4)
    other = ToyLM(count_up)
    other.vocab_size = 17
    with pytest.raises(ValueError, match="must share one tokenizer"):
        Recorder(toy_pair[0], other)


def test_costs_are_measured_per_shape() -> None:
    # A clock that ticks 1 ms per reading: every pass takes 1 ms.
    ticks = count()
    pair = ToyLM(count_up, 600), ToyLM(count_up, 600)
    costs = measure_costs(*pair, rounds=1, engine="toy", clock=lambda: next(ticks) / 1000.0)
    assert costs.verify_ms(1, 0) == pytest.approx(1.0)
    assert costs.verify_ms(300, 0) == pytest.approx(1.0)
    assert costs.verify_ms(8, 384) == pytest.approx(1.0)
    assert costs.draft_step(200) == pytest.approx(1.0)
    assert costs.draft_forward(100) == pytest.approx(1.0)
    assert costs.engine == "toy"


def test_a_short_context_measures_what_fits() -> None:
    costs = measure_costs(ToyLM(count_up, 40), ToyLM(count_up, 40), rounds=1)
    assert [width for width, _ in costs.verify] == [1, 2, 4, 8, 16, 32]
    with pytest.raises(ValueError, match="rounds: 0"):
        measure_costs(ToyLM(count_up), ToyLM(count_up), rounds=0)


def test_the_first_draft_step_after_a_target_pass_is_told_apart() -> None:
    """Measured between target passes, a step looked two to three times as dear as a block's steps are."""
    times = {("step", 1, 0): 0.30, ("step", 2, 0): 0.10, ("step", 3, 0): 0.14, ("step", 1, 128): 0.34}
    times |= {("step", 2, 128): 0.14, ("step", 3, 128): 0.18}
    times |= {("target", 1, 0): 5.0, ("draft", 1, 0): 0.12, ("draft", 32, 0): 0.4}
    costs = _costs(times, "made up")
    assert costs.draft_start == pytest.approx(0.18)
    assert [costs.draft_step(context) for context in (0, 64, 128)] == pytest.approx([0.12, 0.14, 0.16])
    assert costs.draft_ms(3, 0) == pytest.approx(0.54)  # of which 0.30 + 0.10 + 0.14 were measured


def test_steps_and_passes_are_measured_in_the_order_of_a_cycle() -> None:
    order: list[tuple[str, int, int]] = []

    class Named(ToyLM):
        def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
            order.append((self.name, len(items[0].cache.token_ids), len(items[0].token_ids)))
            return super().forward(items)

    target, draft = Named(count_up, 100), Named(count_up, 100)
    target.name, draft.name = "target", "draft"
    measure_costs(target, draft, rounds=1)
    steps = [("draft", held, 1) for held in range(8)]
    assert order[:10] == [*steps, ("draft", 0, 1), ("target", 0, 1)]
    assert ("draft", 0, 32) in order  # a prompt is read before the first step
    at = order.index(("draft", 0, 32))
    assert order[at : at + 10] == [("draft", 0, 32), *steps, ("target", 0, 32)]


def test_a_dip_in_the_measured_times_is_noise() -> None:
    """A falling last segment, extended, would make a long context free (seen on a noisy machine)."""
    table = _rising([(0, 5.0), (128, 4.0), (384, 6.0)])
    assert [table(at) for at in (0, 128, 384)] == [4.5, 4.5, 6.0]
    assert _rising([(0, 5.0), (128, 4.0)])(1000) == 4.5
