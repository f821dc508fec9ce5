"""The bet on sampled tokens: by hand, its odds, and faults in a real engine with coupled trees."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from specpilot.control import Controller
from specpilot.decoding.acceptance import Coupled, Deterministic, Greedy, Rejection
from specpilot.decoding.clock import VirtualClock
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.distribution import DoubleArray
from specpilot.decoding.loop import ServeLoop
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.rule import AcceptanceRule
from specpilot.decoding.types import Acceptance, Block, SamplingParams
from specpilot.diagnosis import diagnose, read_columns
from specpilot.diagnosis.sampling import FALSE_ALARM, SHARES, bet
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import FloatArray
from specpilot.targets.model import ModelTarget
from specpilot.targets.scripted import ScriptedLM
from specpilot.testing import StaticController
from specpilot.trace import CycleRecord, TracedController, TraceRecord, header_for, write_trace
from specpilot.trace.validate import validate

PARAMS = SamplingParams(1.0, top_p=0.95)


class OtherTarget(Coupled):
    """Fault: the target's own tokens are drawn at another temperature than was asked for."""

    def __init__(self, params: SamplingParams, seed: int, temperature: float) -> None:
        super().__init__(params, seed)
        self._other = Coupled(SamplingParams(temperature, top_p=params.top_p), seed)

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        return self._other.accept(block, q, target_logits, position)


class DraftsToken(Coupled):
    """Fault: where a path leaves the block, a child of its last node is emitted, not the target's token."""

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        found = super().accept(block, q, target_logits, position)
        last = found.path[-1] if found.path else -1
        if last not in block.parents:
            return found
        return Acceptance(found.path, block.token_ids[block.parents.index(last)])


class SameNoise(Coupled):
    """Fault: all positions of a block are drawn under the noise of its first one."""

    first = 0

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        self.first = position
        return super().accept(block, q, target_logits, position)

    def _pick(self, weights: DoubleArray, position: int) -> int:
        return super()._pick(weights, self.first)


class OtherNoise(Coupled):
    """No fault of the output: the target's noise is that of other positions, each used once."""

    def _pick(self, weights: DoubleArray, position: int) -> int:
        return super()._pick(weights, position + 1_000_000)


Make = Callable[[int], AcceptanceRule]


def traced(make: Make, requests: int, path: Path, nodes: int | None = 9) -> list[CycleRecord]:
    """Serve requests of 40 tokens, with trees of nine nodes; the trace is left at ``path``."""
    target, draft = ScriptedLM(seed=3), ScriptedLM(seed=3, noise=0.8)
    executor = LiveExecutor(ModelTarget(target), ModelDrafter(draft))
    records: list[TraceRecord] = []
    controller = TracedController(StaticController(3, nodes=nodes), records.append)
    executor.report_evidence(controller.recorder.evidence)
    infos = []
    for number in range(requests):
        prompt = [1 + number % 7, 2, 3 + number % 5]
        asked = DecodingRequest(f"r{number}", prompt, 40, params=PARAMS, rule=make(number))
        executor.add(asked)
        infos.append(asked.info(arrival_s=0.0))
    ServeLoop(controller, executor, VirtualClock()).run(infos)
    write_trace(path, header_for(Controller(), "test"), records)
    return [record for record in records if isinstance(record, CycleRecord)]


def rejection(number: int) -> AcceptanceRule:
    return Rejection(PARAMS, np.random.default_rng(number))


