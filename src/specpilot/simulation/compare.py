"""Comparing policies over several runs: goodput against the best static τ picked in hindsight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from specpilot.simulation.baselines import RULES, STATIC_NAMES
from specpilot.simulation.policies import GIVING_WAY
from specpilot.simulation.results import KEPT, PolicyResult

Row = dict[str, float | str]


GAP = 0.02
"""Where the belief-state optimum is less than this above the best static, a share of the gap says nothing."""
WARM = "warm_goodput_tokens_per_s"


def compare(results: Sequence[Mapping[str, PolicyResult]]) -> Row:
    """Ratios of mean goodput over the seeds, and specpilot's account.

    ``headroom_share`` is the part of the clairvoyant oracle's lead over the best static τ that specpilot
    takes; ``kept_static`` the best static τ of those that keep the SLO (empty if none does), ``kept_goodput``
    its goodput over the best one's; ``bayes_gap`` the belief-state optimum's lead after warm-up and
    ``bayes_share`` specpilot's part of it (not a number where the gap is below ``GAP`` or bayes was not run).
    """

    def goodput(name: str) -> float:
        return sum(result[name].goodput_tokens_per_s for result in results) / len(results)

    def warm(name: str) -> float:
        return float(sum(result[name].extra[WARM] for result in results)) / len(results)

    def attained(name: str) -> float:
        return sum(result[name].slo_attainment for result in results) / len(results)

    best = max(STATIC_NAMES, key=goodput)
    base = max(goodput(best), 1e-9)
    own = [result["specpilot"] for result in results]
    giving = [result[GIVING_WAY] for result in results if GIVING_WAY in result]
    headroom = goodput("oracle") - base
    kept = max([name for name in STATIC_NAMES if attained(name) >= KEPT], key=goodput, default="")
    row: Row = {
        "best_static": best,
        **{name: goodput(name) / base for name in ("specpilot", "oracle", *RULES)},
        "headroom_share": (goodput("specpilot") - base) / headroom if headroom > 0.0 else math.nan,
        "slo_attainment": attained("specpilot"),
        "static_slo_attainment": attained(best),
        "best_slo_attainment": max(map(attained, STATIC_NAMES)),
        "kept_static": kept,
        "kept_goodput": goodput(kept) / base if kept else math.nan,
        "passes": sum(r.target_passes_per_request for r in own) / len(own),
        "tokens_per_arrival": sum(r.tokens_per_arrival for r in own) / len(own),
        "completion": sum(r.completion_share for r in own) / len(own),
        "violations": float(sum(r.budget_violations for r in own)),
    }
    if giving:
        row |= {
            GIVING_WAY: goodput(GIVING_WAY) / base,
            "giving_way_slo_attainment": attained(GIVING_WAY),
            "giving_way_passes": sum(r.target_passes_per_request for r in giving) / len(giving),
            "giving_way_completion": sum(r.completion_share for r in giving) / len(giving),
        }
    if all("bayes" in result for result in results):
        warm_base = max(1e-9, *map(warm, STATIC_NAMES))
        gap = warm("bayes") / warm_base - 1.0
        lead = warm("specpilot") / warm_base - 1.0
        if giving:
            lead_giving = warm(GIVING_WAY) / warm_base - 1.0
            row["giving_way_bayes_share"] = lead_giving / gap if gap > GAP else math.nan
        row |= {
            "bayes": goodput("bayes") / base,
            "bayes_gap": gap,
            "bayes_share": lead / gap if gap > GAP else math.nan,
        }
    return row


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive ratios; a zero counts as 10⁻⁹."""
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))


def markdown(table: Mapping[str, Row]) -> str:
    """The result as a Markdown table with a line of geometric means."""
    names = ("specpilot", *RULES, "oracle")
    lines = [
        "| scenario, load | best static | "
        + " | ".join(names)
        + " | in SLO | of that static | most of any static | best static with 95 % "
        "| passes | tokens/arrival | complete |",
        "| --- " * (len(names) + 9) + "|",
    ]
    for key, values in table.items():
        cells = " | ".join(f"{values[name]:.3f}" for name in names)
        lines.append(
            f"| {key} | {values['best_static']} | {cells} | {values['slo_attainment']:.1%} "
            f"| {values['static_slo_attainment']:.1%} | {values['best_slo_attainment']:.1%} "
            f"| {_kept(values)} | {values['passes']:.2f} | {values['tokens_per_arrival']:.2f} "
            f"| {values['completion']:.0%} |"
        )
    means = [geometric_mean([float(values[name]) for values in table.values()]) for name in names]
    lines.append("| **geometric mean** | | " + " | ".join(f"{mean:.3f}" for mean in means) + " |" * 8)
    return "\n".join(lines)


def _kept(values: Row) -> str:
    """The best static τ that keeps the SLO and its goodput over the best one's."""
    return f"{values['kept_static']}, {values['kept_goodput']:.3f}" if values["kept_static"] else "none"


def giving_way_markdown(table: Mapping[str, Row]) -> str:
    """What ``give_way`` changes: goodput over the best static τ, attainment, passes, complete outputs."""
    shown = {key: values for key, values in table.items() if GIVING_WAY in values}
    lines = [
        "| scenario, load | goodput | giving way | in SLO | giving way | passes, giving way "
        "| complete | giving way |",
        "| --- " * 8 + "|",
    ]
    lines += [
        f"| {key} | {values['specpilot']:.3f} | {values[GIVING_WAY]:.3f} | {values['slo_attainment']:.1%} "
        f"| {values['giving_way_slo_attainment']:.1%} | {values['giving_way_passes']:.2f} "
        f"| {values['completion']:.0%} | {values['giving_way_completion']:.0%} |"
        for key, values in shown.items()
    ]
    own, giving = (
        geometric_mean([float(values[name]) for values in shown.values()]) if shown else math.nan
        for name in ("specpilot", GIVING_WAY)
    )
    lines.append(f"| **geometric mean** | {own:.3f} | {giving:.3f} " + "| " * 5 + "|")
    return "\n".join(lines)


def bounds_markdown(table: Mapping[str, Row]) -> str:
    """How far specpilot is from what can be had: the belief-state optimum's gap and the oracle's headroom."""
    lines = [
        "| scenario, load | bayes ÷ best static, warm | specpilot's share | giving way "
        "| oracle ÷ best static | specpilot's share |",
        "| --- " * 6 + "|",
    ]
    lines += [
        f"| {key} | {1.0 + float(values['bayes_gap']):.3f} | {_share(values['bayes_share'])} "
        f"| {_share(values.get('giving_way_bayes_share', math.nan))} "
        f"| {values['oracle']:.3f} | {_share(values['headroom_share'])} |"
        for key, values in table.items()
        if "bayes_gap" in values
    ]
    return "\n".join(lines)


def _share(value: float | str) -> str:
    return "–" if math.isnan(float(value)) else f"{float(value):.0%}"
