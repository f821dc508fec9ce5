"""Traces survive the file in every format, and nothing broken is half-read in silence."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from specpilot.control.types import Binding, StopCause
from specpilot.trace import (
    CycleEvidence,
    CycleRecord,
    LedgerState,
    TraceHeader,
    TraceRecord,
    TraceWriter,
    is_trace,
    read_trace,
    write_trace,
)
from specpilot.trace.validate import validate

Whole = tuple[TraceHeader, list[TraceRecord]]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
def test_round_trip_is_exact(whole: Whole, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_trace(path, *whole)
    assert is_trace(path)
    assert read_trace(path) == [whole[0], *whole[1]]


def test_evidence_survives(tmp_path: Path, whole: Whole) -> None:
    cycle = next(r for r in whole[1] if isinstance(r, CycleRecord) and r.proposed == 4)
    told = CycleEvidence(0.7, (1, 2), (1, 1, 0, 1), (0.5, 0.25, 0.0), (0.9, 0.5), (5, 6, 7, 8), 9, (5, 6, 9))
    told = replace(told, emitted_verdicts=(1, 0, 1), sampled=(0.25, 0.75, 0.1, 0.0, 0.0, 0.0, 0.3, 1.0))
    marked = replace(cycle, evidence=told, numbers={"cap": float("inf")}, draft_fault="hung")
    path = tmp_path / "t.jsonl"
    write_trace(path, whole[0], [marked])
    assert read_trace(path)[1] == marked
    assert "Infinity" not in path.read_text()


def test_compressed_files_of_the_same_run_are_the_same_bytes(tmp_path: Path, whole: Whole) -> None:
    for name in ("a.gz", "b.gz"):
        write_trace(tmp_path / name, *whole)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_a_valid_trace_is_counted(trace_file: Path) -> None:
    found = validate(trace_file)
    assert found.lines == len(trace_file.read_text().splitlines())
    assert found.requests == 60
    assert found.open_requests == 0
    assert found.cycles == sum('"kind":"cycle"' in line for line in trace_file.read_text().splitlines())
    assert found.left_out is None


def test_every_line_of_a_run_has_every_field(whole: Whole) -> None:
    plain = [r for r in whole[1] if isinstance(r, CycleRecord) and r.own == "recovered"]
    assert plain
    assert all(r.ledger.passes_started >= 1 and r.queue_ms >= 0.0 for r in plain)


def _edit(path: Path, line: int, **changes: object) -> None:
    """Change fields of one line (from 1); a value of ``...`` drops the field."""
    lines = path.read_text().splitlines()
    record = json.loads(lines[line - 1])
    for name, value in changes.items():
        record[name] = value
        if value is ...:
            del record[name]
    lines[line - 1] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")


def _first(path: Path, kind: str) -> int:
    return next(
        number
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if json.loads(line)["kind"] == kind
    )


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("cycle", {"drafted": -1}, "drafted: -1 is not a whole number ≥ 0"),
        ("cycle", {"drafted": ...}, "drafted: None is not a whole number"),
        ("cycle", {"accepted": 99}, "accepted: 99 exceeds proposed="),
        ("cycle", {"verify_ms": "fast"}, "verify_ms: 'fast' is not a finite number"),
        ("cycle", {"verify_ms": 10**400}, "verify_ms: 10+… is not a finite number"),
        ("cycle", {"confidences": [-(10**400)]}, "confidences.0.: -10+… is not a number in 0…1"),
        ("cycle", {"binding": "luck"}, "binding: 'luck' is not one of budget,"),
        ("cycle", {"confidences": [1.5]}, "confidences.0.: 1.5 is not a number in 0…1"),
        ("cycle", {"index": 7}, "index: 7 of 'r0' follows 0 cycles"),
        ("cycle", {"request": "nobody"}, "request: 'nobody' is not in flight here"),
        ("cycle", {"end_s": -1.0}, "a clock that only goes forward is needed"),
        ("cycle", {"verdicts": [1]}, "verdicts: 1 values for proposed="),
        ("cycle", {"emitted": 0}, "emitted_tokens: .* cycles are missing or were added"),
        ("admit", {"prompt_tokens": 1.5}, "prompt_tokens: 1.5 is not a whole number"),
        ("end", {"cause": "bored"}, "cause: 'bored' is not one of eos,"),
        ("trace", {"version": 9}, "line 1: version: 9 is not 2, the only trace version"),
        ("end", {"version": 1}, "version: 1 is not 2"),
        ("end", {"kind": "fin"}, "kind: 'fin' is not one of trace, admit,"),
        ("close", {"lines": 3}, "lines: 3 were written"),
    ],
)
def test_a_bad_line_is_named(trace_file: Path, kind: str, changes: dict[str, object], message: str) -> None:
    line = _first(trace_file, kind)
    _edit(trace_file, line, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        validate(trace_file)
    assert f"line {line}:" in str(caught.value) or "emitted_tokens" in message


def test_a_cut_trace_is_refused_unless_asked_for(trace_file: Path) -> None:
    text = trace_file.read_text()
    lines = text.splitlines(keepends=True)
    trace_file.write_text("".join(lines[:40]))
    with pytest.raises(ValueError, match="line 40: there is no closing line"):
        validate(trace_file)
    found = validate(trace_file, partial=True)
    assert found.lines == 40
    assert found.left_out is not None
    assert "after line 40" in found.left_out
    trace_file.write_text("".join(lines[:40]) + lines[40][:25])
    with pytest.raises(ValueError, match="line 41: the last line is cut in the middle"):
        read_trace(trace_file)
    assert len(read_trace(trace_file, partial=True)) == 40


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_cut_compressed_data_is_refused(whole: Whole, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.jsonl.{suffix}"
    write_trace(path, *whole)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"line \d+: "):
        read_trace(path)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_flipped_byte_of_compressed_data_is_refused_with_the_line(
    whole: Whole, tmp_path: Path, suffix: str
) -> None:
    """The decompressors have errors of their own. gzip's checksum finds every flip; our zst has none."""
    path = tmp_path / f"t.jsonl.{suffix}"
    write_trace(path, *whole)
    data = path.read_bytes()
    refused = 0
    for at in range(10, len(data), len(data) // 60):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            read_trace(path)
        except ValueError as error:
            refused += bool(re.match(rf"t\.jsonl\.{suffix}, line \d+: ", str(error)))
    assert refused >= (60 if suffix == "gz" else 1)


def test_damage_in_the_middle_is_refused_even_if_partial(trace_file: Path) -> None:
    lines = trace_file.read_text().splitlines(keepends=True)
    lines[9] = lines[9][:30] + "\n"
    trace_file.write_text("".join(lines))
    for partial in (False, True):
        with pytest.raises(ValueError, match="line 10: not JSON"):
            read_trace(trace_file, partial=partial)


def test_joined_traces_and_other_files_are_refused(trace_file: Path, tmp_path: Path) -> None:
    text = trace_file.read_text()
    count = len(text.splitlines())
    trace_file.write_text(text + text)
    with pytest.raises(ValueError, match=f"line {count + 1}: the trace was closed on line {count}"):
        read_trace(trace_file)
    lines = text.splitlines(keepends=True)
    trace_file.write_text("".join(lines[:5] + lines))
    with pytest.raises(ValueError, match="line 6: a second header"):
        read_trace(trace_file)
    trace_file.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="line 1: kind: 'admit' is not 'trace'"):
        read_trace(trace_file)
    trace_file.write_text("")
    with pytest.raises(ValueError, match="the file is empty or cut"):
        read_trace(trace_file)
    other = tmp_path / "agreement.jsonl"
    other.write_text('{"version": 1, "request": "a", "prompt_tokens": 3, "agree": [1]}\n')
    assert not is_trace(other)
    with pytest.raises(ValueError, match="line 1: agree: this is an agreement trace"):
        read_trace(other)


def test_a_writer_closes_once(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.jsonl", TraceHeader("test")) as writer:
        writer.close()
    assert len(read_trace(tmp_path / "t.jsonl")) == 1


def test_hand_made_cycle_has_defaults() -> None:
    cycle = CycleRecord(
        "a", 0, 0.5, 0.512, 10, 0, False, Binding.BREAKER, 0, 0, 0, 1, 0.0, 0.0, 12.0, 0.1, 10, 0,
        LedgerState(1, 1, 0.0), ended=StopCause.EOS,
    )  # fmt: skip
    assert cycle.own == "bonus"
    assert replace(cycle, emitted=0).own is None
