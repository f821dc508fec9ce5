"""The worked trace of docs/policy.md: the page shows what the real controller does, and it can be checked."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from specpilot.control import Binding, CyclePlan, PlannedStop

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("worked_trace", ROOT / "examples/worked_trace.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["worked_trace"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_the_controller_does(example: ModuleType) -> None:
    page = (ROOT / "docs/policy.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- worked-trace:begin -->\n(.*?)<!-- worked-trace:end -->", page, re.DOTALL)
    assert shown
    assert shown[1].splitlines() == list(example.table(example.trace()))


def test_the_trace_by_hand(example: ModuleType) -> None:
    rows = example.trace()
    cycles = [row for row in rows if isinstance(row.plan, CyclePlan)]
    for row in cycles:
        numbers = row.plan.reason.numbers
        # What one step earns, S₁ (a suggestion hardly ever ends here), against what it costs.
        pays = numbers["S1"] > numbers["theta"] * example.STEP_MS
        if row.plan.reason.note == "fallback":
            assert numbers["S1"] * 0.97 < numbers["theta"] * example.STEP_MS * 1.06, row
            assert numbers["gain"] <= 0.02, row
        elif row.plan.reason.binding in (Binding.MAX, Binding.DRAFT_COST) and row.plan.max_draft > 1:
            assert pays, row

    def phase(text: str) -> list[CyclePlan]:
        return [row.plan for row in cycles if row.phase.startswith(text)]

    assert phase("easy text")[15].max_draft == 8
    hard = [plan.max_draft for plan in phase("hard")]
    assert hard[0] == 8
    assert max(hard[10:]) <= 3, "the optimum where tokens 2 or 3 are rejected"
    useless = phase("useless")
    assert any(plan.max_draft == 0 for plan in useless)
    assert useless[-1].reason.note == "fallback"
    again = [plan.max_draft for plan in phase("easy text again")]
    first = next(place for place, depth in enumerate(again) if depth)
    assert first <= 32, "the next probe of those after 4, 8, 16, 32 cycles"
    assert min(again[first + 10 :]) >= 7, "recovered within ten cycles of it"


def test_the_ledger_in_the_trace(example: ModuleType) -> None:
    """One credit is left, drawn once, and the next request is cut with 48 − 18 tokens missing."""
    rows = example.trace()
    drawn = [row for row in rows if isinstance(row.plan, CyclePlan) and row.plan.from_pool]
    assert [row.phase for row in drawn] == ["third pass from the pool"]
    cut = [row for row in rows if isinstance(row.plan, PlannedStop)]
    assert [row.plan.cause for row in cut] == ["budget", "budget"]
    assert [row.plan.reason.numbers["missing_tokens"] for row in cut] == [48 - 27, 48 - 18]
