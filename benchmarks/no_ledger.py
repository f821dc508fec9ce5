"""The published rules as their systems really run: no pass budget, beside themselves under one.

    python benchmarks/no_ledger.py [--scenario steady] [--load 0.7] [--requests 1000]

Each policy twice on the same arrivals: under the ledger (B of the scenario) and with as many passes as it
wants. What a budget costs in tokens, and what having none costs in target passes. Deadlines, admission
and the drafter's breaker hold in both. Simulated workload.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean

from specpilot.simulation.baselines import RULES
from specpilot.simulation.results import PolicyResult
from specpilot.simulation.scenarios import EVALUATION_SEEDS, scenario
from specpilot.simulation.suite import Job, label, run_all

POLICIES = ("specpilot", "static-0", "static-4", "static-16", *RULES)
HEADER = (
    "| policy | passes | passes, no ledger | tokens/arrival | tokens/arrival, no ledger "
    "| goodput, no ledger ÷ ledger | in SLO | in SLO, no ledger |\n" + "| --- " * 8 + "|"
)


def line(name: str, under: list[PolicyResult], free: list[PolicyResult]) -> str:
    """One policy's row: means over the seeds."""
    passes, free_passes = (fmean(r.target_passes_per_request for r in rows) for rows in (under, free))
    tokens, free_tokens = (fmean(r.tokens_per_arrival for r in rows) for rows in (under, free))
    goodput, free_goodput = (fmean(r.goodput_tokens_per_s for r in rows) for rows in (under, free))
    slo, free_slo = (fmean(r.slo_attainment for r in rows) for rows in (under, free))
    return (
        f"| {name} | {passes:.2f} | {free_passes:.2f} | {tokens:.2f} | {free_tokens:.2f} "
        f"| {free_goodput / max(goodput, 1e-9):.3f} | {slo:.1%} | {free_slo:.1%} |"
    )


def main() -> int:
    """Replay with and without the ledger, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--scenario", default="steady")
    parser.add_argument("--load", type=float, default=0.7, help="0: closed loop")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    name = scenario(options.scenario).name
    jobs = [
        Job(name, options.load, seed, options.requests, POLICIES, ledger)
        for ledger in (True, False)
        for seed in EVALUATION_SEEDS
    ]
    done = list(run_all(jobs, options.processes))
    under, free = done[: len(EVALUATION_SEEDS)], done[len(EVALUATION_SEEDS) :]
    rows = [line(policy, [r[policy] for r in under], [r[policy] for r in free]) for policy in POLICIES]
    about = (
        f"Scenario {label(name, options.load)}, B = {scenario(name).config.pass_budget:g}, evaluation seeds "
        f"{EVALUATION_SEEDS}, {options.requests} requests each; arrivals relative to specpilot's capacity."
    )
    text = "\n".join([about, "", HEADER, *rows])
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
