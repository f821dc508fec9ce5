"""``complete``, ``record`` and ``replay`` on the bundled pair, as a user chains them."""

import json
from importlib import resources
from pathlib import Path

import pytest

from specpilot.cli.main import main
from specpilot.trace import read_agreement

pytest.importorskip("onnxruntime")
BUNDLED = Path(str(resources.files("specpilot"))) / "bundled" / "target" / "config.json"
pytestmark = pytest.mark.skipif(not BUNDLED.is_file(), reason="the bundled pair is not in this checkout")


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_complete_explains_each_cycle(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("complete", "The team meets every", "--max-tokens", "8", "--explain", "--json", "-") == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record["target_passes"] == len(record["cycles"]) <= 2
    assert len(record["token_ids"]) == sum(cycle["emitted"] for cycle in record["cycles"])
    for number in range(1, len(record["cycles"]) + 1):
        assert f"cycle {number}" in printed.err
    assert "because" in printed.err


def test_markup_in_a_prompt_is_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("complete", "Write [bold]to[/bold] [/] one", "--max-tokens", "4") == 0
    assert "Write [bold]to[/bold] [/] one" in capsys.readouterr().out


def test_a_target_that_fails_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from specpilot.models.onnx import OnnxCausalLM

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(OnnxCausalLM, "forward", fail)
    assert status("complete", "The team meets every") == 1
    assert "ended by error (RuntimeError: out of memory)" in capsys.readouterr().out


def test_record_then_replay(tmp_path: Path) -> None:
    trace, costs, out = (tmp_path / name for name in ("trace.jsonl", "costs.json", "out.json"))
    assert status("record", str(trace), "--limit", "6", "--max-tokens", "12", "--costs", str(costs)) == 0
    traces = read_agreement(trace)
    assert len(traces) == 6
    assert all(len(item.agree) <= 12 and item.confidence and item.rank for item in traces)
    # The draft's first choice is the target's token where they agree, and only there.
    for item in traces:
        assert [rank == 0 for rank in item.rank or ()] == [bit == 1 for bit in item.agree]
    chosen = ("--policy", "static-4", "--policy", "oracle")
    assert (
        status("replay", str(trace), "--cost", str(costs), *chosen, "--requests", "30", "--json", str(out))
        == 0
    )
    policies = json.loads(out.read_text())["policies"]
    assert policies["static-4"]["budget_violations"] == 0
    assert policies["oracle"]["discarded_draft_tokens"] == 0


def test_record_says_what_the_context_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, trace, out = (tmp_path / name for name in ("prompts.jsonl", "trace.jsonl", "out.json"))
    prompts.write_text(json.dumps({"prompt": "and " * 1000}) + "\n")
    arguments = ("record", str(trace), "--prompts", str(prompts), "--max-tokens", "5000", "--json", str(out))
    assert status(*arguments) == 0
    (item,) = read_agreement(trace)
    assert item.ended is None
    assert json.loads(out.read_text())["cut_by_context"] == 1
    assert "1 of 1 outputs end where the context does" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "cuda"), "engine: 'cuda'"),
        (("--max-tokens", "0"), "max_tokens: 0"),
        (("--temperature", "-1"), "temperature: -1.0"),
        (("--target", "no-such-folder"), "no-such-folder"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("complete", "Hello", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
