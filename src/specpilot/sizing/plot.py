"""The plan as a picture: what each static τ gives, where the promises end, and the map over both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from specpilot.control import ControllerConfig
from specpilot.demo.plots import COLOURS, INK, MUTED, STYLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from specpilot.sizing.plan import Plan
    from specpilot.sizing.region import Cell


def draw(plan: Plan, config: ControllerConfig, path: Path) -> None:
    """Tokens per request and p95 over τ; below, where there is one, the map over pass budget × SLO.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    statics = {
        int(name.removeprefix("static-")): row
        for name, row in plan.policies.items()
        if name.startswith("static-")
    }
    own = plan.policies["specpilot"]
    figure = Figure(figsize=(8.0, 6.4 if plan.region else 3.2), layout="constrained")
    grid = figure.add_gridspec(2 if plan.region else 1, 2)
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    for axes, title, values, mine in (
        (
            left,
            "tokens per request",
            [r.tokens_per_arrival for r in statics.values()],
            own.tokens_per_arrival,
        ),
        (
            right,
            "p95 end-to-end (ms)",
            [r.e2e_p95_ms or 0.0 for r in statics.values()],
            own.e2e_p95_ms or 0.0,
        ),
    ):
        axes.plot(list(statics), values, color=COLOURS[0], marker="o", markersize=3.5, label="static τ")
        axes.axhline(mine, color=COLOURS[1], linestyle=STYLES[1], label="specpilot")
        axes.set_title(title, loc="left", color=INK, fontsize=10)
        axes.set_xlabel("draft length τ", color=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
    right.axhline(config.slo_p95_ms, color=INK, linestyle=STYLES[3], label="SLO")
    for axes in (left, right):
        axes.set_ylim(bottom=0.0)
        axes.legend(frameon=False, loc="lower right", fontsize=8)
    if plan.region:
        _map(figure.add_subplot(grid[1, :]), plan.region)
    figure.savefig(path)


def _map(axes: Any, cells: Sequence[Cell]) -> None:
    """Colour: tokens per request. A cell in which the SLO cannot be kept says so."""
    budgets = sorted({cell.pass_budget for cell in cells})
    slos = sorted({cell.slo_p95_ms for cell in cells})
    values = [[0.0] * len(slos) for _ in budgets]
    most = max(cell.tokens_per_request for cell in cells) or 1.0
    for cell in cells:
        row, column = budgets.index(cell.pass_budget), slos.index(cell.slo_p95_ms)
        values[row][column] = cell.tokens_per_request
        text = (
            f"{cell.tokens_per_request:.1f} tokens, {cell.completion_share:.0%} finished\n"
            f"τ = {cell.tau}, {cell.binds.replace('_', ' ')}"
        )
        axes.text(
            column,
            row,
            text if cell.feasible else f"{text}\nmisses the SLO",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if cell.tokens_per_request > 0.6 * most else INK,
        )
    axes.imshow(values, cmap="Blues", vmin=0.0, vmax=most, aspect="auto", origin="lower")
    axes.set_xticks(range(len(slos)), [f"{slo:g}" for slo in slos])
    axes.set_yticks(range(len(budgets)), [f"{budget:g}" for budget in budgets])
    axes.set_xlabel("SLO: p95 end-to-end (ms)", color=MUTED)
    axes.set_ylabel("passes per request", color=MUTED)
    axes.set_title("tokens per request, best τ, what binds", loc="left", color=INK, fontsize=10)
