"""The map over pass budget × SLO: cells that can be worked out by hand, what binds, bad axes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from specpilot.cli.main import main
from specpilot.control import ControllerConfig
from specpilot.simulation.costs import EngineCosts
from specpilot.sizing import Cell, from_numbers, make_plan, map_region
from specpilot.sizing.case import Case

COSTS = EngineCosts.from_numbers(draft_ms=1.0, verify_ms=10.0)


def cells(acceptance: float, budgets: list[float], slos: list[float]) -> dict[tuple[float, float], Cell]:
    """One client that never waits, 24 tokens wanted, a draft step of 1 ms, any pass 10 ms."""
    traces = from_numbers((acceptance,), (40,), 24, count=20, seed=1)
    case = Case(traces, COSTS, ControllerConfig(), 24, 20, 1, math.inf)
    return {(c.pass_budget, c.slo_p95_ms): c for c in map_region(case, budgets, slos)}


def test_a_draft_that_is_always_right() -> None:
    found = cells(1.0, [1.0, 2.0], [30.0, 250.0])
    one = found[1.0, 250.0]  # 16 drafted and the bonus token; twice the passes: all 24
    assert (one.tau, one.tokens_per_request, one.completion_share) == (16, 17.0, 0.0)
    assert one.e2e_p95_ms == pytest.approx(16 * 1.0 + 10.0)
    assert one.gains["budget"] == pytest.approx(24 / 17 - 1)
    assert one.gains["deadline"] == 0.0
    assert one.binds == "budget"
    two = found[2.0, 250.0]  # 17 + 7: 16 + 10 ms and, six drafted, 6 + 10 ms
    assert (two.tokens_per_request, two.completion_share, two.binds) == (24.0, 1.0, "nothing")
    assert two.e2e_p95_ms == pytest.approx(42.0)
    # τ = 4: two cycles of 14 ms, five tokens each, or four where the controller, which does not know yet how
    # much passes scatter, leaves room; with steps of ½ ms τ = 8: 18.
    tight = found[2.0, 30.0]
    assert tight.tau == 4
    assert 9.0 <= tight.tokens_per_request <= 10.0
    assert tight.e2e_p95_ms == pytest.approx(27.5, abs=0.6)
    assert 16.0 <= tight.tokens_per_request * (1.0 + tight.gains["draft_cost"]) <= 18.0
    assert tight.gains["deadline"] == pytest.approx(24.0 / tight.tokens_per_request - 1.0)
    assert tight.binds == "draft_cost", "0.8 is more than half of 1.4"


def test_a_draft_that_is_never_right() -> None:
    """Each pass gives one token and nothing is drafted, so a faster draft brings nothing."""
    found = cells(0.0, [2.0, 24.0], [52.0, 500.0])
    assert {cell.tau for cell in found.values()} == {0}
    few = found[2.0, 500.0]
    assert (few.tokens_per_request, few.binds) == (2.0, "budget")
    assert few.gains == {"budget": pytest.approx(1.0), "deadline": 0.0, "draft_cost": 0.0}
    late = found[24.0, 52.0]  # five passes of 10 ms, or four where the controller leaves room
    assert 4.0 <= late.tokens_per_request <= 5.0
    assert late.binds == "deadline"
    assert found[24.0, 500.0].binds == "nothing"
    assert found[24.0, 500.0].completion_share == 1.0


def test_an_slo_that_no_length_can_keep() -> None:
    (cell,) = cells(0.7, [2.0], [5.0]).values()
    assert not cell.feasible
    assert cell.binds == "deadline"


def test_default_axes_stand_around_the_promises() -> None:
    traces = from_numbers((0.7,), (40,), 24, count=20, seed=1)
    plan = make_plan(
        traces, COSTS, ControllerConfig(pass_budget=1.2), count=20, load=0.0, sensitivity=False, region=True
    )
    assert [cell.slo_p95_ms for cell in plan.region[:4]] == [125.0, 187.5, 250.0, 375.0]
    # Half of 1.2 would be no whole pass.
    assert sorted({cell.pass_budget for cell in plan.region}) == [1.0, 1.2, pytest.approx(1.8)]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, picture = tmp_path / "plan.json", tmp_path / "plan.svg"
    words = ["plan", "--acceptance", "0.7", "--requests", "20", "--no-sensitivity", "--load", "0"]
    words += ["--map-budgets", "1,3", "--map-slos-ms", "100,250,600"]
    with pytest.raises(SystemExit):
        main([*words, "--json", str(target), "--plot", str(picture)])
    region = json.loads(target.read_text())["region"]
    assert [(cell["pass_budget"], cell["slo_p95_ms"]) for cell in region] == [
        (budget, slo) for budget in (1.0, 3.0) for slo in (100.0, 250.0, 600.0)
    ]
    assert set(region[0]) >= {"tokens_per_request", "completion_share", "tau", "binds", "gains", "feasible"}
    assert "Pass budget × SLO" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--map-budgets", "0.5,2"), "map_budgets: [0.5, 2.0] is not a list of numbers ≥ 1"),
        (("--map-slos-ms", "0"), "map_slos_ms: [0.0] is not a list of numbers > 0"),
        (("--map-slos-ms", "a"), "map_slos_ms: 'a' is not a list of numbers"),
        (("--no-map", "--map-budgets", "2"), "given together with --no-map"),
    ],
)
def test_bad_axes(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--acceptance", "0.7", "--requests", "5", "--no-sensitivity", *words])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
