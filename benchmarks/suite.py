"""Every policy on the scenario suite: goodput against the best static τ in hindsight.

    python benchmarks/suite.py [--seeds evaluation|development] [--requests 600] [--markdown FILE]

Closed loop (saturation) and open loop at 0.4 and 0.7 of specpilot's closed-loop capacity; same ledger,
same arrivals for all; learning included. Simulated workloads (see specpilot/simulation/scenarios.py):
ratios compare policies, they are no claim about any real model.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from specpilot.simulation.baselines import RULES, STATIC_NAMES
from specpilot.simulation.policies import POLICY_NAMES, replay_policy
from specpilot.simulation.results import PolicyResult
from specpilot.simulation.scenarios import DEVELOPMENT_SEEDS, EVALUATION_SEEDS, SCENARIOS, VERSION, Scenario

LOADS = (0.0, 0.4, 0.7)


def run(scenario: Scenario, load: float, seed: int, count: int) -> dict[str, PolicyResult]:
    """All policies on one scenario, load and seed."""
    requests = scenario.requests(count, seed)
    if load:
        closed = replay_policy("specpilot", requests, scenario.costs, scenario.config, closed_loop=True)
        capacity = count / max(record.end_s for record in closed.records)
        requests = scenario.arriving(requests, load * capacity, seed)
    return {
        name: replay_policy(name, requests, scenario.costs, scenario.config, closed_loop=load == 0.0).result
        for name in POLICY_NAMES
    }


def row(results: list[dict[str, PolicyResult]]) -> dict[str, float | str]:
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


def geometric_mean(values: list[float]) -> float:
    """Of positive ratios; a zero counts as 10⁻⁹."""
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))


def markdown(table: dict[str, dict[str, float | str]]) -> str:
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


def main() -> None:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--seeds", choices=("evaluation", "development"), default="evaluation")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--only", help="one scenario's name")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = EVALUATION_SEEDS if options.seeds == "evaluation" else DEVELOPMENT_SEEDS
    table: dict[str, dict[str, float | str]] = {}
    for scenario in SCENARIOS:
        if options.only not in (None, scenario.name):
            continue
        for load in LOADS:
            key = f"{scenario.name}, {f'{load:g}' if load else 'closed'}"
            table[key] = row([run(scenario, load, seed, options.requests) for seed in seeds])
            print(
                key,
                {k: round(v, 3) if isinstance(v, float) else v for k, v in table[key].items()},
                flush=True,
            )
    text = (
        f"Scenario suite version {VERSION}, {options.seeds} seeds {seeds}, {options.requests} requests each. "
        "Goodput over the best static τ in hindsight.\n\n" + markdown(table)
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
