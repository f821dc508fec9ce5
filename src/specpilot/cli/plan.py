"""``specpilot plan``: feasibility and choice of τ, draft model, roles, budget and SLO."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specpilot.cli.inputs import check_text, numbers, reading
from specpilot.cli.options import (
    COSTS_WANTED,
    CostOption,
    DraftMsOption,
    VerifyMsOption,
    VerifyTokenMsOption,
    real,
    refuse,
    whole,
)
from specpilot.cli.output import JsonOption, check_writable, console, progress, write_json
from specpilot.control import ControllerConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from specpilot.sizing.roles import Role
    from specpilot.sizing.roles_load import LoadedRole

DEFAULTS = ControllerConfig()
INFEASIBLE = 1
PICTURES = (".svg", ".png", ".pdf")
MAP = ("map_budgets", "map_slos_ms")
"""The options of the map's axes."""
COSTS = ("cost", "draft_ms", "verify_ms", "verify_token_ms")
"""The options of the engine's times."""


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """What of the options ``--models`` needs beside the promises."""

    max_tokens: int
    load: float
    rate_per_s: float | None
    requests: int
    seed: int


def run(
    context: typer.Context,
    trace: Annotated[
        Path | None,
        typer.Argument(help="Agreement trace, as written by `specpilot record`.", show_default=False),
    ] = None,
    acceptance: Annotated[
        str | None,
        typer.Option(
            help="Instead of a trace: P(agree) after 0, 1, 2 … agreements, e.g. 0.8,0.7 (then as the last).",
            show_default=False,
        ),
    ] = None,
    prompt_tokens: Annotated[
        str, typer.Option(help="With --acceptance or --models: prompt lengths, taken in turn.")
    ] = "64,200,400",
    cost: CostOption = None,
    draft_ms: DraftMsOption = None,
    verify_ms: VerifyMsOption = None,
    verify_token_ms: VerifyTokenMsOption = None,
    models: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of candidate models: which should draft, which verify.", show_default=False
        ),
    ] = None,
    max_tokens: Annotated[int, whole("≥ 1", "24", help="Most output tokens per request.")] = 24,
    load: Annotated[
        float,
        real(
            "≥ 0",
            "0.4",
            help="Arrivals ÷ capacity; 0: closed loop, one client. "
            "With --models: capacity of the cast that is best when idle; 0: idle only.",
        ),
    ] = 0.4,
    rate: Annotated[
        float | None, real("> 0", "5", help="Arrivals a second, instead of --load.", show_default=False)
    ] = None,
    requests: Annotated[int, whole("≥ 1", "400", help="Requests to replay.")] = 400,
    seed: Annotated[int, whole("", "1", help="Seed of arrivals and of drawn bits.")] = 1,
    slo_p95_ms: Annotated[float, real("> 0", "250", help="End-to-end latency SLO.")] = DEFAULTS.slo_p95_ms,
    pass_budget: Annotated[float, real("≥ 1", "2", help="Target passes per request.")] = DEFAULTS.pass_budget,
    sensitivity: Annotated[bool, typer.Option(help="Also show what changes would do.")] = True,
    region: Annotated[
        bool, typer.Option("--map/--no-map", help="Also map tokens, τ and what binds over budget × SLO.")
    ] = True,
    map_budgets: Annotated[
        str | None,
        typer.Option(help="The map's pass budgets; default ½, ¾, 1, 1½ × the budget.", show_default=False),
    ] = None,
    map_slos_ms: Annotated[
        str | None,
        typer.Option(help="The map's SLOs in ms; default ½, ¾, 1, 1½ × the SLO.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write a plot over τ and of the map (.svg, .png, .pdf).", show_default=False),
    ] = None,
    json_target: JsonOption = None,
) -> None:
    """Which τ, which draft model and which budget: before deployment, from a trace or from numbers.

    Exit status 1 if no policy keeps both promises.
    """
    check_writable(json_target, plot, read=[trace, cost, models])
    if plot is not None and plot.suffix not in PICTURES:
        raise ValueError(f"plot: {plot.name!r} does not end in {', '.join(PICTURES)}; name a picture")
    config = ControllerConfig(pass_budget=pass_budget, slo_p95_ms=slo_p95_ms)
    for name, value in (("max_tokens", max_tokens), ("requests", requests)):
        if value < 1:
            raise ValueError(f"{name}: {value} is not ≥ 1; give a count")
    screen = console(json_target)
    prompts = numbers("prompt_tokens", prompt_tokens, int, "64,200")
    budgets = None if map_budgets is None else numbers("map_budgets", map_budgets, float, "1,2,4")
    slos_ms = None if map_slos_ms is None else numbers("map_slos_ms", map_slos_ms, float, "150,250")
    if rate is not None:
        refuse(context, "together with --rate, which replaces it", "load")
    if models is not None:
        replayed = ("trace", "acceptance", "sensitivity", "region", *MAP, "plot")
        refuse(
            context, "together with --models, which has costs and acceptance of its own", *replayed, *COSTS
        )
        if rate is not None:
            from specpilot.sizing.case import check_rate

            check_rate(rate)
        elif load == 0.0:
            refuse(
                context, "together with --models and --load 0, where nothing is replayed", "requests", "seed"
            )
        settings = RoleSettings(max_tokens, load, rate, requests, seed)
        feasible = _roles(models, config, prompts, settings, screen, json_target)
        raise typer.Exit(0 if feasible else INFEASIBLE)
    from specpilot.cli.plan_tables import show_plan
    from specpilot.simulation.replay import LIMITS
    from specpilot.simulation.stream import costs_from
    from specpilot.sizing import from_numbers
    from specpilot.sizing.plan import STEPS, make_plan
    from specpilot.trace import read_agreement

    if (trace is None) == (acceptance is None):
        raise ValueError("trace: give an agreement trace, or --acceptance, or --models; one of the three")
    if trace is not None:
        refuse(context, "together with a trace, which has prompt lengths of its own", "prompt_tokens")
    if not region:
        refuse(context, "together with --no-map, which leaves the map out", *MAP)
    check_text("trace", trace)
    with reading("cost", cost, COSTS_WANTED):
        costs = costs_from(cost, draft_ms, verify_ms, verify_token_ms)
    if acceptance is None:
        assert trace is not None
        traces = read_agreement(trace)
        origin = f"{trace.name}: {len(traces)} recorded requests, replayed exactly"
    else:
        hazards = numbers("acceptance", acceptance, float, "0.8,0.7")
        traces = from_numbers(hazards, prompts, max_tokens, count=requests, seed=seed)
        origin = "acceptance given by position; agreement drawn from it and replayed"
    with progress(screen) as bar:
        task = bar.add_task("planning", total=STEPS)
        plan = make_plan(
            traces,
            costs,
            config,
            max_tokens=max_tokens,
            load=load,
            rate_per_s=rate,
            count=requests,
            seed=seed,
            sensitivity=sensitivity,
            region=region,
            budgets=budgets,
            slos_ms=slos_ms,
            advance=lambda: bar.advance(task),
        )
    show_plan(plan, config, screen)
    notes = [f"{origin}. Costs: {costs.engine}.", *LIMITS]
    for note in notes:
        screen.print(f"[dim]{note}[/]")
    if plot is not None:
        from specpilot.sizing.plot import draw

        draw(plan, config, plot)
    write_json(json_target, plan.to_json() | {"seed": seed, "notes": notes})
    if not plan.feasible:
        raise typer.Exit(INFEASIBLE)


