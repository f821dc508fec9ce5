"""Model roles where requests wait for each other: the same casts, replayed at one arrival rate.

At a given rate every cast that keeps up serves the same requests, so it is no longer the fastest that wins
but the one with the most tokens per request within the SLO; one that does not keep up is out. Agreement is
drawn from the acceptances and replayed under the real controller, as in :mod:`specpilot.sizing.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specpilot.control import ControllerConfig
from specpilot.simulation.costs import EngineCosts, Table
from specpilot.simulation.results import KEPT, best_of
from specpilot.sizing.arithmetic import MAX_DRAFT
from specpilot.sizing.case import FEW_LENGTHS, Case, check_rate
from specpilot.sizing.roles import Candidates, Model, Role, cast, quality_reason
from specpilot.sizing.workload import from_numbers

_LONG = 1024.0


@dataclass(frozen=True, slots=True)
class LoadedRole:
    """A cast at its best static τ under load.

    ``tokens`` are the mean of all arrivals, ``tokens_per_s`` those of requests that met the SLO.
    ``utilisation`` is the offered load: the arrival rate times what a request takes on an idle engine.
    ``excluded`` says why a cast is out, empty if it is not.
    """

    target: str
    draft: str | None
    tau: int
    tokens: float
    utilisation: float
    e2e_p95_ms: float | None
    slo_attainment: float
    tokens_per_s: float
    excluded: str = ""


def rank_loaded(
    candidates: Candidates,
    roles: Sequence[Role],
    config: ControllerConfig,
    *,
    rate_per_s: float,
    prompts: Sequence[int],
    max_tokens: int,
    count: int,
    seed: int,
) -> list[LoadedRole]:
    """The casts of :func:`~specpilot.sizing.roles.rank_roles` at an arrival rate, best first.

    Each is judged at its best static τ of :data:`~specpilot.sizing.case.FEW_LENGTHS` and its idle τ.

    Raises:
        ValueError: for a rate, a count or a prompt length out of range.
    """
    check_rate(rate_per_s)
    models = {model.name: model for model in candidates.models}
    ranked = []
    for role in roles:
        target, draft = models[role.target], models[role.draft] if role.draft else None
        hazards = candidates.acceptance[draft.name, target.name] if draft else (0.0,)
        traces = from_numbers(hazards, prompts, max_tokens, count=count, seed=seed)
        case = Case(traces, costs_of(target, draft), config, max_tokens, count, seed, rate_per_s)
        taus = sorted({tau for tau in (*FEW_LENGTHS, role.tau) if tau}) if draft else (0,)
        best = best_of(case.static(taus, case.requests()))
        tau = int(best.name.removeprefix("static-"))
        mean = sum(prompts) // len(prompts)
        idle = cast(target, draft, hazards, tau, config.pass_budget, mean, max_tokens)
        reason = quality_reason(target, candidates.least_quality)
        if not reason and best.slo_attainment < KEPT:
            reason = "misses the SLO"
        ranked.append(
            LoadedRole(
                role.target,
                role.draft,
                tau,
                best.tokens_per_arrival,
                rate_per_s * idle.e2e_ms / 1000.0,
                best.e2e_p95_ms,
                best.slo_attainment,
                best.goodput_tokens_per_s,
                reason,
            )
        )
    return sorted(ranked, key=lambda row: (bool(row.excluded), -row.tokens_per_s))


def costs_of(target: Model, draft: Model | None) -> EngineCosts:
    """An engine's costs from two candidates' numbers.

    A pass is known by its width alone: the first 16 further tokens are charged as a block's, those beyond as
    the prompt's.
    """
    widest = MAX_DRAFT + 1.0
    block = target.pass_ms + target.token_ms * MAX_DRAFT
    step = draft.pass_ms if draft else 0.0
    prefill = draft.prefill_token_ms if draft else 0.0
    return EngineCosts(
        draft_step=Table((0.0,), (step,)),
        draft_forward=Table((1.0, 1.0 + _LONG), (step, step + _LONG * prefill)),
        verify=(
            (1.0, Table((0.0,), (target.pass_ms,))),
            (widest, Table((0.0,), (block,))),
            (widest + _LONG, Table((0.0,), (block + _LONG * target.prefill_token_ms,))),
        ),
        engine="candidates",
    )
