"""The plan: its replays, its choice by prompt length, what it says of promises that cannot be kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specpilot.cli.main import main
from specpilot.control import ControllerConfig
from specpilot.simulation.costs import EngineCosts
from specpilot.sizing import Plan, from_numbers, hazards_by_length, make_plan, tokens_per_pass
from specpilot.trace.agreement import AgreementTrace, write_agreement

COSTS = EngineCosts.from_numbers(draft_ms=1.0, verify_ms=10.0, verify_token_ms=0.05)


def plan(hazards: tuple[float, ...] = (0.7,), budget: float = 2.0, **options: object) -> Plan:
    traces = from_numbers(hazards, (40, 400), 24, count=80, seed=3)
    settings = {"count": 80, "sensitivity": False, "load": 0.0, **options}
    return make_plan(traces, COSTS, ControllerConfig(pass_budget=budget), **settings)  # type: ignore[arg-type]


def test_replayed_tokens_per_pass_are_the_closed_form() -> None:
    """480 passes with flat hazards; a pass of τ has sd ≤ 0.5, 0.9, 1.5, 2.2 tokens: five standard errors."""
    traces = from_numbers((0.7,), (40, 400), 48, count=240, seed=3)
    result = make_plan(
        traces, COSTS, ControllerConfig(), max_tokens=48, count=240, load=0.0, sensitivity=False
    )
    for tau, allowed in ((1, 0.11), (2, 0.2), (4, 0.34), (8, 0.5)):
        replayed = result.policies[f"static-{tau}"].tokens_per_pass
        assert replayed == pytest.approx(tokens_per_pass((0.7,), tau), abs=allowed)
    assert result.policies["static-0"].tokens_per_pass == 1.0


def test_hazards_come_back_from_drawn_traces() -> None:
    # Given by the run of agreements before; a block may start inside a run, so position 1 mixes them.
    traces = from_numbers((0.6,), (100,), 24, count=400, seed=1)
    (hazards,) = hazards_by_length(traces).values()
    assert hazards[0] == pytest.approx(0.6, abs=0.03)  # 9,600 positions: se 0.005
    assert hazards[2] == pytest.approx(0.6, abs=0.05)


def test_length_by_prompt_follows_the_acceptance() -> None:
    good = from_numbers((0.9,), (40,), 24, count=60, seed=1)
    bad = [
        AgreementTrace(f"long-{i}", 400, (0,) * 24, ended="max_tokens") for i in range(60)
    ]  # the draft is never right
    result = make_plan([*good, *bad], COSTS, ControllerConfig(), count=120, load=0.0, sensitivity=False)
    taus = {bucket.name: bucket.tau for bucket in result.buckets}
    assert taus["≤ 64"] >= 8
    assert taus["257–512"] == 0


def test_more_passes_never_give_fewer_tokens() -> None:
    given = [plan(budget=b).policies["static-4"].tokens_per_arrival for b in (1.0, 2.0, 3.0, 24.0)]
    assert given == sorted(given)


def test_what_the_cut_requests_would_need() -> None:
    result = plan()
    assert result.wanted_tokens == 24.0
    assert result.cut_share > 0.9
    assert result.needed["pass_budget"] == pytest.approx(
        24.0 / result.policies[result.recommended].tokens_per_pass
    )
    assert result.binds == "budget"
    assert result.needed["acceptance"] is not None


def test_the_load_of_a_rate_is_what_it_is_of_the_capacity() -> None:
    at_load = plan(load=0.5)
    assert at_load.load == 0.5
    assert at_load.rate_per_s is not None
    at_rate = plan(load=0.4, rate_per_s=2.0 * at_load.rate_per_s)
    assert at_rate.load == pytest.approx(1.0)
    assert at_rate.to_json()["load"] == at_rate.load
    assert plan(load=0.0).load == 0.0


def test_an_slo_that_cannot_be_kept_is_said() -> None:
    traces = from_numbers((0.7,), (400,), 24, count=40, seed=3)
    slow = EngineCosts.from_numbers(draft_ms=20.0, verify_ms=200.0, verify_token_ms=5.0)
    result = make_plan(traces, slow, ControllerConfig(), count=40, load=0.0, sensitivity=False)
    assert not result.feasible


def test_the_same_plan_twice() -> None:
    assert plan().to_json() == plan().to_json()


def test_command_from_numbers(tmp_path: Path) -> None:
    target, picture = tmp_path / "plan.json", tmp_path / "plan.svg"
    arguments = [
        "plan",
        "--acceptance",
        "0.8,0.7",
        "--draft-ms",
        "1",
        "--verify-ms",
        "10",
        "--requests",
        "40",
    ]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--requests", "40", "--json", str(target), "--plot", str(picture)])
    assert stop.value.code == 0
    record = json.loads(target.read_text())
    assert record["feasible"] is True
    assert record["recommended"] in record["policies"]
    assert {row["change"] for row in record["sensitivity"]} >= {"as given", "B = 2.5", "draft half as fast"}
    assert picture.read_text().lstrip().startswith("<?xml")


def test_command_from_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "agreement.jsonl"
    write_agreement(trace, from_numbers((0.7,), (40, 400), 24, count=30, seed=3))
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(trace), "--requests", "30", "--no-sensitivity", "--load", "0", "--json", "-"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["rate_per_s"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give an agreement trace, or --acceptance, or --models"),
        (("--acceptance", "0.7,x"), "acceptance: '0.7,x' is not a list of numbers"),
        (("--acceptance", "1.7"), "acceptance[0]: 1.7 is not in 0…1"),
        (("--acceptance", "0.7", "--load", "-1"), "load: -1.0 is not ≥ 0"),
        (("--acceptance", "0.7", "--load", "inf"), "load: inf is not ≥ 0 and finite"),
        (("--acceptance", "0.7", "--rate", "inf"), "rate: inf is not > 0 and finite"),
        (
            ("--acceptance", "0.7", "--prompt-tokens", "1.5"),
            "prompt_tokens: '1.5' is not a list of whole numbers",
        ),
        (("--models", "x.toml", "--verify-ms", "3"), "--verify-ms: given together with --models"),
        (("--models", "x.toml", "--cost", "c.json"), "--cost: given together with --models"),
        (("--models", "x.toml", "--map-budgets", "2"), "--map-budgets: given together with --models"),
        (("--models", "x.toml", "--rate", "-1"), "rate: -1.0 is not > 0 and finite"),
        (("--acceptance", "0.7", "--max-tokens", "0"), "max_tokens: 0 is not ≥ 1"),
        (("--acceptance", "0.7", "--rate", "0"), "rate: 0.0 is not > 0"),
        (("--acceptance", "0.7", "--draft-ms", "1"), "draft_ms, verify_ms: one of the two is missing"),
        (("--models", "missing.toml"), "missing.toml"),
        (("--models", "x.toml", "--acceptance", "0.7"), "--acceptance: given together with --models"),
        (("--models", "x.toml", "--no-sensitivity"), "--no-sensitivity: given together with --models"),
        (("--models", "x.toml", "--map"), "--map: given together with --models"),
        (
            ("--models", "x.toml", "--load", "0", "--seed", "2"),
            "--seed: given together with --models and --load 0",
        ),
        (("x.jsonl", "--prompt-tokens", "64"), "--prompt-tokens: given together with a trace"),
        (("--acceptance", "0.7", "--rate", "2", "--load", "0.4"), "--load: given together with --rate"),
        (
            ("--acceptance", "0.7", "--no-map", "--map-budgets", "2"),
            "--map-budgets: given together with --no-map",
        ),
        (("--acceptance", "0.7", "--plot", "plan.txt"), "'plan.txt' does not end in .svg"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["plan", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
