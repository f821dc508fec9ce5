"""The plan for a deployment: which τ by prompt length, what it gives, what binds, how sure that is.

Everything that depends on load, deadline and budget comes from exact replays of the requests under the real
controller; break-evens and limits from :mod:`specpilot.sizing.arithmetic`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from specpilot.control import ControllerConfig
from specpilot.control.contexts import bucket_of
from specpilot.simulation.baselines import ByLength
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.policies import replay_policy
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.results import KEPT, PolicyResult, best_of
from specpilot.simulation.stream import capacity
from specpilot.sizing.arithmetic import (
    Limits,
    PassCosts,
    best_length,
    break_even_acceptance,
    break_even_draft_ms,
    needed_acceptance,
)
from specpilot.sizing.case import FEW_LENGTHS, LENGTHS, Case, check_rate
from specpilot.sizing.region import Cell, map_region
from specpilot.sizing.workload import BUCKETS, hazards_by_length, share_of, shifted
from specpilot.trace.agreement import AgreementTrace

PRICES = (0.0, 0.1, 0.3, 1.0)
"""Shares of the saturated price of time at which τ by prompt length is chosen; the best replay wins."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One prompt-length bucket: its τ, acceptance and closed forms (speed-ups at a short context's costs)."""

    name: str
    share: float
    tau: int
    acceptance: tuple[float, ...]
    speed_up: float
    fastest_tau: int
    break_even_acceptance: float | None
    draft_ms: float
    break_even_draft_ms: float
    limits: Limits


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one change does: the best static τ then, and what it gives."""

    change: str
    best: str
    tokens_per_request: float
    e2e_p95_ms: float | None
    slo_attainment: float
    goodput_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer of ``specpilot plan``."""

    feasible: bool
    binds: str
    why: str
    rate_per_s: float | None
    """Arrivals a second; ``None`` for a closed loop."""
    load: float
    """Arrivals ÷ capacity under specpilot; 0 for a closed loop."""
    policies: Mapping[str, PolicyResult]
    recommended: str
    buckets: Sequence[Bucket]
    wanted_tokens: float
    cut_share: float
    needed: Mapping[str, float | None]
    sensitivity: Sequence[Sensitivity] = field(default_factory=tuple)
    region: Sequence[Cell] = field(default_factory=tuple)
    """The map over pass budget × SLO, budgets outermost, both ascending."""

    def to_json(self) -> dict[str, Any]:
        """The result object of the command."""
        return {
            "feasible": self.feasible,
            "binds": self.binds,
            "why": self.why,
            "rate_per_s": self.rate_per_s,
            "load": self.load,
            "recommended": self.recommended,
            "tau": {bucket.name: bucket.tau for bucket in self.buckets},
            "wanted_tokens": self.wanted_tokens,
            "cut_share": self.cut_share,
            "needed": dict(self.needed),
            "policies": {name: result.to_json() for name, result in self.policies.items()},
            "buckets": [_bucket_json(bucket) for bucket in self.buckets],
            "sensitivity": [
                {name: getattr(row, name) for name in Sensitivity.__slots__} for row in self.sensitivity
            ],
            "region": [cell.to_json() for cell in self.region],
        }


def _bucket_json(bucket: Bucket) -> dict[str, Any]:
    record = {name: getattr(bucket, name) for name in Bucket.__slots__ if name != "limits"}
    for name in Limits.__slots__:
        speed, tau = getattr(bucket.limits, name)
        record[name] = {"speed_up": speed, "tau": tau}
    return record