@pytest.mark.parametrize(
    ("make", "nodes"),
    [
        (lambda number: Coupled(PARAMS, number), 9),
        (lambda number: Deterministic(PARAMS, np.random.default_rng(number)), 9),
        (lambda number: OtherNoise(PARAMS, number), 9),
        (rejection, None),
    ],
    ids=["coupled", "deterministic", "noise of other positions", "rejection"],
)
def test_right_sampling_passes(make: Make, nodes: int | None, tmp_path: Path) -> None:
    """Odds of a false failure: 1e-6 each (Ville's inequality)."""
    cycles = traced(make, 60, tmp_path / "t.jsonl", nodes)
    seen = sum(len(cycle.evidence.sampled or ()) // 4 for cycle in cycles)
    assert seen > 200
    assert validate(tmp_path / "t.jsonl").cycles == len(cycles)
    found = diagnose(read_columns(tmp_path / "t.jsonl"))
    assert "sampling_mismatch" not in [finding.cause for finding in found.findings]


@pytest.mark.parametrize(
    "make",
    [
        lambda number: OtherTarget(PARAMS, number, 0.6),
        lambda number: OtherTarget(PARAMS, number, 1.6),
        lambda number: DraftsToken(PARAMS, number),
        lambda number: SameNoise(PARAMS, number),
        lambda number: Greedy(),
    ],
    ids=["colder", "hotter", "token of the draft", "noise used twice", "no chance at all"],
)
def test_faults_are_seen(make: Make, tmp_path: Path) -> None:
    """Seeded, one engine each: passes or fails alike on every run."""
    traced(make, 300, tmp_path / "t.jsonl")
    assert diagnose(read_columns(tmp_path / "t.jsonl")).primary == "sampling_mismatch"


def test_what_is_recorded_of_a_token_by_hand() -> None:
    """Of p = 0.1, 0.2, 0.2, 0.5: token 1 shares its place with token 2; token 3 follows itself."""
    from specpilot.decoding.evidence import _sampled

    p = np.array([0.1, 0.2, 0.2, 0.5])
    assert _sampled([p, p], [0, 1, 1]) == pytest.approx((0.1, 0.5, 0.1, 0.0, 0.1, 0.5, 0.2, 1.0))
    assert _sampled([p], [3, 3]) == pytest.approx((0.5, 1.0, 0.5, 1.0))
    assert _sampled([np.array([0.0, 1.0])], [1, 0]) == (0.0, 0.0, 1.0, 0.0)  # forbidden


def draws(law: DoubleArray, p: DoubleArray, count: int, seed: int) -> tuple[DoubleArray, DoubleArray]:
    """The ends of tokens of ``law``, where the tokens of p ascend in likelihood."""
    ends = np.cumsum(p)
    tokens = np.random.default_rng(seed).choice(p.size, count, p=law)
    return ends[tokens] - p[tokens], np.minimum(1.0, ends[tokens])


P = np.array([0.02, 0.08, 0.15, 0.25, 0.5])


def test_every_bet_is_fair() -> None:
    """Its expected factor under p is 1, so that one token's average of all bets is 1 in the mean, by hand."""
    from specpilot.diagnosis.sampling import _directed, _inside, _repeats

    high = np.cumsum(P)
    low = high - P
    one = np.stack([np.exp(_directed(low[i : i + 1], high[i : i + 1])) for i in range(5)])
    assert np.tensordot(P, one, 1) == pytest.approx(np.ones(one.shape[1:]))
    # Exponent 2, all of one share: the mean density between the ends is their sum.
    assert one[:, 2, len(SHARES) - 1] == pytest.approx(1.0 + SHARES[-1] * (low + high - 1.0))
    hit, miss = (np.exp(_repeats(np.array([0.2]), np.array([way]))) for way in (True, False))
    assert 0.2 * hit + 0.8 * miss == pytest.approx(np.ones(3))
    assert hit[0] == pytest.approx(2.0)
    assert P @ _inside(low, high) == pytest.approx(
        np.diff([0.0, 1e-4, 1e-3, 1e-2, 3e-2, *np.arange(1, 11) / 10])
    )


def test_false_alarms_are_rare_and_faults_are_not() -> None:
    """Sixty healthy traces: odds of a false failure 6e-5. A law of P^2, one that nobody thought of, and a
    token that p forbids are found; the numbers say which way.
    """
    never = np.zeros(5000)
    for seed in range(60):
        assert bet(*draws(P, P, 5000, seed), never, never > 0) is None
    colder = P**2 / (P**2).sum()
    found = bet(*draws(colder, P, 5000, 1), never, never > 0)
    assert found is not None
    assert found["odds_of_these_by_chance"] < FALSE_ALARM
    assert found["mean_quantile_of_sampled_tokens"] > 0.55
    assert bet(*draws(np.array([0.02, 0.08, 0.3, 0.1, 0.5]), P, 5000, 2), never, never > 0) is not None
    low, high = draws(P, P, 50, 3)
    low[7] = high[7] = 0.0
    assert bet(low, high, never[:50], never[:50] > 0) == {"sampled_tokens": 50, "tokens_that_p_forbids": 1}


def test_repeats() -> None:
    """A token before it of p = 0.05 that comes in 15 % of 1000 places: 150 for 50."""
    low, high = draws(P, P, 1000, 4)
    again = np.full(1000, 0.05)
    found = bet(low, high, again, np.arange(1000) % 20 < 3)
    assert found is not None
    assert found["repeats_of_the_token_before"] == 150
    assert found["repeats_expected"] == pytest.approx(50.0)
    assert bet(low, high, again, np.arange(1000) % 20 < 1) is None
    assert math.isclose(found["mean_quantile_of_sampled_tokens"], 0.5, abs_tol=0.05)
