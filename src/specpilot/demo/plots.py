"""The report's plots, as inline SVG: no files, no network, readable without colour.

matplotlib's object interface only (no pyplot, no global state); text stays text, so that the browser's
font is used and a screen reader can read the labels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from specpilot.control.contexts import bucket_of
from specpilot.sizing.workload import BUCKETS
from specpilot.trace.cycles import CycleRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
COLOURS = ("#0b6bcb", "#c2510a", "#2f855a", "#7b3fa0")
"""Told apart by people who do not see red and green alike; lines differ in style too."""
STYLES = ("-", "--", "-.", ":")


def draft_length(cycles: Sequence[CycleRecord]) -> str:
    """τ over time: every cycle's proposed length, and a moving mean."""
    figure, axes = new_axes("Draft length over time", "time in the run (s)", "tokens proposed per cycle")
    times = [cycle.start_s for cycle in cycles]
    lengths = [float(cycle.proposed) for cycle in cycles]
    axes.scatter(times, lengths, s=6, color=COLOURS[0], alpha=0.35, linewidths=0, label="one cycle")
    axes.plot(times, _moving_mean(lengths, 50), color=INK, linewidth=1.8, label="mean of 50 cycles")
    axes.set_ylim(bottom=0.0)
    axes.legend(frameon=False, loc="upper right")
    return as_svg(figure, "Draft length of each cycle over time with its moving mean")


def acceptance(cycles: Sequence[CycleRecord]) -> str:
    """P(accepted | reached) by position in the block, one line per prompt-length bucket."""
    figure, axes = new_axes("Acceptance by position", "position in the block", "accepted ÷ reached")
    seen: set[int] = set()
    for index, name in enumerate(BUCKETS):
        chosen = [cycle for cycle in cycles if bucket_of(cycle.prompt_tokens) == index]
        positions, rates = acceptance_by_position(chosen)
        seen |= set(positions)
        if positions:
            axes.plot(
                positions,
                rates,
                color=COLOURS[index],
                linestyle=STYLES[index],
                marker="o",
                markersize=3.5,
                label=f"prompt {name} tokens",
            )
    axes.set_ylim(0.0, 1.02)
    axes.set_xticks(sorted(seen))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return as_svg(figure, "Share of accepted tokens by position in the block, by prompt length")


def pool(cycles: Sequence[CycleRecord]) -> str:
    """Passes in the shared pool when each cycle's pass had started."""
    figure, axes = new_axes("Pass pool", "time in the run (s)", "passes saved up")
    axes.step(
        [cycle.start_s for cycle in cycles],
        [cycle.ledger.pool for cycle in cycles],
        where="post",
        color=COLOURS[0],
        linewidth=1.4,
    )
    axes.set_ylim(0.0, max([1.0, *(1.05 * cycle.ledger.pool for cycle in cycles)]))
    return as_svg(figure, "Passes in the shared pool over time")


def latency(latencies_ms: Mapping[str, Sequence[float]], slo_ms: float) -> str:
    """Share of answers within a time, per policy, with the SLO marked."""
    figure, axes = new_axes("Latency", "end-to-end latency (ms)", "share of answers within it")
    for index, (name, values) in enumerate(latencies_ms.items()):
        ordered = sorted(values)
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        axes.step(
            ordered, shares, where="post", color=COLOURS[index % 4], linestyle=STYLES[index % 4], label=name
        )
    axes.axvline(slo_ms, color=INK, linewidth=1.0, linestyle=":")
    axes.annotate(f"SLO {slo_ms:g} ms", (slo_ms, 0.5), xytext=(4, 0), textcoords="offset points", color=INK)
    axes.axhline(0.95, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xlim(0.0, max([1.25 * slo_ms, *(value for values in latencies_ms.values() for value in values)]))
    axes.set_ylim(0.0, 1.02)
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(0.78, 0.25))
    return as_svg(figure, "Distribution of end-to-end latency by policy, with the service level objective")


def acceptance_by_position(cycles: Sequence[CycleRecord], least: int = 30) -> tuple[list[int], list[float]]:
    """Conditional acceptance: (positions from 1, accepted ÷ reached), where reached at least ``least`` times.

    A position is reached if all before it were accepted and it was proposed.
    """
    reached: dict[int, int] = {}
    accepted: dict[int, int] = {}
    for cycle in cycles:
        for position in range(1, min(cycle.accepted + 1, cycle.proposed) + 1):
            reached[position] = reached.get(position, 0) + 1
            accepted[position] = accepted.get(position, 0) + (position <= cycle.accepted)
    positions = [position for position in sorted(reached) if reached[position] >= least]
    return positions, [accepted[position] / reached[position] for position in positions]


def _moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last ``window`` values at each place (fewer at the start)."""
    means: list[float] = []
    total = 0.0
    for place, value in enumerate(values):
        total += value - (values[place - window] if place >= window else 0.0)
        means.append(total / min(place + 1, window))
    return means


def new_axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes in the reports' style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    axes.set_xlabel(x, color=MUTED, fontsize=9)
    axes.set_ylabel(y, color=MUTED, fontsize=9)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    return figure, axes


def as_svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element with an accessible name."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
