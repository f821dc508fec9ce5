"""``specpilot plan``: feasibility and choice of τ, draft model, roles, budget and SLO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from specpilot.cli.options import CostOption, DraftMsOption, VerifyMsOption, VerifyTokenMsOption
from specpilot.cli.output import JsonOption, check_writable, console, progress, write_json
from specpilot.control import ControllerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import Console
    from rich.table import Table

    from specpilot.sizing.plan import Plan
    from specpilot.sizing.region import Cell
    from specpilot.sizing.roles import Role

N = TypeVar("N", int, float)
DEFAULTS = ControllerConfig()
INFEASIBLE = 1
PICTURES = (".svg", ".png", ".pdf")
WIDE = ("change", "out because")
"""Columns that may be folded on a narrow terminal."""


def run(
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
    max_tokens: Annotated[int, typer.Option(help="Most output tokens per request.")] = 24,
    load: Annotated[float, typer.Option(help="Arrivals ÷ capacity; 0: closed loop, one client.")] = 0.4,
    rate: Annotated[
        float | None, typer.Option(help="Arrivals a second, instead of --load.", show_default=False)
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests to replay.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed of arrivals and of drawn bits.")] = 1,
    slo_p95_ms: Annotated[float, typer.Option(help="End-to-end latency SLO.")] = DEFAULTS.slo_p95_ms,
    pass_budget: Annotated[float, typer.Option(help="Target passes per request.")] = DEFAULTS.pass_budget,
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
    check_writable(json_target, plot)
    if plot is not None and plot.suffix not in PICTURES:
        raise ValueError(f"plot: {plot.name!r} does not end in {', '.join(PICTURES)}; name a picture")
    config = ControllerConfig(pass_budget=pass_budget, slo_p95_ms=slo_p95_ms)
    for name, value in (("max_tokens", max_tokens), ("requests", requests)):
        if value < 1:
            raise ValueError(f"{name}: {value} is not ≥ 1; give a count")
    screen = console(json_target)
    prompts = _numbers("prompt_tokens", prompt_tokens, int)
    budgets = None if map_budgets is None else _numbers("map_budgets", map_budgets, float)
    slos_ms = None if map_slos_ms is None else _numbers("map_slos_ms", map_slos_ms, float)
    if not region and (budgets or slos_ms):
        raise ValueError("map_budgets, map_slos_ms: given together with --no-map; leave one out")
    if models is not None:
        if trace is not None or acceptance is not None or plot is not None:
            raise ValueError("models: given together with a trace, --acceptance or --plot; give one of them")
        feasible = _roles(models, config, prompts, max_tokens, screen, json_target)
        raise typer.Exit(0 if feasible else INFEASIBLE)
    from specpilot.simulation.replay import LIMITS
    from specpilot.simulation.stream import costs_from
    from specpilot.sizing import from_numbers
    from specpilot.sizing.plan import STEPS, make_plan
    from specpilot.trace import read_agreement

    if (trace is None) == (acceptance is None):
        raise ValueError("trace: give an agreement trace, or --acceptance, or --models; one of the three")
    costs = costs_from(cost, draft_ms, verify_ms, verify_token_ms)
    if acceptance is None:
        assert trace is not None
        traces = read_agreement(trace)
        origin = f"{trace.name}: {len(traces)} recorded requests, replayed exactly"
    else:
        hazards = _numbers("acceptance", acceptance, float)
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
    _show(plan, config, screen)
    notes = [f"{origin}. Costs: {costs.engine}.", *LIMITS]
    for note in notes:
        screen.print(f"[dim]{note}[/]")
    if plot is not None:
        from specpilot.sizing.plot import draw

        draw(plan, config, plot)
    write_json(json_target, plan.to_json() | {"load": load, "seed": seed, "notes": notes})
    if not plan.feasible:
        raise typer.Exit(INFEASIBLE)


def _numbers(name: str, text: str, kind: Callable[[str], N]) -> list[N]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a list of numbers; write e.g. 0.8,0.7") from None


def _table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], *, lines: bool = False
) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_lines=lines)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=column not in WIDE)
    for row in rows:
        table.add_row(*row)
    return table


def _show(plan: Plan, config: ControllerConfig, screen: Console) -> None:
    from specpilot.sizing.case import FEW_LENGTHS

    rate = "closed loop" if plan.rate_per_s is None else f"{plan.rate_per_s:.1f} requests/s"
    screen.print(
        _table(
            f"B = {config.pass_budget:g}, SLO {config.slo_p95_ms:g} ms, {rate}",
            ("policy", "t/pass", "t/request", "finished", "passes", "p95 ms", "in SLO", "tok/s"),
            (
                (
                    f"[bold]{name}[/]" if name == plan.recommended else name,
                    f"{row.tokens_per_pass:.2f}",
                    f"{row.tokens_per_arrival:.2f}",
                    f"{row.completion_share:.0%}",
                    f"{row.target_passes_per_request:.2f}",
                    "–" if row.e2e_p95_ms is None else f"{row.e2e_p95_ms:.0f}",
                    f"{row.slo_attainment:.1%}",
                    f"{row.goodput_tokens_per_s:.1f}",
                )
                for name, row in plan.policies.items()
            ),
        )
    )
    screen.print(
        _table(
            "By prompt length",
            ("prompt", "share", "τ", "α by position"),
            (
                (
                    bucket.name,
                    f"{bucket.share:.0%}",
                    str(bucket.tau),
                    " ".join(f"{value:.2f}" for value in bucket.acceptance[:6]),
                )
                for bucket in plan.buckets
            ),
        )
    )
    screen.print(
        _table(
            "Break-even and limits",
            ("prompt", "α ≥", "draft ms", "fastest", "free", "perfect"),
            (
                (
                    bucket.name,
                    "–" if bucket.break_even_acceptance is None else f"{bucket.break_even_acceptance:.2f}",
                    f"{bucket.draft_ms:.1f} (≤ {bucket.break_even_draft_ms:.1f})",
                    f"{bucket.speed_up:.2f}× τ={bucket.fastest_tau}",
                    f"{bucket.limits.free_draft[0]:.2f}×",
                    f"{bucket.limits.perfect_draft[0]:.2f}×",
                )
                for bucket in plan.buckets
            ),
        )
    )
    screen.print(
        "[dim]α ≥ and (≤): acceptance and draft step at which drafting breaks even on an idle engine; "
        "fastest, free, perfect: speed-up there over plain decoding, with these models, with a draft that "
        "costs nothing, and with one that is always right.[/]"
    )
    if plan.sensitivity:
        few = ", ".join(str(tau) for tau in FEW_LENGTHS)
        screen.print(
            _table(
                f"If something changes: the best of τ = {few} then",
                ("change", "best", "t/request", "p95 ms", "in SLO", "tok/s"),
                (
                    (
                        row.change,
                        row.best,
                        f"{row.tokens_per_request:.2f}",
                        "–" if row.e2e_p95_ms is None else f"{row.e2e_p95_ms:.0f}",
                        f"{row.slo_attainment:.1%}",
                        f"{row.goodput_tokens_per_s:.1f}",
                    )
                    for row in plan.sensitivity
                ),
            )
        )
    if plan.region:
        _show_map(plan.region, screen)
    screen.print(f"Recommended: [bold]{plan.recommended}[/]. What binds: {plan.binds} ({plan.why}).")
    if plan.cut_share > 0.0 and plan.binds == "budget":
        needs = [f"B = {plan.needed['pass_budget']:.1f} at these tokens per pass"]
        if plan.needed["acceptance"] is not None:
            needs.append(f"or an acceptance of {plan.needed['acceptance']:.2f} at every position")
        screen.print(
            f"{plan.cut_share:.0%} of the requests end before they have what they ask for, "
            f"{plan.wanted_tokens:.1f} tokens on average; to serve that average takes {', '.join(needs)}."
        )
    if not plan.feasible:
        screen.print("[bold red]No policy keeps 95 % of the arrivals within the SLO here.[/]")


def _show_map(cells: Sequence[Cell], screen: Console) -> None:
    """One row a budget, one column an SLO."""
    rows: dict[float, list[str]] = {}
    for cell in cells:
        head = f"{cell.tokens_per_request:.2f} {cell.completion_share:.0%}"
        rows.setdefault(cell.pass_budget, [f"{cell.pass_budget:g}"]).append(
            f"{head if cell.feasible else '[dim]✗[/] ' + head}\nτ={cell.tau} {cell.binds.replace('_', ' ')}"
        )
    slos = sorted({cell.slo_p95_ms for cell in cells})
    screen.print(
        _table("Pass budget × SLO", ("B", *(f"{slo:g} ms" for slo in slos)), rows.values(), lines=True)
    )
    screen.print(
        "[dim]In each cell: tokens per request and the share that finish, the best τ, what binds: what "
        "brings most if it is doubled (draft cost: halved); ✗: no τ keeps 95 % of the arrivals in "
        "that SLO.[/]"
    )


def _roles(
    path: Path,
    config: ControllerConfig,
    prompts: list[int],
    max_tokens: int,
    screen: Console,
    json_target: str | None,
) -> bool:
    from specpilot.sizing.roles import rank_roles, read_models

    if min(prompts) < 1:
        raise ValueError(f"prompt_tokens: {prompts} has one below 1; give counts")
    mean = sum(prompts) // len(prompts)
    roles = rank_roles(
        read_models(path),
        pass_budget=config.pass_budget,
        slo_ms=config.slo_p95_ms,
        prompt_tokens=mean,
        max_tokens=max_tokens,
    )
    screen.print(
        _table(
            f"Roles: B = {config.pass_budget:g}, SLO {config.slo_p95_ms:g} ms, prompt of {mean} tokens, "
            f"{max_tokens} wanted; one request on an idle engine",
            ("target", "draft", "τ", "t/request", "passes", "ms", "tok/s", "speed-up", "out because"),
            (_role_row(role) for role in roles),
        )
    )
    allowed = [role for role in roles if not role.excluded]
    if allowed:
        best = allowed[0]
        how = (
            f"{best.draft} drafts, {best.target} verifies" if best.draft else f"{best.target} decodes plainly"
        )
        screen.print(f"Recommended: [bold]{how}[/].")
    else:
        screen.print("[bold red]No cast keeps the SLO with the quality asked for.[/]")
    write_json(
        json_target,
        {
            "roles": [{name: getattr(role, name) for name in role.__slots__} for role in roles],
            "recommended": None
            if not allowed
            else {"target": allowed[0].target, "draft": allowed[0].draft, "tau": allowed[0].tau},
        },
    )
    return bool(allowed)


def _role_row(role: Role) -> tuple[str, ...]:
    return (
        role.target,
        role.draft or "none",
        str(role.tau),
        f"{role.tokens:.2f}",
        f"{role.passes:.2f}",
        f"{role.e2e_ms:.0f}",
        f"{role.tokens_per_s:.1f}",
        f"{role.speed_up:.2f}×",
        role.excluded,
    )