def make_plan(
    traces: Sequence[AgreementTrace],
    costs: EngineCosts,
    config: ControllerConfig,
    *,
    max_tokens: int = 24,
    load: float = 0.4,
    rate_per_s: float | None = None,
    count: int = 400,
    seed: int = 1,
    sensitivity: bool = True,
    region: bool = False,
    budgets: Sequence[float] | None = None,
    slos_ms: Sequence[float] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Plan:
    """Plan for these requests, costs and promises.

    Args:
        traces: agreement traces, recorded or drawn.
        costs: the engine's times.
        config: pass budget and SLO.
        max_tokens: most output tokens a request asks for.
        load: arrivals ÷ capacity under specpilot; 0 for a closed loop.
        rate_per_s: arrivals a second instead of ``load``, which then has no effect.
        count: requests to replay.
        seed: of arrivals and unknown bits.
        sensitivity: also replay what changes of acceptance, costs and promises do.
        region: also map tokens per request, best τ and what binds over pass budget × SLO.
        budgets: the map's pass budgets; default: around the given one.
        slos_ms: the map's SLOs in ms; default: around the given one.
        advance: called after each step, for a progress bar (:data:`STEPS` of them).

    Raises:
        ValueError: for a load, rate, count, budget or SLO out of range.
    """
    if not 0.0 <= load < math.inf:
        raise ValueError(f"load: {load} is not ≥ 0 and finite; 0.4 is typical, 0 is a closed loop")
    if rate_per_s is not None:
        check_rate(rate_per_s)
    case = Case(traces, costs, config, max_tokens, count, seed, math.inf)
    saturated = case.requests()
    full = capacity(saturated, costs, config)
    rate = rate_per_s if rate_per_s is not None else load * full if load else math.inf
    case = replace(case, rate=rate)
    requests = case.requests()
    advance()
    statics = case.static(LENGTHS, requests)
    advance()
    by_length, taus = _by_length(case, saturated, requests)
    advance()
    closed = math.isinf(rate)
    own = replay_policy("specpilot", requests, costs, config, closed_loop=closed).result
    policies = {result.name: result for result in (own, *statics, by_length)}
    recommended = best_of(policies.values())
    binds, why = _binding(recommended, config)
    wanted = sum(request.length for request in requests) / len(requests)
    budget = config.pass_budget
    rows: list[Sensitivity] = []
    if sensitivity:
        rows = _sensitivity(case)
    advance()
    cells = map_region(case, budgets, slos_ms) if region else []
    advance()
    return Plan(
        feasible=recommended.slo_attainment >= KEPT and recommended.budget_violations == 0,
        binds=binds,
        why=why,
        rate_per_s=None if closed else rate,
        load=load if rate_per_s is None else rate_per_s / full,
        policies=policies,
        recommended=recommended.name,
        buckets=_buckets(case, taus),
        wanted_tokens=wanted,
        cut_share=1.0 - recommended.completion_share,
        needed={
            "pass_budget": wanted / recommended.tokens_per_pass,
            "acceptance": needed_acceptance(wanted, budget) if math.isfinite(budget) else None,
        },
        sensitivity=rows,
        region=cells,
    )


STEPS = 5
"""How often :func:`make_plan` calls ``advance``."""


def _by_length(
    case: Case, saturated: Sequence[ReplayRequest], requests: Sequence[ReplayRequest]
) -> tuple[PolicyResult, dict[int, int]]:
    """The best static τ *per prompt-length bucket*: by what each τ earns and takes in the bucket alone."""
    gains: dict[int, dict[int, tuple[float, float]]] = {}
    for bucket in share_of(case.traces):
        part = [request for request in saturated if bucket_of(request.trace.prompt_tokens) == bucket]
        if part:
            gains[bucket] = {
                tau: (result.tokens_per_arrival, 1000.0 * result.duration_s / result.arrivals)
                for tau, result in zip(
                    LENGTHS, replace(case, rate=math.inf).static(LENGTHS, part), strict=True
                )
            }
    top = max(tokens / ms for row in gains.values() for tokens, ms in row.values())
    tried: dict[tuple[tuple[int, int], ...], PolicyResult] = {}
    for price in PRICES:
        taus = {
            bucket: max(row, key=lambda tau, row=row: row[tau][0] - price * top * row[tau][1])  # type: ignore[misc]
            for bucket, row in gains.items()
        }
        key = tuple(taus.items())
        if key not in tried:
            tried[key] = replay_policy(
                "by-length",
                requests,
                case.costs,
                case.config,
                closed_loop=math.isinf(case.rate),
                planner=ByLength(taus),
            ).result
    best = best_of(tried.values())
    return best, dict(next(key for key, result in tried.items() if result is best))


def _buckets(case: Case, taus: Mapping[int, int]) -> list[Bucket]:
    shares = share_of(case.traces)
    result = []
    for bucket, hazards in hazards_by_length(case.traces).items():
        prompts = [t.prompt_tokens for t in case.traces if bucket_of(t.prompt_tokens) == bucket]
        costs = PassCosts.at(case.costs, sum(prompts) // len(prompts))
        speed, fastest = best_length(hazards, costs)
        result.append(
            Bucket(
                name=BUCKETS[bucket],
                share=shares[bucket],
                tau=taus.get(bucket, 0),
                acceptance=hazards,
                speed_up=speed,
                fastest_tau=fastest,
                break_even_acceptance=break_even_acceptance(costs),
                draft_ms=costs.draft_ms,
                break_even_draft_ms=break_even_draft_ms(hazards, costs),
                limits=Limits.of(hazards, costs),
            )
        )
    return result


def _binding(result: PolicyResult, config: ControllerConfig) -> tuple[str, str]:
    """What keeps the recommended policy from giving more: the most frequent reason for an end."""
    ends = {
        "length": result.finished_requests,
        "budget": result.stop_causes.get("budget", 0),
        "deadline": result.stop_causes.get("deadline", 0) + result.refused,
    }
    name = max(ends, key=lambda cause: ends[cause])
    share = ends[name] / max(1, result.arrivals)
    words = {
        "length": f"{share:.0%} of the requests get all they ask for",
        "budget": (
            f"{share:.0%} of the requests use up their {config.pass_budget:g} passes before they are done; "
            f"a pass yields {result.tokens_per_pass:.2f} tokens"
        ),
        "deadline": f"{share:.0%} of the requests run out of time or are refused because they would",
    }
    return name, words[name]


def _sensitivity(case: Case) -> list[Sensitivity]:
    """The same arrivals with one thing changed at a time; the best static τ is chosen anew each time."""
    config = case.config
    budget, slo = config.pass_budget, config.slo_p95_ms
    cases: dict[str, Case] = {
        "as given": case,
        "acceptance better: a fifth of the rejections agrees": replace(
            case, traces=shifted(case.traces, 0.2, case.seed)
        ),
        "acceptance worse: a fifth of the agreements is rejected": replace(
            case, traces=shifted(case.traces, -0.2, case.seed)
        ),
        "draft twice as fast": replace(case, costs=case.costs.scaled(draft=0.5)),
        "draft half as fast": replace(case, costs=case.costs.scaled(draft=2.0)),
        "target 1.5 times as slow": replace(case, costs=case.costs.scaled(verify=1.5)),
        f"SLO {0.8 * slo:g} ms": replace(case, config=replace(config, slo_p95_ms=0.8 * slo)),
    }
    if math.isfinite(budget):
        cases[f"B = {budget + 0.5:g}"] = replace(case, config=replace(config, pass_budget=budget + 0.5))
        cases[f"B = {max(1.0, budget - 0.5):g}"] = replace(
            case, config=replace(config, pass_budget=max(1.0, budget - 0.5))
        )
    if math.isfinite(case.rate):
        cases["arrivals 1.5 times as fast"] = replace(case, rate=1.5 * case.rate)
    rows = []
    for change, changed in cases.items():
        best = best_of(changed.static(FEW_LENGTHS, changed.requests()))
        rows.append(
            Sensitivity(
                change,
                best.name,
                best.tokens_per_arrival,
                best.e2e_p95_ms,
                best.slo_attainment,
                best.goodput_tokens_per_s,
            )
        )
    return rows
