"""The ablations: each one really changes what it is named for, and leaves nothing behind."""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import replace

import pytest
from benchmarks import ablating, ablation, tree_ablation

from specpilot.control import ControllerConfig
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.scenarios import scenario

CELLS = (
    ("B=1.5", 0.7, 80),
    ("outage", 0.7, 160),
    ("slow-draft", 0.0, 200),
    ("good-bad-good", 0.0, 400),
    ("tight-slo", 0.4, 120),
)
TREE_CELLS = (("steady", 0.4, 60), ("compute-bound", 0.7, 60), ("slow-draft", 0.7, 100), ("steady", 0.7, 100))


def test_every_signal_has_an_effect_when_off_and_is_on_again_afterwards() -> None:
    """A patch that no longer reaches what it is named for would show as no effect at all."""
    unchanged = tuple(ablation.ABLATIONS)
    for name, load, count in CELLS:
        results = ablation.measure(ablating.Cell(name, load, 3, count, unchanged))
        unchanged = tuple(signal for signal in unchanged if results[signal] == results[""])
        assert ablation.measure(ablating.Cell(name, load, 3, count, ()))[""] == results[""]
    assert not unchanged


def test_every_signal_of_trees_has_an_effect_when_off_and_is_on_again_afterwards() -> None:
    unchanged = tuple(tree_ablation.ABLATIONS)
    for name, load, count in TREE_CELLS:
        results = tree_ablation.measure(ablating.Cell(name, load, 3, count, unchanged))
        unchanged = tuple(s for s in unchanged if results.get(s, results[""]) == results[""])
        assert tree_ablation.measure(ablating.Cell(name, load, 3, count, ()))[""] == results[""]
    # A prior moved by a hundredth ("nothing") need not change a plan in so few cells.
    unchanged = tuple(signal for signal in unchanged if not signal.startswith("nothing"))
    assert {tree_ablation.ABLATIONS[signal].lookup for signal in unchanged} == {True}
    # Of looked-up text: a draft that is mostly right, and one that falls back.
    for alpha, scale in ((0.6, 1.0), (0.1, 20.0)):
        config = ControllerConfig(pass_budget=4.0, slo_p95_ms=400.0, max_nodes=32, lookup_depth=24)
        costs = scenario("steady").costs.scaled(draft=scale)
        off = {signal: tree_ablation.ABLATIONS[signal] for signal in unchanged}
        results = ablating.compare(off, copies(alpha, 80), costs, config, closed_loop=True)
        unchanged = tuple(signal for signal in unchanged if results[signal] == results[""])
        assert ablating.compare({}, copies(alpha, 80), costs, config, closed_loop=True)[""] == results[""]
    assert not unchanged


def copies(alpha: float, count: int) -> list[ReplayRequest]:
    """Requests whose draft agrees at ``alpha``, and whose text is found again in stretches of some tokens."""
    rng = random.Random(3)
    one = replace(scenario("steady"), phases=(lambda run, prompt: alpha,), choices=True)
    made = []
    for request in one.requests(count, 3):
        lookup: list[tuple[float, int]] = []
        while len(lookup) < len(request.trace.agree):
            length = rng.randint(1, 8)
            matched = rng.choice((0.0, 0.75, 0.8, 0.9))
            right = rng.random() < matched
            lookup += [(matched, (length - at) * right if matched else 0) for at in range(length)]
        lookup = lookup[: len(request.trace.agree)]
        made.append(replace(request, trace=replace(request.trace, lookup=tuple(lookup))))
    return made


def test_the_verdict_by_hand() -> None:
    entry = {"steady": {"goodput": [-0.004, 0.01, 0.0], "slo": [0.0] * 3}}
    worse = {"steady": {"goodput": [-0.02, 0.01, 0.0], "slo": [0.0] * 3}}
    changes = {"probe length by price": entry, "circuit breaker": entry, "draft confidence": worse}
    lines = ablating.markdown(changes, ablation.ABLATIONS).splitlines()
    assert lines[2] == "| probe length by price | -0.4 % | -0.4 … +1.0 | **no reason to stay** |"
    assert lines[3].endswith("guards I6 |")
    assert lines[4] == "| draft confidence | -2.0 % | -2.0 … +1.0 | stays |"


