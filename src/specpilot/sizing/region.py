"""The feasible region as a map: what each pass budget and SLO gives, with which τ, and what binds there.

Every cell is replayed with the same requests at the same rate. What binds is found by relief, one at a
time: twice the passes, twice the time, a draft that is twice as fast. The budget binds where it brings most
tokens per request (of requests that meet the SLO). Otherwise time does, and it is the draft's cost where the
faster draft brings at least half of what twice the time brings, else the deadline. Nothing binds where no
relief brings 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from specpilot.simulation.results import KEPT, PolicyResult, best_of
from specpilot.sizing.case import FEW_LENGTHS, Case

SHARES = (0.5, 0.75, 1.0, 1.5)
"""The axes where none are given: these multiples of the given budget and SLO."""
RELIEF = 2.0
NOTICED = 0.02
"""A relief that brings a smaller share of tokens than this does not count."""
MOST_REQUESTS = 150
"""A cell is replayed over so many requests at most: a map has some fifty times five replays."""
NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Cell:
    """One budget and SLO: the best of τ = 0, 2, 4, 8, 16 there, and what it gives.

    ``binds`` is ``budget``, ``deadline``, ``draft_cost`` or ``nothing``; ``gains`` says of the first three
    which share of tokens in SLO their relief brings (0.5: half as many again). ``feasible``: 95 % of the
    arrivals meet the SLO and the budget was kept at every instant.
    """

    pass_budget: float
    slo_p95_ms: float
    feasible: bool
    tau: int
    tokens_per_request: float
    completion_share: float
    slo_attainment: float
    e2e_p95_ms: float | None
    goodput_tokens_per_s: float
    binds: str
    gains: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The cell as a JSON object; an unlimited budget is null."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {
            "pass_budget": self.pass_budget if math.isfinite(self.pass_budget) else None,
            "gains": dict(self.gains),
        }


def map_region(
    case: Case, budgets: Sequence[float] | None = None, slos_ms: Sequence[float] | None = None
) -> list[Cell]:
    """The cells, budgets outermost, both axes ascending and without repetitions.

    Args:
        case: requests, costs, arrivals; its own promises are the axes' middle where they are not given.
        budgets: pass budgets, each ≥ 1.
        slos_ms: SLOs in ms, each > 0.

    Raises:
        ValueError: for an empty axis or a value out of range.
    """
    if budgets is None:
        budgets = [max(1.0, share * case.config.pass_budget) for share in SHARES]
    if slos_ms is None:
        slos_ms = [share * case.config.slo_p95_ms for share in SHARES]
    for name, axis, good, remedy in (
        ("map_budgets", budgets, all(value >= 1.0 for value in budgets), "≥ 1, e.g. 1,2,3"),
        ("map_slos_ms", slos_ms, all(0.0 < x < math.inf for x in slos_ms), "> 0 and finite, e.g. 150,250"),
    ):
        if not axis or not good:
            raise ValueError(f"{name}: {list(axis)} is not a list of numbers {remedy}")
    best = _Best(case)
    return [best.cell(budget, slo) for budget in sorted(set(budgets)) for slo in sorted(set(slos_ms))]


class _Best:
    """The best static τ under any promises, kept: a cell's relief is often another cell."""

    def __init__(self, case: Case) -> None:
        self._case = replace(case, count=min(case.count, MOST_REQUESTS))
        self._requests = self._case.requests()
        self._known: dict[tuple[float, float, float], PolicyResult] = {}

    def _at(self, budget: float, slo_ms: float, draft: float = 1.0) -> PolicyResult:
        key = (budget, slo_ms, draft)
        if key not in self._known:
            config = replace(self._case.config, pass_budget=budget, slo_p95_ms=slo_ms)
            costs = self._case.costs if draft == 1.0 else self._case.costs.scaled(draft=draft)
            changed = replace(self._case, config=config, costs=costs)
            self._known[key] = best_of(changed.static(FEW_LENGTHS, self._requests))
        return self._known[key]

    def cell(self, budget: float, slo_ms: float) -> Cell:
        here = self._at(budget, slo_ms)
        gains = {
            "budget": _gain(here, self._at(RELIEF * budget, slo_ms)),
            "deadline": _gain(here, self._at(budget, RELIEF * slo_ms)),
            "draft_cost": _gain(here, self._at(budget, slo_ms, 1.0 / RELIEF)),
        }
        feasible = here.slo_attainment >= KEPT and here.budget_violations == 0
        return Cell(
            pass_budget=budget,
            slo_p95_ms=slo_ms,
            feasible=feasible,
            tau=int(here.name.removeprefix("static-")),
            tokens_per_request=here.tokens_per_arrival,
            completion_share=here.completion_share,
            slo_attainment=here.slo_attainment,
            e2e_p95_ms=here.e2e_p95_ms,
            goodput_tokens_per_s=here.goodput_tokens_per_s,
            binds=_binding(gains) if feasible else "deadline",
            gains=gains,
        )


def _binding(gains: Mapping[str, float]) -> str:
    if max(gains.values()) < NOTICED:
        return NOTHING
    time = max(gains["deadline"], gains["draft_cost"])
    if gains["budget"] >= time:
        return "budget"
    return "draft_cost" if gains["draft_cost"] >= time / 2.0 else "deadline"


def _gain(before: PolicyResult, after: PolicyResult) -> float:
    """What a relief brings, as a share of the tokens before; infinite where there were none.

    Never below 0: who has more need not use it. (A static τ would: it spends passes that miss the SLO.)
    """
    had, has = (row.goodput_tokens_per_s * row.duration_s / row.arrivals for row in (before, after))
    if had <= 0.0:
        return math.inf if has > 0.0 else 0.0
    return max(0.0, has / had - 1.0)
