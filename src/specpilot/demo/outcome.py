"""What the demonstration found: the results of all policies, the checks, and the two promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from specpilot.control.config import ControllerConfig
from specpilot.simulation.results import PolicyResult
from specpilot.trace.cycles import CycleRecord
from specpilot.trace.schema import TraceHeader, TraceRecord


@dataclass(frozen=True, slots=True)
class Check:
    """Something that was promised or claimed, and whether it held."""

    name: str
    kept: bool
    detail: str


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """All that the table, the JSON and the report are made from.

    ``live`` holds the policies that ran on the models (``specpilot`` first, then the best static τ),
    ``replays`` every policy on the same arrivals by exact replay. ``latencies_ms`` and ``cycles`` are of
    the live runs, by policy.
    """

    config: ControllerConfig
    engine: str
    seed: int
    load: float
    arrivals_per_s: float
    capacity_per_s: float
    live: Sequence[PolicyResult]
    replays: Sequence[PolicyResult]
    best_static: str
    lossless_mismatches: int
    lossless_near_ties: int
    live_replay_cycles: int
    live_replay_differences: int
    inconsistent_positions: int
    seconds: float
    cycles: dict[str, Sequence[CycleRecord]] = field(default_factory=dict)
    traces: dict[str, tuple[TraceHeader, Sequence[TraceRecord]]] = field(default_factory=dict)
    latencies_ms: dict[str, Sequence[float]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def specpilot(self) -> PolicyResult:
        """The live run of the policy."""
        return self.live[0]

    @property
    def gain_over_best_static(self) -> float | None:
        """Live goodput ÷ that of the paired live run of the best static τ."""
        if len(self.live) < 2 or self.live[1].goodput_tokens_per_s == 0.0:
            return None
        return self.live[0].goodput_tokens_per_s / self.live[1].goodput_tokens_per_s

    @property
    def oracle_share(self) -> float | None:
        """Goodput ÷ the clairvoyant's (of trees, where they are on), both by replay: none exists live."""
        rows = {result.name: result for result in self.replays}
        oracle = rows.get("oracle-tree") or rows.get("oracle")
        if oracle is None or "specpilot" not in rows or oracle.goodput_tokens_per_s == 0.0:
            return None
        return rows["specpilot"].goodput_tokens_per_s / oracle.goodput_tokens_per_s

    def promises(self) -> list[Check]:
        """The two promises, judged on the live run; refused and empty requests are misses."""
        result, config = self.specpilot, self.config
        slo, budget = config.slo_p95_ms, config.pass_budget
        p95 = result.e2e_p95_ms
        in_time = p95 is not None and p95 < slo and result.slo_attainment >= 0.95
        within = result.budget_violations == 0 and result.target_passes_per_request <= budget
        return [
            Check(
                f"p95 latency < {slo:g} ms",
                in_time,
                f"{'–' if p95 is None else f'{p95:.0f}'} ms; {result.slo_attainment:.1%} of arrivals in time",
            ),
            Check(
                f"≤ {budget:g} target passes per request",
                within,
                f"{result.target_passes_per_request:.3f}; {result.budget_violations} starts above it",
            ),
        ]

    def checks(self) -> list[Check]:
        """Lossless output, and live = replay."""
        return [
            Check(
                "output equals plain greedy decoding",
                self.lossless_mismatches == 0,
                f"{self.lossless_mismatches} mismatches, {self.lossless_near_ties} at near-ties",
            ),
            Check(
                "live accepted lengths equal the replay's",
                self.live_replay_differences == 0,
                f"{self.live_replay_differences} of {self.live_replay_cycles} cycles differ",
            ),
        ]

    @property
    def kept(self) -> bool:
        """Whether every promise and check held."""
        return all(check.kept for check in [*self.promises(), *self.checks()])

    def to_json(self) -> dict[str, Any]:
        """The ``demo`` object of the command line."""
        policies = {result.name: result.to_json() for result in [*self.replays, *self.live]}
        return {
            "policies": policies,
            "replays": {result.name: result.to_json() for result in self.replays},
            "best_static": self.best_static,
            "gain_over_best_static": self.gain_over_best_static,
            "oracle_share": self.oracle_share,
            "lossless_mismatches": self.lossless_mismatches,
            "lossless_near_ties": self.lossless_near_ties,
            "live_replay": {"cycles": self.live_replay_cycles, "differences": self.live_replay_differences},
            "inconsistent_positions": self.inconsistent_positions,
            "promises": {check.name: check.kept for check in self.promises()},
            "checks": {check.name: check.kept for check in self.checks()},
            "kept": self.kept,
            "engine": self.engine,
            "seed": self.seed,
            "load": self.load,
            "arrivals_per_s": self.arrivals_per_s,
            "capacity_per_s": self.capacity_per_s,
            "slo_p95_ms": self.config.slo_p95_ms,
            "pass_budget": self.config.pass_budget,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }
