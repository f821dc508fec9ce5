"""``validate`` refuses values that cannot be, and only those: what the project writes stays valid."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from specpilot.trace import CycleRecord, TraceHeader, TraceRecord, read_trace, write_trace
from specpilot.trace.cycles import ABORTED
from specpilot.trace.foreign import read_log
from specpilot.trace.validate import validate

Whole = tuple[TraceHeader, list[TraceRecord]]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TIMES = ("draft_ms", "draft_prefill_ms", "verify_ms", "host_ms", "queue_ms")


def edited(path: Path, kind: str, **changes: object) -> tuple[int, dict[str, object]]:
    """Change the first line of a kind (of cycles: one that proposed tokens); its number, and what it was."""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        record = json.loads(line)
        if record["kind"] == kind and record.get("proposed", 1):
            lines[number - 1] = json.dumps(record | changes)
            path.write_text("\n".join(lines) + "\n")
            return number, record
    raise AssertionError(f"no {kind}")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        *(("cycle", {name: -1.0}, f"{name}: -1.0 is not ≥ 0; give milliseconds") for name in TIMES),
        ("cycle", {"host_ms": -1e-9}, "host_ms: -1e-09 is not ≥ 0; give milliseconds"),
        ("cycle", {"host_ms": None}, "host_ms: None is not a finite number"),
        ("cycle", {"batch_size": 0}, "batch_size: 0 is not a whole number ≥ 1"),
        ("cycle", {"drafted": 0}, "drafted: 0 is below proposed="),
        ("cycle", {"verified_tokens": 0}, "verified_tokens: 0 is not ≥ 1"),
        ("end", {"e2e_ms": -1.0}, "e2e_ms: -1.0 is not ≥ 0; give milliseconds"),
        ("admit", {"slo_ms": -1.0}, "slo_ms: -1.0 is not > 0; give milliseconds"),
        ("admit", {"slo_ms": 0.0}, "slo_ms: 0.0 is not > 0; give milliseconds"),
    ],
)
def test_a_value_out_of_range_is_named(
    trace_file: Path, kind: str, changes: dict[str, object], message: str
) -> None:
    number, _ = edited(trace_file, kind, **changes)
    with pytest.raises(ValueError, match=r".") as caught:
        validate(trace_file)
    assert f"{trace_file.name}, line {number}: {message}" in str(caught.value)


def test_what_took_no_time_is_valid(trace_file: Path) -> None:
    edited(trace_file, "cycle", **dict.fromkeys(TIMES, 0.0), batch_size=1)
    edited(trace_file, "admit", slo_ms=0.5)
    edited(trace_file, "end", e2e_ms=0)
    assert validate(trace_file).requests == 60


def test_fields_that_the_source_lacks_are_not_compared(trace_file: Path) -> None:
    edited(trace_file, "cycle", verified_tokens=0, drafted=0)
    edited(trace_file, "trace", lacks=["verified_tokens"])
    with pytest.raises(ValueError, match="drafted: 0 is below proposed="):
        validate(trace_file)
    edited(trace_file, "trace", lacks=["verified_tokens", "drafted"])
    assert validate(trace_file).requests == 60


def test_a_cycle_without_a_pass_has_no_width(whole: Whole, tmp_path: Path) -> None:
    """One that was aborted: nothing was drafted or verified, as the recorder writes it."""
    header, records = whole
    cycles = [record for record in records if isinstance(record, CycleRecord)]
    given_up = replace(
        cycles[0], status=ABORTED, drafted=0, proposed=0, accepted=0, emitted=0, verified_tokens=0,
        cycle=10**6, verify_ms=0.0, draft_ms=0.0, confidences=(),
    )  # fmt: skip
    place = records.index(cycles[0])
    write_trace(tmp_path / "t.jsonl", header, [*records[:place], given_up, *records[place:]])
    assert validate(tmp_path / "t.jsonl").cycles == len(cycles) + 1


@pytest.mark.parametrize("path", sorted((EXAMPLES / "traces").glob("*.gz")), ids=lambda path: path.name)
def test_the_examples_are_valid(path: Path) -> None:
    found = validate(path)
    assert found.cycles > 50
    assert found.lines == len(read_trace(path)) + 1, "the closing line is no record"


@pytest.mark.parametrize(("name", "kind"), [("steps.csv", "steps"), ("vllm.jsonl", "vllm")])
def test_imported_logs_are_valid(tmp_path: Path, name: str, kind: str) -> None:
    found = read_log(EXAMPLES / "logs" / name, kind)
    write_trace(tmp_path / "t.jsonl", found.header, found.records)
    assert validate(tmp_path / "t.jsonl").cycles == found.cycles


def test_a_busy_run_is_valid(run: Callable[..., Whole], tmp_path: Path) -> None:
    write_trace(tmp_path / "t.jsonl", *run(150, 120.0))
    assert validate(tmp_path / "t.jsonl").requests == 150
