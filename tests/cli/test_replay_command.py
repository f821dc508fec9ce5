"""``specpilot replay`` as a user runs it: results, exit statuses, one clear line for bad input."""

import json
from pathlib import Path

import pytest

from specpilot.cli.main import main
from specpilot.trace.agreement import AgreementTrace, write_agreement

BITS = (1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    confidence = tuple(0.9 if bit else 0.3 for bit in BITS)
    write_agreement(path, [AgreementTrace(f"t{index}", 30, BITS, confidence) for index in range(40)])
    return path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_json_to_standard_output_and_nothing_else(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ("--policy", "specpilot", "--policy", "static-4", "--policy", "oracle")
    assert run("replay", str(trace), *chosen, "--json", "-") == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert set(record["policies"]) == {"specpilot", "static-4", "oracle"}
    assert record["policies"]["static-4"]["budget_violations"] == 0
    assert "static-4" in printed.err
    assert record["drawn_bits"] == 0


def test_all_policies_with_given_costs(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    numbers = ("--draft-ms", "0.5", "--verify-ms", "5", "--verify-token-ms", "0.1")
    assert run("replay", str(trace), *numbers, "--load", "0", "--json", str(out)) == 0
    record = json.loads(out.read_text())
    assert len(record["policies"]) == 1 + 17 + 5 + 1
    assert record["best_static"].startswith("static-")
    assert 0.5 < record["oracle_share"] <= 1.02


def test_a_broken_promise_is_status_1(trace: Path) -> None:
    assert run("replay", str(trace), "--policy", "specpilot", "--slo-p95-ms", "1") == 1


def test_without_the_ledger_more_passes_are_taken(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert run("replay", str(trace), "--policy", "static-1", "--no-ledger", "--json", str(out)) == 0
    assert json.loads(out.read_text())["policies"]["static-1"]["target_passes_per_request"] > 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "best"), "'best' is not known"),
        (("--load", "-1"), "load: -1.0"),
        (("--load", "inf"), "load: inf is not ≥ 0 and finite"),
        (("--policy", "oracle-tree"), "policy: 'oracle-tree' needs token trees; give --max-nodes, e.g. 32"),
        (("--requests", "0"), "requests: 0"),
        (("--pass-budget", "0.5"), "pass_budget: 0.5"),
        (("--draft-ms", "1"), "draft_ms, verify_ms: one of the two is missing"),
        (("--no-ledger", "--pass-budget", "3"), "--pass-budget: given together with --no-ledger"),
        (("--json", "nowhere/x.json"), "folder nowhere does not exist"),
    ],
)
def test_bad_input_is_status_2_and_one_line(
    trace: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run("replay", str(trace), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_unknown_options_and_missing_files_are_status_2(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("replay", str(trace), "--polcy", "specpilot") == 2
    assert "--polcy" in capsys.readouterr().err
    assert run("replay", "missing.jsonl") == 2
    assert "missing.jsonl" in capsys.readouterr().err
    assert run("no-such-command") == 2


@pytest.mark.parametrize("command", ["demo", "complete", "record", "replay"])
def test_help_shows_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert "default" in capsys.readouterr().out
