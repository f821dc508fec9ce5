"""What a message advises, and when it comes: before the work, and so that following it helps."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specpilot.cli import audit
from specpilot.cli.main import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
AGREEMENT = str(EXAMPLES / "planning" / "agreement.jsonl")
CYCLES = str(EXAMPLES / "traces" / "bundled.jsonl.gz")

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the program on bad input; what it says."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        error = capsys.readouterr().err
        assert stop.value.code == 2, error
        assert "Traceback" not in error
        return error

    return run


@pytest.mark.parametrize("module", ["torch", "transformers.utils"])
def test_the_extra_that_brings_the_engine(
    module: str, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    own = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "specpilot.pair":
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return own(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    error = refused("complete", "Hello", "--engine", "transformers")
    assert error.endswith("pip install 'specpilot[transformers]'\n")


def test_a_wrong_trace_is_refused_before_the_audit(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    def begin(*_: object) -> None:
        pytest.fail("the audit began")

    monkeypatch.setattr(audit, "_local", begin)
    assert "this is an agreement trace" in refused("audit", "--trace", AGREEMENT)
