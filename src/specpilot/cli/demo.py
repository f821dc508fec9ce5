"""``specpilot demo``: the main job end to end on the bundled pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from specpilot.cli.options import LookupDepthOption, MaxNodesOption, depth_within, real, whole
from specpilot.cli.output import JsonOption, check_writable, console, progress, write_json
from specpilot.control import ControllerConfig
from specpilot.demo.runner import DemoConfig, run_demo

DEFAULTS = DemoConfig()


def run(
    context: typer.Context,
    requests: Annotated[
        int, whole("≥ 1", "400", help="Live requests under each of the two policies.")
    ] = DEFAULTS.requests,
    seed: Annotated[int, whole("", "1", help="Seed of the mixture and the arrivals.")] = DEFAULTS.seed,
    load: Annotated[
        float, real("in (0, 1)", "0.4", help="Arrival rate ÷ measured capacity.")
    ] = DEFAULTS.load,
    max_tokens: Annotated[
        int, whole("≥ 1", "24", help="Most output tokens of a suggestion.")
    ] = DEFAULTS.max_tokens,
    slo_p95_ms: Annotated[
        float, real("> 0", "250", help="End-to-end latency SLO.")
    ] = DEFAULTS.promises.slo_p95_ms,
    pass_budget: Annotated[
        float, real("≥ 1", "2", help="Target passes per request, on average.")
    ] = DEFAULTS.promises.pass_budget,
    max_nodes: MaxNodesOption = DEFAULTS.promises.max_nodes,
    lookup_depth: LookupDepthOption = DEFAULTS.promises.lookup_depth,
    engine: Annotated[str, typer.Option(help="onnx or transformers.")] = "onnx",
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page with plots.", show_default=False)
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the live run's trace (.jsonl, .gz, .zst).", show_default=False
        ),
    ] = None,
    json_target: JsonOption = None,
) -> None:
    """Run the bundled workload live and by replay, and judge both promises.

    Exit status 1 if a promise or a check (lossless output, live = replay) is broken.
    """
    from specpilot.demo.pair_engine import load_engine
    from specpilot.demo.report import render, write_report
    from specpilot.trace import write_trace

    check_writable(json_target, report, trace)
    promises: ControllerConfig = replace(
        DEFAULTS.promises,
        slo_p95_ms=slo_p95_ms,
        pass_budget=pass_budget,
        max_nodes=max_nodes,
        lookup_depth=depth_within(context, lookup_depth, max_nodes),
    )
    config = DemoConfig(requests=requests, seed=seed, load=load, max_tokens=max_tokens, promises=promises)
    screen = console(json_target)
    with progress(screen) as bar:
        task = bar.add_task("loading the pair", total=None)
        loaded = load_engine(engine)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        outcome = run_demo(loaded, config, tell)
    for line in render(outcome):
        screen.print(line)
    if report is not None:
        write_report(report, outcome)
        screen.print(f"Report: {report}", soft_wrap=True)
    if trace is not None:
        header, records = outcome.traces[outcome.specpilot.name]
        write_trace(trace, header, records)
    write_json(json_target, outcome.to_json())
    if not outcome.kept:
        raise typer.Exit(1)
