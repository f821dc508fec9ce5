"""The diagnosis as an HTML page: findings and the plots that carry their evidence. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specpilot.demo.plots import COLOURS, INK, STYLES, as_svg, new_axes
from specpilot.diagnosis import speed
from specpilot.diagnosis.findings import Diagnosis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from specpilot.diagnosis.compare import Comparison

POINTS = 3000
"""Most points drawn of a scatter; more would only make the page large."""


def write_page(path: Path, diagnoses: Sequence[Diagnosis], comparison: Comparison | None = None) -> None:
    """Write the page.

    Raises:
        OSError: if the file cannot be written.
        ModuleNotFoundError: without matplotlib and jinja2.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("specpilot.diagnosis", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.j2").render(
        parts=[(diagnosis, plots(diagnosis)) for diagnosis in diagnoses], comparison=comparison
    )
    path.write_text(text, encoding="utf-8")


def plots(diagnosis: Diagnosis) -> list[str]:
    """Acceptance by position, what a confidence was worth, time by part, pass time by width."""
    return [acceptance(diagnosis), calibration(diagnosis), time_by_part(diagnosis), pass_width(diagnosis)]


def acceptance(diagnosis: Diagnosis) -> str:
    """Accepted ÷ reached by position, on short and on long contexts."""
    trace = diagnosis.trace
    figure, axes = new_axes("Acceptance by position", "position in the block", "accepted ÷ reached")
    middle = float(np.median(trace.prompt_tokens))
    for place, (name, mask) in enumerate(
        (
            (f"prompt ≤ {middle:.0f} tokens", trace.prompt_tokens <= middle),
            ("longer", trace.prompt_tokens > middle),
        )
    ):
        found, reached = speed.hazards(trace, mask)
        known = np.flatnonzero(reached >= 20)
        if len(known):
            axes.plot(known + 1, found[known], color=COLOURS[place], linestyle=STYLES[place], marker="o",
                      markersize=3.5, label=name)  # fmt: skip
    axes.set_ylim(0.0, 1.02)
    _whole_ticks(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return as_svg(figure, "Share of accepted tokens by position, for short and long prompts")


def calibration(diagnosis: Diagnosis) -> str:
    """First-token acceptance by confidence, in requests' first cycles and in later ones."""
    trace = diagnosis.trace
    figure, axes = new_axes("What the first confidence was worth", "draft's confidence", "accepted")
    lengths = trace.confidences.lengths()
    there = np.flatnonzero((lengths > 0) & (trace.proposed > 0))
    first = trace.confidences.values[trace.confidences.offsets[:-1][there]]
    groups = ("a request's first cycle", "later cycles")
    for place, name in enumerate(groups):
        mask = (trace.cycles["index"][there] == 0) == (place == 0)
        if mask.sum() < 40:
            continue
        edges = np.quantile(first[mask], np.linspace(0.0, 1.0, 9))
        group = np.clip(np.searchsorted(edges, first[mask], side="right") - 1, 0, 7)
        right = trace.accepted[there][mask] > 0
        x = [float(first[mask][group == g].mean()) for g in range(8) if (group == g).any()]
        y = [float(right[group == g].mean()) for g in range(8) if (group == g).any()]
        axes.plot(x, y, color=COLOURS[place], linestyle=STYLES[place], marker="o", markersize=3.5, label=name)
    axes.plot([0.0, 1.0], [0.0, 1.0], color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.02)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return as_svg(figure, "Acceptance of the first draft token by the draft's confidence")


def time_by_part(diagnosis: Diagnosis) -> str:
    """Mean time of a cycle by part."""
    trace = diagnosis.trace
    figure, axes = new_axes("Where a cycle's time goes", "ms per cycle", "")
    parts = {
        "draft steps": float(speed.shared(trace, speed.drafting_ms(trace)).mean()),
        "draft catching up": float(trace.draft_prefill_ms.mean()),
        "target pass": float(speed.shared(trace, trace.verify_ms).mean()),
        "host": float(speed.shared(trace, trace.host_ms).mean()),
        "waiting before it": float(trace.queue_ms.mean()),
    }
    names = list(reversed(parts))
    axes.barh(names, [parts[name] for name in names], color=COLOURS[0])
    axes.margins(x=0.12)
    for place, name in enumerate(names):
        axes.text(parts[name], place, f" {parts[name]:.2f}", va="center", fontsize=8, color=INK)
    return as_svg(
        figure, "Mean milliseconds per cycle by part: " + ", ".join(f"{n} {v:.2f}" for n, v in parts.items())
    )


def pass_width(diagnosis: Diagnosis) -> str:
    """A request's part of a target pass by its tokens in it, and the fitted line."""
    trace, model = diagnosis.trace, diagnosis.model
    figure, axes = new_axes("Is verification parallel?", "tokens of a request", "its part of the pass (ms)")
    narrow = np.flatnonzero(speed.decoding(trace) & speed.usable(trace))
    if len(narrow):
        shown = narrow[:: max(1, len(narrow) // POINTS)]
        times = speed.shared(trace, trace.verify_ms)
        axes.scatter(trace.verified_tokens[shown], times[shown], s=6, alpha=0.35, linewidths=0,
                     color=COLOURS[0])  # fmt: skip
        widest = int(trace.verified_tokens[narrow].max())
        ends = [1, max(2, widest)]
        axes.plot(
            ends, [model.pass_ms + model.token_ms * (width - 1) for width in ends], color=INK, linewidth=1.6
        )
    axes.set_ylim(bottom=0.0)
    _whole_ticks(axes)
    return as_svg(figure, "A request's part of a target pass by the number of its tokens in it")


def _whole_ticks(axes: Axes) -> None:
    """Positions and widths are counts."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
