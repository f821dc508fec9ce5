"""Bad input to ``demo``, ``record`` and ``complete``: status 2 and one line, before any model is loaded."""

import json
from pathlib import Path

import pytest

from specpilot.cli.main import main
from specpilot.cli.output import write_json
from specpilot.cli.record import read_prompts


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--load", "2"), "load: 2.0 is not in (0, 1)"),
        (("demo", "--requests", "0"), "requests: 0"),
        (("demo", "--slo-p95-ms", "0"), "slo_p95_ms: 0.0"),
        (("demo", "--report", "nowhere/report.html"), "folder nowhere does not exist"),
        (("record", "nowhere/trace.jsonl"), "folder nowhere does not exist"),
        (("record", "x.jsonl", "--prompts", "missing.jsonl"), "missing.jsonl"),
        (("serve", "--port", "70000"), "port: 70000 is not in 0…65535"),
        (("serve", "--mode", "fast"), "mode: 'fast' is not off, shadow or on"),
        (("serve", "--slo-p95-ms", "0"), "slo_p95_ms: 0.0"),
        (("serve", "--max-batch", "0"), "max_batch: 0 is not ≥ 1"),
        (("serve", "--temperature", "1"), "No such option"),
    ],
)
def test_one_clear_line(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_prompts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "One"}\n\n{"prompt": "Two", "request": "second", "label": "x"}\n')
    assert read_prompts(path) == [("line-1", None, "One"), ("second", "x", "Two")]
    assert len(read_prompts(None)) >= 150


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no prompts"),
        ("{\n", "line 1: not JSON"),
        ('{"prompt": ""}\n', "line 1: prompt: there is no text"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_json_has_no_infinity(tmp_path: Path) -> None:
    write_json(str(tmp_path / "x.json"), {"a": float("inf"), "b": [1.5, {"c": float("nan")}]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.5, {"c": None}]}
