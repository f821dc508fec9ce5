"""The suite's jobs: loads, what counts as warm, the run without a ledger."""

from __future__ import annotations

import pytest

from specpilot.simulation.scenarios import scenario
from specpilot.simulation.suite import WARM_UP, Job, label, offered, run, run_all, unlimited


def test_a_job_gives_the_same_result_in_another_process() -> None:
    jobs = [Job("steady", load, 3, 30, ("specpilot", "static-4")) for load in (0.0, 0.7)]
    assert list(run_all(jobs, 2)) == list(run_all(jobs, 1))


def test_offered_load_is_relative_to_the_closed_loop() -> None:
    """The gaps are the same draws, divided by the rate."""
    one = scenario("steady")
    low, high = (offered(one, load, 5, 400)[-1].arrival_s for load in (0.35, 0.7))
    assert low == pytest.approx(2.0 * high)


def test_warm_goodput_leaves_the_first_requests_out() -> None:
    short = run(Job("steady", 0.0, 3, 50, ("static-4",)))["static-4"]
    assert short.extra["warm_goodput_tokens_per_s"] == pytest.approx(short.goodput_tokens_per_s)
    long = run(Job("good-bad-good", 0.0, 3, 2 * WARM_UP, ("static-4",)))["static-4"]
    # The first half of this scenario is its better one.
    assert long.extra["warm_goodput_tokens_per_s"] < long.goodput_tokens_per_s


def test_without_a_ledger_no_request_ends_for_the_budget() -> None:
    under = run(Job("steady", 0.4, 3, 40, ("additive",)))["additive"]
    free = run(Job("steady", 0.4, 3, 40, ("additive",), ledger=False))["additive"]
    assert under.stop_causes.get("budget", 0) > 0
    assert free.stop_causes.get("budget", 0) == 0
    assert under.target_passes_per_request <= 2.0 < free.target_passes_per_request
    assert unlimited(scenario("B=1")).pass_budget == 24.0


def test_an_outage_is_a_part_of_the_requests() -> None:
    failing = [request.draft_fails for request in scenario("outage").requests(100, 1)]
    assert [index for index, fails in enumerate(failing) if fails] == list(range(40, 50))


def test_labels() -> None:
    assert label("steady", 0.0) == "steady, closed"
    assert label("steady", 0.4) == "steady, 0.4"
