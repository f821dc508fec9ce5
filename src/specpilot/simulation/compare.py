"""Comparing policies over several runs: goodput against the best static τ picked in hindsight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from specpilot.simulation.baselines import RULES, STATIC_NAMES
from specpilot.simulation.results import PolicyResult

Row = dict[str, float | str]


def compare(results: Sequence[Mapping[str, PolicyResult]]) -> Row:
    """Ratios of mean goodput over the seeds, and specpilot's account."""

    def goodput(name: str) -> float:
        return sum(result[name].goodput_tokens_per_s for result in results) / len(results)

    best = max(STATIC_NAMES, key=goodput)
    base = max(goodput(best), 1e-9)
    own = [result["specpilot"] for result in results]
    headroom = goodput("oracle") - base
    return {
        "best_static": best,
        **{name: goodput(name) / base for name in ("specpilot", "oracle", *RULES)},
        "headroom_share": (goodput("specpilot") - base) / headroom if headroom > 0.0 else math.nan,
        "slo_attainment": sum(r.slo_attainment for r in own) / len(own),
        "passes": sum(r.target_passes_per_request for r in own) / len(own),
        "tokens_per_arrival": sum(r.tokens_per_arrival for r in own) / len(own),
        "completion": sum(r.completion_share for r in own) / len(own),
        "violations": float(sum(r.budget_violations for r in own)),
    }


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive ratios; a zero counts as 10⁻⁹."""
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))


def markdown(table: Mapping[str, Row]) -> str:
    """The result as a Markdown table with a line of geometric means."""
    names = ("specpilot", *RULES, "oracle")
    lines = [
        "| scenario, load | best static | "
        + " | ".join(names)
        + " | in SLO | passes | tokens/arrival | done |",
        "| --- " * (len(names) + 6) + "|",
    ]
    for key, values in table.items():
        cells = " | ".join(f"{values[name]:.3f}" for name in names)
        lines.append(
            f"| {key} | {values['best_static']} | {cells} | {values['slo_attainment']:.1%} "
            f"| {values['passes']:.2f} | {values['tokens_per_arrival']:.2f} | {values['completion']:.0%} |"
        )
    means = " | ".join(
        f"{geometric_mean([float(values[name]) for values in table.values()]):.3f}" for name in names
    )
    lines.append(f"| **geometric mean** | | {means} | | | | |")
    return "\n".join(lines)
