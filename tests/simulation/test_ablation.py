"""The ablations: each one really changes what it is named for, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "ablation.py"
CELLS = (("B=1.5", 0.7, 80), ("outage", 0.7, 160), ("slow-draft", 0.7, 200), ("good-bad-good", 0.0, 300))


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module
    spec.loader.exec_module(module)
    return module


ablation = load()


def test_every_signal_has_an_effect_when_off_and_is_on_again_afterwards() -> None:
    """A patch that no longer reaches what it is named for would show as no effect at all."""
    unchanged = tuple(ablation.ABLATIONS)
    for name, load, count in CELLS:
        results = ablation.measure(ablation.Cell(name, load, 3, count, unchanged))
        unchanged = tuple(signal for signal in unchanged if results[signal] == results[""])
        assert ablation.measure(ablation.Cell(name, load, 3, count, ()))[""] == results[""]
    assert not unchanged


def test_the_verdict_by_hand() -> None:
    entry = {"steady": {"goodput": [-0.004, 0.01, 0.0], "slo": [0.0] * 3}}
    worse = {"steady": {"goodput": [-0.02, 0.01, 0.0], "slo": [0.0] * 3}}
    lines = ablation.markdown(
        {"open blocks": entry, "circuit breaker": entry, "draft confidence": worse}
    ).splitlines()
    assert lines[2] == "| open blocks | -0.4 % | -0.4 … +1.0 | **no reason to stay** |"
    assert lines[3].endswith("guards I6 |")
    assert lines[4] == "| draft confidence | -2.0 % | -2.0 … +1.0 | stays |"
