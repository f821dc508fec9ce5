"""``specpilot trace``: validate and export, with their exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specpilot.cli.main import main
from specpilot.control.types import Binding
from specpilot.trace import AdmitRecord, CycleRecord, EndRecord, LedgerState, TraceHeader, write_trace


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """One request of one cycle, and one that was refused."""
    from specpilot.control.types import StopCause

    path = tmp_path / "t.jsonl.gz"
    cycle = CycleRecord(
        "a", 0, 0.5, 0.512, 10, 4, False, Binding.PROBE, 4, 4, 2, 3, 2.0, 1.0, 12.0, 0.1, 14, 0,
        LedgerState(1, 1, 0.0), {"S1": 0.5}, StopCause.EOS, confidences=(0.5, 0.5, 0.25, 0.125), cycle=1,
    )  # fmt: skip
    write_trace(
        path,
        TraceHeader("test", "static-4"),
        [
            AdmitRecord(1, 0.4, "a", 0.4, 10, 8),
            AdmitRecord(2, 0.4, "b", 0.4, 10, 8, admitted=False, reason="deadline"),
            cycle,
            EndRecord(5, 0.512, "a", StopCause.EOS, 3, 1, 0, 1, 112.0, True),
        ],
    )
    return path


def test_validate(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("trace", "validate", str(trace), "--json", "-") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["lines"], result["requests"], result["refused"], result["cycles"]) == (6, 2, 1, 1)
    assert status("trace", "validate", str(trace), "--replay") == 2
    assert "replayable: this trace of 'static-4'" in capsys.readouterr().err


def test_a_broken_trace_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"kind":"trace","version":2,"source":"x"}\n{"kind":"cycle"}\n')
    assert status("trace", "validate", str(path)) == 2
    assert "t.jsonl, line 2: " in capsys.readouterr().err


def test_export(trace: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert status("trace", "export", str(trace), str(tmp_path / "c.parquet")) == 0
    (cycle,) = parquet.read_table(tmp_path / "c.parquet").to_pylist()
    assert cycle["accepted"] == 2
    assert cycle["own"] == "recovered"
    assert cycle["confidences"] == [0.5, 0.5, 0.25, 0.125]
    assert dict(cycle["numbers"]) == {"S1": 0.5}
    rows = parquet.read_table(tmp_path / "c-requests.parquet").to_pylist()
    assert [(row["request"], row["admitted"], row["cause"]) for row in rows] == [
        ("a", True, "eos"),
        ("b", False, None),
    ]


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "t.jsonl"
    path.write_text('{"kind":"trace","version":2,"source":"x"}\n{"kind":"end"}\n')
    assert status("trace", "export", str(path), str(tmp_path / "c.parquet")) == 2
    assert "line 2" in capsys.readouterr().err
    assert not (tmp_path / "c.parquet").exists()
