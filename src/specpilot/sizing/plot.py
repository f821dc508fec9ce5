"""The plan as a picture: what each static τ gives, and where the promises end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from specpilot.control import ControllerConfig
from specpilot.demo.plots import COLOURS, INK, MUTED, STYLES

if TYPE_CHECKING:
    from specpilot.sizing.plan import Plan


def draw(plan: Plan, config: ControllerConfig, path: Path) -> None:
    """Tokens per request and p95 over τ.

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
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
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
        axes.set_ylim(bottom=0.0)
        axes.spines[["top", "right"]].set_visible(False)
    right.axhline(config.slo_p95_ms, color=INK, linestyle=STYLES[3], label="SLO")
    for axes in (left, right):
        axes.legend(frameon=False, loc="lower right", fontsize=8)
    figure.savefig(path)
