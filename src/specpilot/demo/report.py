"""What the demonstration shows: a table for the terminal and a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specpilot.demo.outcome import DemoOutcome
from specpilot.simulation.results import PolicyResult

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

COLUMNS = ("policy", "run", "p95 ms", "in SLO", "passes", "t/pass", "tok/s", "done", "loops", "stopped by")
"""The page shows all; the terminal's table leaves the last one out, so that 80 columns are enough."""
LEGEND = (
    "p95 ms: end-to-end latency with its 95 % interval; in SLO: share of all arrivals answered in time; "
    "passes: target passes per request; t/pass: tokens per pass; tok/s: goodput; done: share that ran to "
    "its own end; loops: share of looping output"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One policy's line: ``kind`` is ``live`` or ``replay``."""

    kind: str
    cells: tuple[str, ...]


def rows(outcome: DemoOutcome) -> list[Row]:
    """Live rows first, then the replays by goodput."""
    ordered = sorted(outcome.replays, key=lambda result: -result.goodput_tokens_per_s)
    return [_row(result) for result in [*outcome.live, *ordered]]


def render(outcome: DemoOutcome) -> list[RenderableType]:
    """The table and the verdicts, for a rich console."""
    lines: list[RenderableType] = [result_table(rows(outcome)), f"[dim]{LEGEND}.[/]"]
    lines += [
        f"{row.cells[0]} (live) stopped by: {row.cells[-1]}" for row in rows(outcome) if row.kind == "live"
    ]
    for check in [*outcome.promises(), *outcome.checks()]:
        mark = "[bold green]kept  [/]" if check.kept else "[bold red]BROKEN[/]"
        lines.append(f"{mark} {check.name}: {check.detail}")
    if outcome.gain_over_best_static is not None:
        lines.append(
            f"Goodput against the best static length ({outcome.best_static}, chosen in hindsight): "
            f"×{outcome.gain_over_best_static:.3f} live"
        )
    if outcome.oracle_share is not None:
        lines.append(f"Share of the clairvoyant's goodput, both by replay: {outcome.oracle_share:.1%}")
    lines += [f"[dim]{note}[/]" for note in outcome.notes]
    return lines


def result_table(lines: Sequence[Row]) -> Table:
    """Policy results as a rich table, live rows in bold."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index, name in enumerate(COLUMNS[:-1]):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line.cells[:-1], style="bold" if line.kind == "live" else "")
    return table


def policy_rows(results: Sequence[PolicyResult]) -> list[Row]:
    """Rows for results of one kind, by goodput."""
    return [_row(result) for result in sorted(results, key=lambda result: -result.goodput_tokens_per_s)]


def write_report(path: Path, outcome: DemoOutcome) -> None:
    """Write the HTML page: inline SVG and CSS, nothing fetched.

    Raises:
        OSError: if the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    from specpilot.demo import plots

    environment = Environment(
        loader=PackageLoader("specpilot.demo", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    cycles = list(outcome.cycles.get(outcome.specpilot.name, ()))
    drawings = [
        plots.draft_length(cycles),
        plots.acceptance(cycles),
        plots.pool(cycles),
        plots.latency(outcome.latencies_ms, outcome.config.slo_p95_ms),
    ]
    page = environment.get_template("report.html.j2").render(
        outcome=outcome, columns=COLUMNS, legend=LEGEND, rows=rows(outcome), plots=drawings
    )
    path.write_text(page, encoding="utf-8")


def _row(result: PolicyResult) -> Row:
    causes = ", ".join(f"{cause} {count}" for cause, count in result.stop_causes.items())
    if result.refused:
        causes += f", refused {result.refused}"
    return Row(
        result.source,
        (
            result.name,
            result.source,
            _p95(result),
            f"{result.slo_attainment:.1%}",
            f"{result.target_passes_per_request:.2f}",
            f"{result.tokens_per_pass:.2f}",
            f"{result.goodput_tokens_per_s:.1f}",
            f"{result.completion_share:.0%}",
            f"{result.loop_share:.1%}",
            causes,
        ),
    )


def _p95(result: PolicyResult) -> str:
    if result.e2e_p95_ms is None or result.e2e_p95_ci_ms is None:
        return "–"
    low, high = result.e2e_p95_ci_ms
    return f"{result.e2e_p95_ms:.0f} [{low:.0f}–{high:.0f}]"
