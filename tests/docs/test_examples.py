"""The example programs say what they need: status 2 and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cycle_by_cycle.py",), "the following arguments are required: trace"),
        (("cycle_by_cycle.py", "nowhere.jsonl"), "nowhere.jsonl"),
        (("cycle_by_cycle.py", "examples/planning/agreement.jsonl"), "this is an agreement trace"),
        (("make_traces.py",), "the following arguments are required: folder"),
        (("make_traces.py", "nowhere"), "folder: nowhere does not exist"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], message: str) -> None:
    program, *rest = arguments
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / program), *rest], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
