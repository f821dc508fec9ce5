"""How a signal is switched off and what that costs is measured: for chains (ablation.py) and for token trees
(tree_ablation.py).

A signal is off by patching the estimator behind it: nothing in the product knows of ablations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paired import LEVEL, Account, Ratio, ratio

from specpilot.control import ControllerConfig
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.policies import replay_policy
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.scenarios import DEVELOPMENT_SEEDS, EVALUATION_SEEDS, VERSION
from specpilot.simulation.stream import at_load
from specpilot.simulation.suite import LOADS, label, spread
from specpilot.trace.agreement import AgreementTrace

THRESHOLD = 0.005
FRESH_SEED = 7000
"""The first of those that confirm; no constant was tuned on any of them."""
CONFIRMED = 8
"""Rows of a signal that are run on those."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """One signal off: patches (object, attribute, replacement), configuration changes, no confidences.

    ``guards`` names the invariant or promise that keeps the signal whatever it costs. ``lookup``: there is
    something to switch off only where text is looked up.
    """

    patches: tuple[tuple[Any, str, Any], ...] = ()
    config: dict[str, float] = field(default_factory=dict)
    confidences: bool = True
    guards: str = ""
    lookup: bool = False


Results = dict[str, tuple[float, float]]
"""(goodput, SLO attainment) with everything (key "") and without each signal."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario, load and seed, and the signals to switch off on it; picklable."""

    scenario: str
    load: float
    seed: int
    requests: int
    signals: tuple[str, ...]


def nothing(*args: object, **kwargs: object) -> None:
    """An estimator that does not learn."""


@contextmanager
def without(ablation: Ablation) -> Iterator[None]:
    """The signal is off inside; patching an attribute that is gone raises AttributeError."""
    with ExitStack() as stack:
        for owner, attribute, replacement in ablation.patches:
            stack.enter_context(patch.object(owner, attribute, replacement))
        yield


def arriving(
    traces: Sequence[AgreementTrace], costs: EngineCosts, config: ControllerConfig, cell: Cell
) -> list[ReplayRequest]:
    """A cell's requests from recorded traces, as they arrive."""
    return at_load(traces, costs, config, cell.load, count=cell.requests, max_tokens=24, seed=cell.seed)[0]


def compare(
    ablations: Mapping[str, Ablation],
    requests: Sequence[ReplayRequest],
    costs: EngineCosts,
    config: ControllerConfig,
    *,
    closed_loop: bool,
) -> Results:
    """The same requests with everything and without each signal."""

    def result(ablation: Ablation) -> tuple[float, float]:
        served = requests if ablation.confidences else list(map(_blind, requests))
        changed = replace(config, **ablation.config)  # type: ignore[arg-type]
        run = replay_policy("specpilot", served, costs, changed, closed_loop=closed_loop).result
        return run.goodput_tokens_per_s, run.slo_attainment

    results = {"": result(Ablation())}
    for signal, ablation in ablations.items():
        with without(ablation):
            results[signal] = result(ablation)
    return results


def _blind(request: ReplayRequest) -> ReplayRequest:
    return replace(request, trace=replace(request.trace, confidence=None))


def table(cells: Iterable[Cell], results: Iterable[Results]) -> dict[str, Any]:
    """Signal → scenario → changes of mean goodput, one for each load; SLO changes beside them."""
    grouped: dict[tuple[str, float], list[Results]] = {}
    for cell, result in zip(cells, results, strict=True):
        print(".", end="", file=sys.stderr, flush=True)
        grouped.setdefault((cell.scenario, cell.load), []).append(result)
    print(file=sys.stderr)
    changes: dict[str, Any] = {}
    for (name, _), rows in grouped.items():
        for signal in rows[0]:
            if signal:
                goodput = fmean(r[signal][0] for r in rows) / fmean(r[""][0] for r in rows) - 1.0
                slo = fmean(r[signal][1] for r in rows) - fmean(r[""][1] for r in rows)
                entry = changes.setdefault(signal, {}).setdefault(name, {"goodput": [], "slo": []})
                entry["goodput"].append(goodput)
                entry["slo"].append(slo)
    return changes