def test_the_verdict_against_chance_by_hand() -> None:
    """Chance reaches −2 %: a change is worse than that, or half a per cent in the mean, or nothing."""

    def row(*goodput: float) -> dict[str, dict[str, list[float]]]:
        return {"steady": {"goodput": list(goodput), "slo": [0.0] * 3}}

    lines = ablating.markdown(
        {
            "yields": row(-0.019, 0.01, 0.03),
            "rank calibration": row(-0.01, -0.01, 0.004),
            "node price (nodes are free)": row(-0.03, 0.02, 0.02),
            "nodes by the time left": row(0.0, 0.0, 0.0),
            "nothing (prior 0.64)": row(-0.02, 0.01, 0.01),
        },
        tree_ablation.ABLATIONS,
        tree_ablation.CHANCE,
    ).splitlines()
    assert lines[0] == "| without | mean | worst | steady | verdict |"
    assert lines[2] == "| yields | +0.7 % | -1.9 % | -1.9 … +3.0 | **within chance** |"
    assert [line.split(" | ")[-1] for line in lines[3:]] == ["stays |", "stays |", "guards SLO |", "chance |"]


def test_dear_steps_by_hand() -> None:
    """A step of 1 ms: three nodes cost 1.44 of it, six 2.1, and a wider pass 1.1 ms more than it did."""
    costs = EngineCosts.from_numbers(draft_ms=1.0, verify_ms=5.0)
    dear = tree_ablation.dear_steps(costs).draft_forward
    assert [dear(width) for width in (1.0, 3.0, 6.0)] == pytest.approx([1.0, 1.44, 2.1])
    assert dear(500.0) == pytest.approx(2.1)
    assert not math.isclose(costs.draft_forward(3.0), dear(3.0))


def test_the_worst_rows_are_confirmed_on_other_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that cost most are run again; a change in one that is certain and large enough stays."""
    monkeypatch.setattr(ablating, "CONFIRMED", 3)
    changes = {
        "probe length by price": {
            "steady": {"goodput": [0.01, -0.002, 0.0]},
            "burst": {"goodput": [0.0, 0.0, -0.001]},
        },
        "upper quantiles": {"steady": {"goodput": [0.0, 0.0, -0.03]}},
    }
    assert ablating.worst_rows(changes) == {
        "probe length by price": [("steady", 0.4), ("burst", 0.7), ("burst", 0.0)],
        "upper quantiles": [("steady", 0.7), ("steady", 0.0), ("steady", 0.4)],
    }
    cells: list[ablating.Cell] = []

    def measure(cell: ablating.Cell) -> ablating.Results:
        cells.append(cell)
        noise = 0.001 * (cell.seed % 5 - 2)
        # What seems to matter most is chance there; the next row is certain.
        upper = 95.0 + 20_000.0 * noise if cell.load == 0.7 else 97.0 + noise
        off = {"probe length by price": 100.0 * (1.0 + noise), "upper quantiles": upper}
        return {"": (100.0, 1.0), **{signal: (off[signal], 1.0) for signal in cell.signals}}

    options = argparse.Namespace(confirm=10, requests=30, processes=0)
    text = ablating.confirm(changes, measure, ablation.ABLATIONS, options)
    assert {cell.seed for cell in cells} == set(range(ablating.FRESH_SEED, ablating.FRESH_SEED + 10))
    lines = [line for line in text.splitlines() if line.startswith("| probe") or line.startswith("| upper")]
    assert "no reason to stay" in lines[0]
    assert lines[1].startswith(
        "| upper quantiles | steady, closed | +0.0 % | -3.0 % (-3.0 % … -3.0 %) | stays"
    )
