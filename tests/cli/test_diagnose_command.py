"""``specpilot diagnose``: text, JSON, page, comparison, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.faulty_engine import Setup, run

from specpilot.cli.main import main
from specpilot.trace import write_trace


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A healthy engine, and the same one with a busy host."""
    folder = tmp_path_factory.mktemp("traces")
    good, bad = folder / "tuesday.jsonl.gz", folder / "today.jsonl.gz"
    write_trace(good, *run(Setup(seed=1, requests=80)))
    write_trace(bad, *run(Setup(seed=1, requests=80, host_ms=14.0)))
    return good, bad


def test_json(traces: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert status("diagnose", str(traces[0]), "--json", "-") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["primary"] is None
    assert result["findings"][0]["cause"] == "healthy"
    assert status("diagnose", str(traces[1]), "--json", "-") == 1
    result = json.loads(capsys.readouterr().out)
    assert result["primary"] == "host_overhead"
    assert set(result["findings"][0]) == {"cause", "confidence", "evidence", "remedy"}


def test_text_and_page(traces: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert status("diagnose", *map(str, traces), "--report", str(page)) == 1
    shown = capsys.readouterr().out
    assert "none, healthy" in shown
    assert "host_overhead" in shown
    html = page.read_text()
    assert html.count("<svg") == 8
    assert "http" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_comparison(traces: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert status("diagnose", str(traces[1]), "--before", str(traces[0]), "--json", str(out)) == 1
    assert "host ms per cycle" in capsys.readouterr().out
    comparison = json.loads(out.read_text())["comparison"]
    assert comparison["new"] == ["host_overhead"]
    assert comparison["changes"][0]["name"] == "host_ms_per_cycle"


def test_bad_input(traces: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("diagnose", *map(str, traces), "--before", str(traces[0])) == 2
    assert "compare one trace with one earlier trace" in capsys.readouterr().err
    assert status("diagnose", str(traces[0]), "--engine", "transformers") == 2
    assert "--engine: given without --rescore" in capsys.readouterr().err
    path = tmp_path / "cut.jsonl"
    write_trace(path, *run(Setup(seed=1, requests=10)))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]))
    assert status("diagnose", str(path)) == 2
    assert f"cut.jsonl, line {len(lines) - 3}: there is no closing line" in capsys.readouterr().err
    assert status("diagnose", str(path), "--partial") in (0, 1)
    assert "left out: cut.jsonl, after line" in capsys.readouterr().out