def markdown(changes: dict[str, Any], ablations: Mapping[str, Ablation], chance: Sequence[str] = ()) -> str:
    """A row a signal: the worst change anywhere, by scenario least … most over the loads, the verdict.

    ``chance`` names rows that mean nothing. With them a change counts if it is worse than theirs anywhere, or
    half a per cent in the mean, which chance moves less; what was not measured is a dash.
    """
    names = list(dict.fromkeys(name for row in changes.values() for name in row))
    means = ["mean"] if chance else []
    lines = [
        "| " + " | ".join(["without", *means, "worst", *names, "verdict"]) + " |",
        "| --- " * (len(names) + len(means) + 3) + "|",
    ]
    every = {signal: [c for e in row.values() for c in e["goodput"]] for signal, row in changes.items()}
    least = min([-THRESHOLD, *(min(every[signal]) for signal in chance if signal in every)])
    for signal, row in changes.items():
        mean, worst = fmean(every[signal]), min(every[signal])
        if signal in chance:
            verdict = "chance"
        elif worst <= least or (chance and mean <= -THRESHOLD):
            verdict = "stays"
        elif guards := ablations[signal].guards:
            verdict = f"guards {guards}"
        else:
            verdict = "**within chance**" if chance else "**no reason to stay**"
        cells = [f"{100 * share:+.1f} %" for share in ((mean, worst) if chance else (worst,))]
        cells += [_range(row[name]["goodput"]) if name in row else "–" for name in names]
        lines.append(f"| {signal} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines)


def _range(changes: Sequence[float]) -> str:
    return f"{100 * min(changes):+.1f} … {100 * max(changes):+.1f}"


def arguments(
    document: str, ablations: Mapping[str, Ablation], names: Sequence[str], requests: int
) -> argparse.ArgumentParser:
    """The options of an ablation benchmark; its default of requests for each replay."""
    parser = argparse.ArgumentParser(description=document.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--seeds", choices=("evaluation", "development"), default="evaluation")
    parser.add_argument("--requests", type=int, default=requests)
    parser.add_argument("--signal", action="append", choices=tuple(ablations), help="repeatable; default all")
    parser.add_argument("--only", action="append", choices=tuple(names), help="a workload; repeatable")
    parser.add_argument("--confirm", type=int, default=0, metavar="N", help="worst rows on N fresh seeds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    return parser


def worst_rows(changes: Mapping[str, Any]) -> dict[str, list[tuple[str, float]]]:
    """Signal → the :data:`CONFIRMED` (scenario, load) where switching it off cost most, the worst first."""
    found = {}
    for signal, row in changes.items():
        cells = [
            (c, name, load) for name, e in row.items() for c, load in zip(e["goodput"], LOADS, strict=True)
        ]
        found[signal] = [(name, load) for _, name, load in sorted(cells)[:CONFIRMED]]
    return found


def confirm(
    changes: Mapping[str, Any],
    measure: Callable[[Cell], Results],
    ablations: Mapping[str, Ablation],
    options: argparse.Namespace,
) -> str:
    """Each signal's worst rows on seeds that had no part in picking them: changes with intervals."""
    rows = worst_rows(changes)
    shared: dict[tuple[str, float], list[str]] = {}
    for signal, places in rows.items():
        for place in places:
            shared.setdefault(place, []).append(signal)
    seeds = range(FRESH_SEED, FRESH_SEED + options.confirm)
    cells = [
        Cell(name, load, seed, options.requests, tuple(signals))
        for (name, load), signals in shared.items()
        for seed in seeds
    ]
    found: dict[tuple[str, tuple[str, float]], list[tuple[float, float]]] = {}
    for cell, result in zip(cells, spread(measure, cells, options.processes), strict=True):
        for signal in cell.signals:
            pair = result[signal][0], result[""][0]
            found.setdefault((signal, (cell.scenario, cell.load)), []).append(pair)
    lines = [
        f"Of {CONFIRMED} rows where each signal seemed to matter most, on {options.confirm} other seeds "
        f"from {FRESH_SEED} on, the one where it does; the interval holds for all {CONFIRMED} together.",
        "",
        "| without | matters most | in the first table | on other seeds (95 %) | verdict |",
        "| --- " * 5 + "|",
    ]
    for signal, places in rows.items():
        rates = [(_change(found[signal, place]), place) for place in places]
        certain = [row for row in rates if row[0].value <= 1.0 - THRESHOLD and not row[0].high >= 1.0]
        change, (name, load) = min(certain or rates, key=lambda row: row[0].value)
        if certain:
            verdict = "stays"
        else:
            guards = ablations[signal].guards
            verdict = f"guards {guards}" if guards else "**no reason to stay**"
        there = changes[signal][name]["goodput"][LOADS.index(load)]
        interval = f"{_signed(change.value)} ({_signed(change.low)} … {_signed(change.high)})"
        lines.append(f"| {signal} | {label(name, load)} | {100 * there:+.1f} % | {interval} | {verdict} |")
    return "\n".join(lines)


def _change(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Goodput without a signal ÷ with it, over seeds; the interval allows for the choice among rows."""
    off, on = zip(*pairs, strict=True)
    return ratio(Account.of_rates(off), Account.of_rates(on), level=1.0 - (1.0 - LEVEL) / CONFIRMED)


def _signed(share: float) -> str:
    return f"{100.0 * (share - 1.0):+.1f} %"


def run(
    options: argparse.Namespace,
    names: Sequence[str],
    measure: Callable[[Cell], Results],
    ablations: Mapping[str, Ablation],
    chance: Sequence[str] = (),
    suite: str = f"Scenario suite version {VERSION}",
) -> None:
    """Measure every cell, print the table and write what was asked for."""
    seeds = EVALUATION_SEEDS if options.seeds == "evaluation" else DEVELOPMENT_SEEDS
    signals = tuple(options.signal or ablations)
    cells = [
        Cell(name, load, seed, options.requests, signals)
        for name in names
        for load in LOADS
        for seed in seeds
    ]
    found = table(cells, spread(measure, cells, options.processes))
    changes = {signal: found[signal] for signal in signals if signal in found}
    text = (
        f"{suite}, {options.seeds} seeds {seeds}, {options.requests} requests each. "
        "Change of goodput in per cent with one signal off, least … most over the loads.\n\n"
        f"{markdown(changes, ablations, chance)}"
    )
    if options.confirm:
        text += "\n\n" + confirm(changes, measure, ablations, options)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(changes, indent=1) + "\n", encoding="utf-8")
