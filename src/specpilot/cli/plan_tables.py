"""The tables of ``specpilot plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specpilot.control import ControllerConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.table import Table

    from specpilot.sizing.plan import Plan
    from specpilot.sizing.region import Cell
    from specpilot.sizing.roles import Role
    from specpilot.sizing.roles_load import LoadedRole

WIDE = ("change", "out because")
"""Columns that may be folded on a narrow terminal."""


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


def show_plan(plan: Plan, config: ControllerConfig, screen: Console) -> None:
    """Everything but the notes."""
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


def show_roles(title: str, roles: Sequence[Role], screen: Console) -> None:
    """One request on an idle engine."""
    screen.print(
        _table(
            title,
            ("target", "draft", "τ", "t/request", "passes", "ms", "tok/s", "speed-up", "out because"),
            (_role_row(role) for role in roles),
        )
    )


def show_loaded(roles: Sequence[LoadedRole], rate_per_s: float, screen: Console) -> None:
    """The same casts with requests waiting for each other."""
    screen.print(
        _table(
            f"Under load: {rate_per_s:.3g} requests/s, one engine",
            ("target", "draft", "τ", "t/request", "busy", "p95 ms", "in SLO", "tok/s", "out because"),
            (
                (
                    role.target,
                    role.draft or "none",
                    str(role.tau),
                    f"{role.tokens:.2f}",
                    f"{role.utilisation:.0%}",
                    "–" if role.e2e_p95_ms is None else f"{role.e2e_p95_ms:.0f}",
                    f"{role.slo_attainment:.1%}",
                    f"{role.tokens_per_s:.1f}",
                    role.excluded,
                )
                for role in roles
            ),
        )
    )


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
