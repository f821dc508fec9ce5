"""Every cause, put into the engine for real, is the primary one (a small part of benchmarks/diagnosis.py)."""

from __future__ import annotations

import pytest
from benchmarks.diagnosis import SEEDS, faulty, judge, table, wilson

from specpilot.diagnosis import CAUSES


@pytest.mark.parametrize("cause", CAUSES)
def test_the_fault_is_found(cause: str) -> None:
    """One development engine each; which ones are misjudged at all is for the benchmark to say."""
    seed = SEEDS["development"] + 1000 * CAUSES.index(cause)
    assert judge((cause, seed))[2][0] == cause


def test_the_same_seed_is_the_same_engine() -> None:
    assert faulty("kv_misalignment", 7) == faulty("kv_misalignment", 7) != faulty("kv_misalignment", 8)


def test_wilson_interval() -> None:
    # 20 of 20: the lower end is n / (n + z²) = 20 / 23.84.
    low, high = wilson(20, 20)
    assert low == pytest.approx(20 / (20 + 1.96**2))
    assert high == pytest.approx(1.0)


def test_table_counts_primary_causes() -> None:
    text = table([("weak_draft", 1, ["weak_draft"]), ("weak_draft", 2, ["healthy"])], "development")
    assert "| `weak_draft` | 2 | 1 |" in text
    assert "`healthy` 1" in text
