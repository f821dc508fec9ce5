"""Bad input to ``demo``, ``record`` and ``complete``: status 2 and one line, before any model is loaded."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from specpilot import __version__
from specpilot.cli import audit, complete, demo, plan, record, replay, serve, simulate
from specpilot.cli.main import main
from specpilot.cli.output import write_json
from specpilot.cli.record import read_prompts

COMMANDS = {
    module.__name__.rsplit(".", 1)[1]: module.run
    for module in (audit, complete, demo, plan, record, replay, serve, simulate)
}


def number_options(function: Callable[..., None]) -> Iterator[tuple[str, str]]:
    """(option, ``whole`` or ``real``) of a command's numbers."""
    for name, hint in get_type_hints(function).items():
        kinds = {hint, *get_args(hint)} & {int, float}
        if kinds:
            yield "--" + name.replace("_", "-"), "whole" if int in kinds else "real"


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
        (("record", "x.jsonl", "--limit", "0"), "limit: 0 is not ≥ 1"),
        (("record", "x.jsonl", "--limit", "-1"), "limit: -1 is not ≥ 1"),
        (("record", "x.jsonl", "--costs", "x.jsonl"), "two results cannot go to one file"),
        (("record", "x.jsonl", "--json", "./x.jsonl"), "two results cannot go to one file"),
        (("serve", "--snapshot", "x", "--trace", "x"), "two results cannot go to one file"),
        (("plan", "--acceptance", "0.6", "--plot", "w.svg", "--json", "w.svg"), "cannot go to one file"),
        (("record", "x.jsonl.gz"), "out: 'x.jsonl.gz': an agreement trace is plain text; leave .gz out"),
        (("complete", "a", "--target", "org/model"), "engine transformers"),
        (("complete", "a", "--drafter", "both", "--max-nodes", "0"), "max_nodes: 0 is not in 1…256"),
        (("plan", "--models", "x.toml", "--no-map"), "--no-map: given together with --models"),
        (("serve", "--model-name", " "), "model_name: ' ' is empty"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("record", "FILE", "--prompts", "FILE"),
        ("record", "x.jsonl", "--prompts", "FILE", "--costs", "FILE"),
        ("replay", "FILE", "--json", "FILE"),
        ("replay", "x.jsonl", "--cost", "FILE", "--json", "FILE"),
        ("plan", "FILE", "--json", "FILE"),
        ("plan", "--models", "FILE", "--json", "FILE"),
        ("simulate", "--arrivals", "FILE", "--json", "FILE"),
        ("diagnose", "FILE", "--report", "FILE"),
        ("diagnose", "x.jsonl", "--before", "FILE", "--json", "FILE"),
        ("audit", "--trace", "FILE", "--json", "FILE"),
        ("audit", "--prompts", "FILE", "--json", "FILE"),
        ("trace", "validate", "FILE", "--json", "FILE"),
        ("trace", "import", "FILE", "FILE"),
        ("trace", "export", "FILE", "FILE"),
    ],
    ids=" ".join,
)
def test_no_command_overwrites_what_it_reads(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    assert status(*[word.replace("FILE", str(path)) for word in arguments]) == 2
    assert "the command reads this file; name another one to write" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "{}\n"


def test_prompts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "One"}\n\n{"prompt": "Two", "request": "second", "label": "x"}\n')
    assert read_prompts(path) == [("line-1", None, "One"), ("second", "x", "Two")]
    assert len(read_prompts(None)) >= 150


def test_a_line_separator_inside_a_prompt_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "One\u2028two"}\n', encoding="utf-8")
    assert read_prompts(path) == [("line-1", None, "One\u2028two")]


def test_a_name_given_to_two_prompts(tmp_path: Path) -> None:
    """A trace in which a request occurs twice could not be replayed."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "One"}\n{"prompt": "Two", "request": "line-1"}\n')
    with pytest.raises(ValueError, match=r"prompts.jsonl, line 2: request: 'line-1' occurs twice"):
        read_prompts(path)


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


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--version") == 0
    assert capsys.readouterr().out == f"specpilot {__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "specpilot", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"specpilot {__version__}\n"


NUMBER_OPTIONS = [
    (command, option, kind)
    for command, function in COMMANDS.items()
    for option, kind in number_options(function)
]


@pytest.mark.parametrize(("command", "option", "kind"), NUMBER_OPTIONS)
def test_a_number_that_is_none_is_named_with_its_remedy(
    command: str, option: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argument = {"complete": ["text"], "record": ["x.jsonl"], "replay": ["x.jsonl"]}.get(command, [])
    for value in ("abc", "") if kind == "real" else ("abc", "", "1.5"):
        assert status(command, *argument, option, value) == 2
        error = " ".join(capsys.readouterr().err.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())
        assert (
            f"Invalid value for '{option}': {value!r} is not a {'whole ' * (kind == 'whole')}number" in error
        )
        assert "; write it in digits, e.g. " in error
