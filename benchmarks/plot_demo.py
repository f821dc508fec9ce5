"""The README's picture and table from a demo result.

    specpilot demo --json out/demo.json
    python benchmarks/plot_demo.py out/demo.json [--picture docs/demo.svg] [--readme README.md]

The picture shows every policy's goodput against its p95 latency. With ``--readme`` the table between the
``demo-table`` marks is written anew.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

SHOWN = (
    "specpilot", "oracle", "confidence", "ema-tiers", "expected-over-cost", "additive", "asymmetric-ema",
    "specpilot-chain", "oracle-tree",
)  # fmt: skip


def draw(result: dict[str, Any], path: Path) -> None:
    """Goodput against p95, statics joined by a line."""
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    policies = _replays(result)
    statics = sorted((name for name in policies if name.startswith("static-")), key=_length)
    axes.plot(
        [policies[name]["e2e_p95_ms"] for name in statics],
        [policies[name]["goodput_tokens_per_s"] for name in statics],
        color="#616e7c", marker="o", markersize=4, linewidth=1, label="static τ = 0 … 16",
    )  # fmt: skip
    for name, marker in zip(SHOWN, "D*svP<>dX", strict=True):
        row = policies.get(name)
        if row:
            axes.scatter(
                row["e2e_p95_ms"], row["goodput_tokens_per_s"], marker=marker, s=70, zorder=3, label=name
            )
    axes.set_xlabel("p95 end-to-end latency (ms)")
    axes.set_ylabel("goodput (verified tokens/s in SLO)")
    axes.grid(color="#e4e7eb")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def table(result: dict[str, Any]) -> str:
    """A Markdown table of the rows that the README shows."""
    best = result["best_static"]
    replays = _replays(result)
    lines = [
        "| policy | run | p95 ms (95 % interval) | in SLO | passes | t/pass | tok/s "
        "| tokens/arrival | done | loops |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    live = {name: row for name, row in result["policies"].items() if row["source"] == "live"}
    rows = [(name, "live", row) for name, row in live.items()]
    shown = (
        "oracle-tree",
        "specpilot",
        "oracle",
        "specpilot-chain",
        best,
        "confidence",
        "static-4",
        "static-0",
    )
    rows += [(name, "replay", replays[name]) for name in shown if name in replays]
    for name, run, row in rows:
        low, high = row["e2e_p95_ci_ms"]
        lines.append(
            f"| {name} | {run} | {row['e2e_p95_ms']:.0f} ({low:.0f}–{high:.0f}) "
            f"| {row['slo_attainment']:.1%} | {row['target_passes_per_request']:.2f} "
            f"| {row['tokens_per_pass']:.2f} "
            f"| {row['goodput_tokens_per_s']:.1f} | {row['tokens_per_arrival']:.2f} "
            f"| {row['completion_share']:.0%} | {row['loop_share']:.1%} |"
        )
    return "\n".join(lines)


def _replays(result: dict[str, Any]) -> dict[str, Any]:
    """Every policy's replay; ``policies`` holds the live row where there is one."""
    return {**result["policies"], **result["replays"]}


def _length(name: str) -> int:
    return int(name.removeprefix("static-"))


def main() -> None:
    """Write what was asked for; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("result", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args()
    result = json.loads(options.result.read_text(encoding="utf-8"))
    text = table(result)
    print(text)
    if options.picture:
        draw(result, options.picture)
    if options.readme:
        readme = options.readme.read_text(encoding="utf-8")
        block = f"<!-- demo-table:begin -->\n{text}\n<!-- demo-table:end -->"
        readme = re.sub(
            r"<!-- demo-table:begin -->.*?<!-- demo-table:end -->", lambda _: block, readme, flags=re.DOTALL
        )
        options.readme.write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
