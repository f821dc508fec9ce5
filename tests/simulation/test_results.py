"""Results: every figure is checked by hand on a handful of requests."""

import math

import pytest

from specpilot.control.types import StopCause
from specpilot.simulation.results import (
    CycleTotals,
    PolicyResult,
    RequestRecord,
    best_of,
    quantile,
    quantile_interval,
    summarise,
)


def record(
    name: str,
    ms: float,
    cause: StopCause | None,
    tokens: int = 10,
    target_passes: int = 0,
    loop_tokens: int = 0,
    near_ties: int = 0,
) -> RequestRecord:
    return RequestRecord(
        name,
        0.0,
        ms / 1000.0,
        250.0,
        cause,
        emitted_tokens=tokens,
        target_passes=target_passes,
        loop_tokens=loop_tokens,
        near_ties=near_ties,
    )


def test_a_run_by_hand() -> None:
    records = [
        record("quick", 100.0, StopCause.EOS, tokens=10, target_passes=2, loop_tokens=4, near_ties=1),
        record("late", 300.0, StopCause.BUDGET, tokens=6, target_passes=2),
        record("empty", 50.0, StopCause.DEADLINE, tokens=0),
        record("refused", 0.0, None, tokens=0),
        record("failed", 20.0, StopCause.ERROR, tokens=3, target_passes=1),
        record("gone", 900.0, StopCause.CANCELLED, tokens=1, target_passes=1),
    ]
    totals = CycleTotals()
    totals.add(drafted=8, proposed=7, accepted=5)
    totals.add(drafted=0, proposed=0, accepted=0)
    result = summarise("specpilot", "replay", records, totals, budget_violations=0, duration_s=2.0)
    assert (result.arrivals, result.requests, result.refused, result.empty) == (6, 5, 1, 1)
    assert result.verified_tokens == 20
    assert result.verified_tokens_per_s == 10.0
    assert result.goodput_tokens_per_s == 3.0  # only "quick", less its loop: 6 tokens in 2 s
    assert result.target_passes == 6
    assert result.target_passes_per_request == 1.5  # "empty" never used the target
    assert result.tokens_per_pass == pytest.approx(20 / 6)
    assert result.slo_attainment == 0.2  # one of the five that were not cancelled
    assert result.finished_requests == 1
    assert result.completion_share == pytest.approx(1 / 6)
    assert result.loop_share == 0.2
    assert result.near_ties == 1
    assert (result.drafted_tokens, result.accepted_draft_tokens, result.discarded_draft_tokens) == (8, 5, 3)
    assert result.fallback_share == 0.5
    assert result.mean_draft_length == 7.0
    assert result.stop_causes == {"budget": 1, "cancelled": 1, "deadline": 1, "eos": 1, "error": 1}
    assert result.e2e_p50_ms == 50.0  # of 20, 50, 100, 300
    assert result.e2e_p95_ms == 300.0


def test_json_has_the_documented_names() -> None:
    result = summarise("x", "live", [record("a", 10.0, StopCause.EOS)], CycleTotals(), budget_violations=0)
    names = (
        "requests finished_requests stop_causes verified_tokens verified_tokens_per_s goodput_tokens_per_s "
        "target_passes target_passes_per_request budget_violations tokens_per_pass drafted_tokens "
        "accepted_draft_tokens discarded_draft_tokens e2e_p50_ms e2e_p95_ms e2e_p95_ci_ms slo_attainment "
        "fallback_share mean_draft_length arrivals refused empty completion_share tokens_per_arrival "
        "loop_share near_ties"
    )
    assert set(names.split()) <= result.to_json().keys()


def test_quantiles() -> None:
    values = [float(value) for value in range(1, 101)]
    assert quantile(values, 0.95) == 95.0
    assert quantile(values, 0.5) == 50.0
    assert quantile([], 0.5) is None
    assert quantile_interval([], 0.5) is None


def test_the_interval_covers_as_promised() -> None:
    # K ~ Bin(n, share) samples lie below the true quantile; x_(l) ≤ quantile < x_(u) iff l ≤ K < u.
    for count in (20, 100, 600, 5000):
        interval = quantile_interval([float(value) for value in range(1, count + 1)], 0.95)
        assert interval is not None
        low, high = int(interval[0]), int(interval[1])
        covered = sum(
            math.comb(count, k) * 0.95**k * 0.05 ** (count - k)
            if count < 1000
            else math.exp(
                math.lgamma(count + 1)
                - math.lgamma(k + 1)
                - math.lgamma(count - k + 1)
                + k * math.log(0.95)
                + (count - k) * math.log(0.05)
            )
            for k in range(low, high)
        )
        # With 20 or 100 samples the largest one may lie below the quantile: 0.95²⁰ = 36 %, 0.95¹⁰⁰ = 0.6 %.
        assert covered >= 0.95 or high == count
        assert low <= 0.95 * count <= high


def test_the_best_is_chosen_among_those_that_keep_the_slo() -> None:
    def run(name: str, ms: float, tokens: int) -> PolicyResult:
        return summarise(
            name,
            "replay",
            [record("a", ms, StopCause.EOS, tokens)],
            CycleTotals(),
            budget_violations=0,
            duration_s=1,
        )

    kept, missed = run("kept", 200.0, 5), run("missed", 300.0, 50)
    assert best_of([kept, missed]) is kept
    with pytest.raises(ValueError, match="none to choose"):
        best_of([])


def test_no_records_is_an_error() -> None:
    with pytest.raises(ValueError, match="records"):
        summarise("x", "live", [], CycleTotals(), budget_violations=0)
