"""The simulator: the same as a replay with records, spread over replicas, in bounded memory."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpilot.simulation.account import Account, Histogram
from specpilot.simulation.fleet import Simulation, run_fleet, run_replica
from specpilot.simulation.policies import GIVING_WAY, replay_policy
from specpilot.simulation.results import quantile


@pytest.mark.parametrize("policy", ["specpilot", "static-4", "oracle"])
def test_streamed_is_the_same_as_recorded(policy: str) -> None:
    """One replica, the same requests: every sum equal, quantiles within the histogram's bin."""
    simulation = Simulation(requests=120, rate=12.0, outage=(0.3, 0.4))
    one = simulation.build()
    streamed = run_replica(simulation, policy, 0).result(policy)
    recorded = replay_policy(policy, list(simulation.stream(0, one)), one.costs, one.config).result
    for name in ("stop_causes", "verified_tokens", "target_passes", "refused", "empty", "drafted_tokens"):
        assert getattr(streamed, name) == getattr(recorded, name), name
    for name in ("goodput_tokens_per_s", "slo_attainment", "mean_draft_length", "completion_share"):
        assert getattr(streamed, name) == pytest.approx(getattr(recorded, name)), name
    assert streamed.e2e_p95_ms == pytest.approx(recorded.e2e_p95_ms, rel=0.003)
    assert streamed.extra == recorded.extra


def test_giving_way_is_simulated_as_it_is_replayed() -> None:
    """Past the capacity the two policies part; before, the simulator ran plain specpilot under both names."""
    simulation = Simulation(requests=300, rate=60.0)
    one = simulation.build()
    plain = run_replica(simulation, "specpilot", 0).result("specpilot")
    giving = run_replica(simulation, GIVING_WAY, 0).result(GIVING_WAY)
    replayed = replay_policy(GIVING_WAY, list(simulation.stream(0, one)), one.costs, one.config).result
    outcome = (giving.target_passes, giving.verified_tokens)
    assert outcome != (plain.target_passes, plain.verified_tokens)
    assert outcome == (replayed.target_passes, replayed.verified_tokens)


def test_a_fleet_serves_every_request_once_and_adds_up() -> None:
    simulation = Simulation(requests=103, replicas=30, rate=300.0)
    assert sum(simulation.share(replica) for replica in range(30)) == 103
    total = Account(250.0)
    for part in run_fleet(simulation, "specpilot", 2):
        total.merge(part)
    alone = [run_replica(simulation, "specpilot", replica) for replica in range(30)]
    assert total.arrivals == 103
    assert total.passes == sum(account.passes for account in alone)
    assert total.totals.cycles == sum(account.totals.cycles for account in alone)
    assert total.last_s == max(account.last_s for account in alone)
    assert total.violations == 0


def test_a_file_is_split_over_the_replicas(tmp_path: Path) -> None:
    path = tmp_path / "arrivals.csv"
    rows = [f"{0.1 * index:.1f},{20 + index},{1 + index % 40}" for index in range(60)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n", encoding="utf-8")
    simulation = Simulation(requests=50, replicas=3, arrivals=path, speed=2.0)
    one = simulation.build()
    streams = [list(simulation.stream(replica, one)) for replica in range(3)]
    prompts = sorted(request.trace.prompt_tokens for stream in streams for request in stream)
    assert prompts == list(range(20, 70))
    for request in streams[0]:
        index = request.trace.prompt_tokens - 20
        assert request.arrival_s == pytest.approx(0.05 * index)
        wanted = 1 + index % 40
        assert request.length == min(24, wanted)
        assert request.trace.ended == ("eos" if wanted <= 24 else "max_tokens")


def test_memory_is_bounded_by_the_requests_in_flight() -> None:
    """Everything that is kept per request is gone when it has ended."""
    import gc

    simulation = Simulation(requests=40, rate=9.0)
    run_replica(simulation, "bayes", 0)
    gc.collect()
    few = len(gc.get_objects())
    account = run_replica(replace(simulation, requests=400), "specpilot", 0)
    gc.collect()
    assert account.arrivals == 400
    assert len(gc.get_objects()) < few + 2000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requests", 0),
        ("rate", 0.0),
        ("replicas", 3000),
        ("speed", -1.0),
        ("drift", (0.5, 1.0)),
        ("prompts", (0,)),
        ("outage", (0.5, 0.4)),
        ("burst", 0.5),
        ("max_tokens", 0),
        ("scenario", "calm"),
    ],
)
def test_bad_values_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}: "):
        replace(Simulation(), **{field: value})  # type: ignore[arg-type]


@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=80), st.floats(0.01, 0.99))
def test_histogram_quantiles_are_within_half_a_bin(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    expected = quantile(sorted(values), share)
    assert expected is not None
    assert histogram.quantile(share) == pytest.approx(expected, rel=0.0026)


def test_merging_histograms_is_counting_together() -> None:
    rng = random.Random(1)
    values = [math.exp(rng.gauss(4.0, 1.0)) for _ in range(100)]
    whole, left, right = Histogram(), Histogram(), Histogram()
    for index, value in enumerate(values):
        whole.add(value)
        (left if index % 3 else right).add(value)
    left.merge(right)
    assert left == whole
    assert Histogram().quantile(0.5) is None
    with pytest.raises(ValueError, match="no more values"):
        Histogram().at_rank(1)