def _roles(
    path: Path,
    config: ControllerConfig,
    prompts: list[int],
    settings: RoleSettings,
    screen: Console,
    json_target: str | None,
) -> bool:
    from specpilot.cli.plan_tables import show_loaded, show_roles
    from specpilot.sizing.roles import rank_roles, read_models
    from specpilot.sizing.roles_load import rank_loaded

    if min(prompts) < 1:
        raise ValueError(f"prompt_tokens: {prompts} has one below 1; give counts")
    if not (settings.load >= 0.0 and math.isfinite(settings.load)):
        raise ValueError(f"load: {settings.load} is not ≥ 0; 0.4 is typical, 0 leaves the load out")
    mean = sum(prompts) // len(prompts)
    with reading("models", path, "a TOML file of candidate models, [[models]] tables"):
        candidates = read_models(path)
    roles = rank_roles(
        candidates,
        pass_budget=config.pass_budget,
        slo_ms=config.slo_p95_ms,
        prompt_tokens=mean,
        max_tokens=settings.max_tokens,
    )
    title = (
        f"Roles: B = {config.pass_budget:g}, SLO {config.slo_p95_ms:g} ms, prompt of {mean} tokens, "
        f"{settings.max_tokens} wanted; one request on an idle engine"
    )
    show_roles(title, roles, screen)
    rate = settings.rate_per_s
    if rate is None and roles:
        # Capacity is that of the cast that is best when idle: all casts must be compared at one rate.
        rate = settings.load * 1000.0 / roles[0].e2e_ms
    loaded: list[LoadedRole] = []
    if settings.rate_per_s is not None or rate:
        assert rate is not None
        loaded = rank_loaded(
            candidates,
            roles,
            config,
            rate_per_s=rate,
            prompts=prompts,
            max_tokens=settings.max_tokens,
            count=settings.requests,
            seed=settings.seed,
        )
        show_loaded(loaded, rate, screen)
    allowed: Sequence[Role | LoadedRole] = [role for role in loaded or roles if not role.excluded]
    if allowed:
        best = allowed[0]
        how = (
            f"{best.draft} drafts, {best.target} verifies" if best.draft else f"{best.target} decodes plainly"
        )
        screen.print(f"Recommended: [bold]{how}[/], τ = {best.tau}.")
    else:
        screen.print("[bold red]No cast keeps the SLO with the quality asked for.[/]")
    write_json(
        json_target,
        {
            "roles": [asdict(role) for role in roles],
            "rate_per_s": rate or None,
            "under_load": [asdict(role) for role in loaded],
            "recommended": None
            if not allowed
            else {"target": allowed[0].target, "draft": allowed[0].draft, "tau": allowed[0].tau},
        },
    )
    return bool(allowed)
