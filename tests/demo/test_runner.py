"""The whole demonstration on toy models: real cycle, real loop, real clock, two seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from specpilot.control import ControllerConfig
from specpilot.demo.outcome import DemoOutcome
from specpilot.demo.pair_engine import PairEngine
from specpilot.demo.runner import DemoConfig, run_demo
from specpilot.models.base import FloatArray, ForwardItem
from specpilot.trace import read_trace, write_trace
from specpilot.trace.replay import replay_decisions
from specpilot.trace.validate import validate

VOCAB = 32


class ToyCache:
    """Remembers tokens; there are no keys and values."""

    nbytes = 0

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def token_ids(self) -> Sequence[int]:
        return self.tokens

    def truncate(self, length: int) -> None:
        del self.tokens[length:]

    def keep_path(self, length: int, rows: Sequence[int]) -> None:
        self.tokens = self.tokens[:length] + [self.tokens[row] for row in rows]


class ToyLM:
    """The next token is a function of the last two; the draft sees only the last one and so errs."""

    vocab_size = VOCAB
    context_limit = 4096
    eos_token_ids = frozenset({0})

    def __init__(self, name: str, follow: Callable[[int, int], int]) -> None:
        self.name = name
        self.follow = follow

    def new_cache(self) -> ToyCache:
        return ToyCache()

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        answers = []
        for item in items:
            cache = item.cache
            assert isinstance(cache, ToyCache)
            rows = np.zeros((len(item.token_ids), VOCAB), dtype=np.float32)
            held = len(cache.tokens)
            trunk = held if item.trunk is None else item.trunk
            for index, token in enumerate(item.token_ids):
                at = held + index
                parent = at - trunk - 1 if item.parents is None else item.parents[at - trunk]
                row = trunk + parent
                before = cache.tokens[row] if row >= 0 else 0
                cache.tokens.append(token)
                rows[index, self.follow(before, token)] = 3.0
                rows[index, (token + 5) % VOCAB] += 1.0
            answers.append(rows[item.logits_from :])
        return answers


def target_follow(before: int, token: int) -> int:
    return (7 * token + 3 + (before % 3 == 0)) % VOCAB


def draft_follow(before: int, token: int) -> int:
    return (7 * token + 3) % VOCAB


def encode(text: str) -> list[int]:
    return [1 + ord(letter) % (VOCAB - 1) for letter in text[::4]]


def engine(target: Callable[[int, int], int] = target_follow) -> PairEngine:
    return PairEngine("toy", ToyLM("target", target), ToyLM("draft", draft_follow), encode)


@pytest.fixture(scope="module")
def outcome() -> DemoOutcome:
    return run_demo(engine(), DemoConfig(requests=60, block=20, capacity_requests=20, load=0.2))


def test_live_outputs_are_lossless_and_equal_the_replay(outcome: DemoOutcome) -> None:
    assert outcome.lossless_mismatches == 0
    assert outcome.inconsistent_positions == 0
    assert outcome.live_replay_cycles >= 60
    assert outcome.live_replay_differences == 0


def test_budget_and_accounts(outcome: DemoOutcome) -> None:
    assert [result.source for result in outcome.live] == ["live", "live"]
    for result in [*outcome.live, *outcome.replays]:
        assert result.arrivals == 60
        assert result.budget_violations == 0
        assert result.target_passes_per_request <= 2.0
        assert result.requests + result.refused == 60
    assert outcome.live[1].name == outcome.best_static
    assert len(outcome.replays) == 26
    assert len(outcome.cycles["specpilot"]) == outcome.specpilot.target_passes


def test_a_wrong_engine_is_noticed() -> None:
    class Flaky(ToyLM):
        """Says something else every hundredth pass, as an engine with a caching bug would."""

        passes = 0

        def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
            self.passes += 1
            answers = super().forward(items)
            return [np.roll(rows, 1, axis=1) for rows in answers] if self.passes % 100 == 0 else answers

    pair = engine()
    flaky = PairEngine("toy", Flaky("target", target_follow), pair.draft, encode)
    found = run_demo(flaky, DemoConfig(requests=60, block=30, capacity_requests=10, load=0.2))
    assert found.lossless_mismatches > 0
    assert found.inconsistent_positions > 0
    assert not found.kept


def test_promises_are_passed_on() -> None:
    promises = ControllerConfig(pass_budget=1.0, slo_p95_ms=500.0)
    found = run_demo(engine(), DemoConfig(requests=20, capacity_requests=10, promises=promises))
    assert found.specpilot.target_passes_per_request <= 1.0
    assert found.config.slo_p95_ms == 500.0


@pytest.mark.parametrize(("field", "value"), [("requests", 0), ("block", 0), ("load", 1.0), ("load", 0.0)])
def test_bad_configurations(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}: {value}"):
        DemoConfig(**{field: value})  # type: ignore[arg-type]


def test_the_live_run_s_trace_replays_to_the_same_decisions(outcome: DemoOutcome, tmp_path: Path) -> None:
    """I7 on a real run: models, clock and queue as they were, the decisions from the file alone."""
    header, records = outcome.traces["specpilot"]
    path = tmp_path / "live.jsonl.gz"
    write_trace(path, header, records)
    assert validate(path).open_requests == 0
    replayed = replay_decisions(read_trace(path))
    assert replayed.differences == []
    assert replayed.plans == len(outcome.cycles["specpilot"]) > 60
