"""A file of the wrong kind, whichever command is given it: status 2 and one line that names it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from specpilot.cli.main import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
AGREEMENT = str(EXAMPLES / "planning" / "agreement.jsonl")
VLLM = str(EXAMPLES / "logs" / "vllm.jsonl")
CYCLES = str(EXAMPLES / "traces" / "bundled.jsonl.gz")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    return error


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay", "FILE"),
        ("plan", "FILE"),
        ("plan", "--models", "FILE"),
        ("replay", AGREEMENT, "--cost", "FILE"),
        ("simulate", "--arrivals", "FILE"),
        ("record", "OUT", "--prompts", "FILE"),
        ("audit", "--prompts", "FILE"),
        ("trace", "import", "FILE", "OUT"),
        ("trace", "import", "FILE.csv", "OUT"),
        ("trace", "import", "FILE", "OUT", "--format", "vllm"),
    ],
)
def test_a_file_that_is_no_text(
    tmp_path: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "given"
    path.write_bytes(b"\xff\xfe\x00\x01\n")
    shutil.copy(path, tmp_path / "given.csv")
    places = {"FILE": str(path), "FILE.csv": str(tmp_path / "given.csv"), "OUT": str(tmp_path / "out.jsonl")}
    error = refused(capsys, *(places.get(argument, argument) for argument in arguments))
    assert "given" in error
    assert "not UTF-8 text" in error


def test_the_two_kinds_of_trace_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gzip

    cycles = tmp_path / "cycles.jsonl"
    cycles.write_bytes(gzip.decompress(Path(CYCLES).read_bytes()))
    for command in ("replay", "plan"):
        error = refused(capsys, command, str(cycles))
        assert "cycles.jsonl, line 1: kind: 'trace' is a trace of cycles, not an agreement trace" in error
    for arguments in (("diagnose",), ("trace", "validate")):
        error = refused(capsys, *arguments, AGREEMENT)
        assert "agreement.jsonl, line 1: agree: this is an agreement trace" in error


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("trace", ("replay", "FILE")),
        ("trace", ("plan", "FILE")),
        ("trace", ("diagnose", "FILE")),
        ("trace", ("trace", "validate", "FILE")),
        ("trace", ("audit", "--trace", "FILE")),
        ("prompts", ("audit", "--prompts", "FILE")),
        ("prompts", ("record", "out.jsonl", "--prompts", "FILE")),
        ("models", ("plan", "--models", "FILE")),
        ("cost", ("replay", AGREEMENT, "--cost", "FILE")),
        ("arrivals", ("simulate", "--arrivals", "FILE")),
        ("log", ("trace", "import", "FILE", "out.jsonl")),
    ],
)
def test_a_missing_file(
    tmp_path: Path, option: str, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "missing.jsonl")
    error = refused(capsys, *(path if argument == "FILE" else argument for argument in arguments))
    assert error == f"specpilot: {option}: {path}: there is no such file; correct the path\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("replay", CYCLES),
            "trace: bundled.jsonl.gz: this is a trace of cycles; read it with `specpilot diag",
        ),
        (("replay", AGREEMENT, "--cost", AGREEMENT), "cost: agreement.jsonl: not JSON (Extra data)"),
        (("replay", AGREEMENT, "--cost", AGREEMENT), "(wanted: the engine's costs"),
        (("plan", "--models", AGREEMENT), "models: agreement.jsonl: not TOML"),
        (("plan", "--models", AGREEMENT), "(wanted: a TOML file of candidate models"),
        (("trace", "import", VLLM, "out.jsonl"), "give --format vllm"),
        (("trace", "import", VLLM, "out.jsonl", "--format", "csv"), "steps reads CSV"),
        (("trace", "import", VLLM, "o.txt"), "trace: 'o.txt' does not end in .jsonl, .gz, .zst"),
        (("trace", "export", CYCLES, "o.csv"), "cycles: 'o.csv' does not end in .parquet"),
    ],
)
def test_the_kind_of_file(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *arguments)
