"""Other systems' logs become traces that validate, export and are diagnosed by what they tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specpilot.cli.main import main
from specpilot.diagnosis import diagnose, read_columns
from specpilot.trace import CycleRecord, write_trace
from specpilot.trace.foreign import read_log
from specpilot.trace.validate import validate

LOGS = Path(__file__).resolve().parents[2] / "examples" / "logs"


def test_a_table_of_steps(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "request,proposed,accepted,confidence,verify_ms\n"
        "a,3,2,0.9;0.8;0.4,20\n"
        "a,0,0,,18.5\n"
        'b,2,2,"[0.7,0.6]",21\n',
        encoding="utf-8",
    )
    found = read_log(log, "steps")
    cycles = [record for record in found.records if isinstance(record, CycleRecord)]
    assert [(c.request, c.index, c.proposed, c.accepted, c.emitted) for c in cycles] == [
        ("a", 0, 3, 2, 3),
        ("a", 1, 0, 0, 1),
        ("b", 0, 2, 2, 3),
    ]
    assert cycles[0].confidences == (0.9, 0.8, 0.4)
    assert cycles[1].verify_ms == 18.5
    assert (found.requests, found.cycles) == (2, 3)
    assert "draft_ms" in found.lacks
    assert not {"verify_ms", "confidences"} & set(found.lacks)
    trace = tmp_path / "trace.jsonl"
    write_trace(trace, found.header, found.records)
    assert validate(trace).cycles == 3


def test_json_lines_of_steps(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"proposed": 4, "accepted": 1, "confidence": 0.5, "time_s": t} for t in (5.0, 6.0, 7.5)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_log(log, "steps")
    starts = [record.start_s for record in found.records if isinstance(record, CycleRecord)]
    assert starts == [5.0, 6.0, 7.5]
    assert "start_s" not in found.lacks


def test_what_is_not_told_is_not_diagnosed(tmp_path: Path) -> None:
    """VLLM's metrics have no times: nothing may be said of them."""
    found = read_log(LOGS / "vllm.jsonl", "vllm")
    trace = tmp_path / "trace.jsonl"
    write_trace(trace, found.header, found.records)
    causes = {finding.cause for finding in diagnose(read_columns(trace)).findings}
    timed = {"slow_draft", "verify_not_parallel", "host_overhead", "queueing", "budget_bound"}
    assert not causes & (timed | {"kv_misalignment"})


@pytest.mark.parametrize("name", ["draft_ms", "verify_ms"])
def test_no_time_is_negative(tmp_path: Path, name: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"proposed,accepted,{name}\n4,2,-1.5\n")
    with pytest.raises(ValueError, match=rf"log.csv, line 2: {name}: -1.5 is not ≥ 0; give milliseconds"):
        read_log(path, "steps")


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("a.csv", "proposed,accepted\n3,4\n", "steps", "accepted: 4 exceeds proposed=3"),
        ("a.csv", "proposed,speed\n3,4\n", "steps", "line 2: 'speed' is unknown"),
        ("a.csv", "proposed,accepted\n3,x\n", "steps", "line 2: accepted: 'x' is not a number"),
        (
            "a.csv",
            "request,proposed,accepted\na,1,1\nb,1,1\na,1,0\n",
            "steps",
            "'a' goes on after another one",
        ),
        ("a.csv", "proposed,accepted\n", "steps", "no steps"),
        ("a.jsonl", '{"proposed": 3}\n', "steps", "line 1: accepted"),
        ("a.jsonl", "{}\n", "vllm", "line 1: speculative_decoding: there is none"),
        ("a.jsonl", '{"num_spec_steps": 3}\n', "vllm", "sums only"),
        (
            "a.jsonl",
            '{"num_spec_steps": 1, "per_step_accepted": [3], "per_step_drafted": [2]}\n',
            "vllm",
            "exceeds per_step_drafted=2",
        ),
        ("a.jsonl", "{}\n", "tgi", "format: 'tgi' is not one of steps, vllm"),
    ],
)
def test_a_bad_log(tmp_path: Path, name: str, text: str, kind: str, message: str) -> None:
    log = tmp_path / name
    log.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r".*") as error:
        read_log(log, kind)
    assert message in str(error.value)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    with pytest.raises(SystemExit) as stop:
        main(["trace", "import", str(LOGS / "steps.csv"), str(trace)])
    assert stop.value.code == 0
    assert "does not tell" in capsys.readouterr().out
    assert validate(trace).requests == 12
