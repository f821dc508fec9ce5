"""The worked examples print what the pages say, word for word, on the shipped traces."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from specpilot.cli.main import main
from specpilot.trace.validate import validate

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / name for name in ("reading-traces.md", "planning.md")]
EXAMPLE = re.compile(r"^```sh\n([^\n]*)\n```\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
TRACES = sorted((ROOT / "examples" / "traces").iterdir())


def _examples() -> list[tuple[str, str]]:
    return [found for page in PAGES for found in EXAMPLE.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("command", "output"), _examples(), ids=lambda value: value[:60])
def test_the_output_is_the_page_s(command: str, output: str) -> None:
    words = shlex.split(command)
    call = [sys.executable, "-m", "specpilot.cli.main", *words[1:]] if words[0] == "specpilot" else words
    call = [sys.executable if word == "python" else word for word in call]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout
    shown = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    assert shown == output.rstrip("\n"), done.stderr


def test_there_are_examples_of_all_seven_questions() -> None:
    assert len(_examples()) >= 7


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name)
def test_shipped_traces_are_whole_and_small(path: Path) -> None:
    assert path.stat().st_size < 200_000
    assert validate(path).left_out is None


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name)
def test_the_tools_of_the_pages_read_every_shipped_trace(path: Path, tmp_path: Path) -> None:
    """Diagnosis, export and, where the trace is specpilot's own, the replay of its decisions."""
    replayable = validate(path).header.replayable
    assert replayable == (path.name == "bundled.jsonl.gz")
    calls = [
        ["diagnose", str(path)],
        ["trace", "export", str(path), str(tmp_path / "cycles.parquet")],
        ["trace", "validate", str(path), *(["--replay"] if replayable else [])],
    ]
    for call in calls:
        with pytest.raises(SystemExit) as stop:
            main(call)
        # 1: a cause was found, or a policy that was changed since decides otherwise; 2: it was not read.
        assert stop.value.code in (0, 1), call
