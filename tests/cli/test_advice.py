"""What a message advises, and when it comes: before the work, and so that following it helps."""

from __future__ import annotations

import builtins
import logging
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve", "--cache-mb", "-1"), "cache_mb: -1 is not ≥ 0; use 0 to keep nothing"),
        (("serve", "--tenant-pool-cap", "-1"), "tenant_pool_cap: -1 is not ≥ 0; leave it out for no cap"),
        (("serve", "--lookup-depth", "-1"), "lookup_depth: -1 is not 0…256; use 0 for none"),
        (("serve", "--max-nodes", "8", "--lookup-depth", "16"), "max_nodes is 8; give --max-nodes 32"),
        (("demo", "--max-nodes", "8", "--lookup-depth", "16"), "max_nodes is 8; give --max-nodes 32"),
        (("replay", AGREEMENT, "--lookup-depth", "5"), "max_nodes is 0; give --max-nodes 32"),
        (("audit", "--url", "foo"), "url: 'foo' is not an address; write http://host:port"),
        (("audit", "--url", "http://h:1", "--reference", "h:2"), "reference: 'h:2' is not an address"),
        (("complete", "a", "--seed", "5"), "--seed: given at temperature 0"),
        (("complete", "a", "--drafter", "lookup", "--max-nodes", "24"), "--max-nodes: given together with"),
        (("simulate", "--processes", "8", "--replicas", "1"), "--processes: given with 1 of --replicas"),
    ],
)
def test_what_to_do(arguments: tuple[str, ...], message: str, refused: Refused) -> None:
    assert message in refused(*arguments)


def test_a_model_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    hub = pytest.importorskip("transformers.utils")

    def fail(*_: object) -> None:
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s")
        raise OSError("We couldn't connect to the hub.\nCheck your connection")

    monkeypatch.setattr(hub, "cached_file", fail)
    error = refused("complete", "a", "--target", "org/model", "--engine", "transformers")
    assert error.startswith("specpilot: target: 'org/model' is no local folder")
    assert error.endswith("name a folder, or check the id and the connection\n")
