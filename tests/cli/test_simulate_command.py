"""`specpilot simulate`: the JSON's fields, the exit status, and clear messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specpilot.cli.main import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--requests", "30", *arguments])
    return int(ended.value.code or 0)


def test_result_object(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    status = run(
        "--policy",
        "specpilot",
        "--policy",
        "bayes",
        "--replicas",
        "2",
        "--drift",
        "0.8,0.3",
        "--prompts",
        "20,20,90",
        "--outage",
        "0.4-0.6",
        "--slo-p95-ms",
        "5000",
        "--json",
        str(path),
    )
    assert status == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    assert set(result["policies"]) == {"specpilot", "bayes"}
    own = result["policies"]["specpilot"]
    assert (own["arrivals"], own["budget_violations"], own["source"]) == (30, 0, "simulation")
    assert own["target_passes_per_request"] <= 2.0
    assert result["wall_s"]["specpilot"] > 0.0


def test_a_broken_slo_is_status_1() -> None:
    assert run("--policy", "specpilot", "--load", "6") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--load", "0"), "load: 0.0 is not > 0"),
        (("--load", "inf"), "load: inf is not > 0 and finite"),
        (("--rate", "inf"), "rate: inf is not > 0 and finite"),
        (("--arrivals", "a.csv", "--speed", "inf"), "speed: inf is not > 0 and finite"),
        (("--burst", "inf"), "burst: inf is not ≥ 1 and finite"),
        (("--prompts", "inf"), "prompts: 'inf' is not a list of whole numbers"),
        (("--prompts", "nan"), "prompts: 'nan' is not a list of whole numbers"),
        (("--prompts", "20,1.5"), "prompts: '20,1.5' is not a list of whole numbers"),
        (("--replicas", "0"), "replicas: 0 is not in 1…requests; give a count, at most one for each request"),
        (("--drift", "a,b"), "drift: 'a,b' is not a list of numbers"),
        (("--outage", "0.4"), "outage: '0.4' is not two shares"),
        (("--policy", "psychic"), "policy: 'psychic' is not known"),
        (("--scenario", "calm"), "scenario: 'calm' is not known"),
        (("--processes", "0"), "processes: 0 is not ≥ 1"),
        (("--arrivals", "nowhere.csv"), "nowhere.csv"),
        (("--rate", "2", "--load", "0.5"), "--load: given together with --rate"),
        (("--speed", "2"), "--speed: given without --arrivals"),
        (
            ("--arrivals", "a.csv", "--rate", "2", "--prompts", "20"),
            "--rate, --prompts: given together with --arrivals",
        ),
    ],
)
def test_bad_input_is_status_2(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0.5,20,8\n", encoding="utf-8")
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
