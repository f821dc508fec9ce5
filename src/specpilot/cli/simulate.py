"""``specpilot simulate``: synthetic or real arrivals, one or many replicas, drift and faults."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from specpilot.cli.inputs import check_text, numbers, reading
from specpilot.cli.options import (
    COSTS_WANTED,
    CostOption,
    DraftMsOption,
    MaxNodesOption,
    VerifyMsOption,
    VerifyTokenMsOption,
    real,
    refuse,
    whole,
)
from specpilot.cli.output import JsonOption, check_writable, console, progress, write_json
from specpilot.control import ControllerConfig

DEFAULTS = ControllerConfig()
DEFAULT_POLICIES = ("specpilot", "static-0", "static-4", "static-8", "oracle")
NOTES = (
    "Simulated requests, agreement and times: ratios compare policies, no claim about a real model.",
    "Requests are spread over the replicas at random; each has its own engine, controller and budget.",
)


def run(
    context: typer.Context,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help=f"A policy's name, bayes among them; repeatable. Default: {', '.join(DEFAULT_POLICIES)}.",
            show_default=False,
        ),
    ] = None,
    scenario: Annotated[
        str, typer.Option(help="The suite's scenario: agreement, prompts, costs, promises.")
    ] = "steady",
    arrivals: Annotated[
        Path | None,
        typer.Option(
            help="CSV with TIMESTAMP, ContextTokens, GeneratedTokens: times and lengths.", show_default=False
        ),
    ] = None,
    speed: Annotated[
        float, real("> 0", "10", help="How much faster than recorded the CSV's requests come.")
    ] = 1.0,
    requests: Annotated[
        int, whole("≥ 1", "400", help="Requests in all, or lines of the CSV at most.")
    ] = 2000,
    replicas: Annotated[int, whole("≥ 1", "4", help="Engines, each with a controller of its own.")] = 1,
    load: Annotated[
        float, real("> 0", "0.4", help="Generated arrivals ÷ capacity under specpilot; above 1: overload.")
    ] = 0.5,
    rate: Annotated[
        float | None,
        real(
            "> 0", "5", help="Generated arrivals per second in all, in place of --load.", show_default=False
        ),
    ] = None,
    burst: Annotated[
        float | None,
        real("≥ 1", "4", help="A quarter of the requests come this many times as fast.", show_default=False),
    ] = None,
    drift: Annotated[
        str | None,
        typer.Option(help="Agreement in equal parts of the run, such as 0.75,0.25,0.75.", show_default=False),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompt lengths to draw from, such as 20,100,300; repeat one to weigh it.",
            show_default=False,
        ),
    ] = None,
    outage: Annotated[
        str | None,
        typer.Option(
            help="Part of the run in which the draft fails, as shares: 0.4-0.5.", show_default=False
        ),
    ] = None,
    max_tokens: Annotated[int, whole("≥ 1", "24", help="Most output tokens per request.")] = 24,
    cost: CostOption = None,
    draft_ms: DraftMsOption = None,
    verify_ms: VerifyMsOption = None,
    verify_token_ms: VerifyTokenMsOption = None,
    slo_p95_ms: Annotated[
        float | None,
        real("> 0", "250", help="End-to-end latency SLO; default: the scenario's.", show_default=False),
    ] = None,
    pass_budget: Annotated[
        float | None,
        real("≥ 1", "2", help="Target passes per request; default: the scenario's.", show_default=False),
    ] = None,
    max_nodes: MaxNodesOption = 0,
    processes: Annotated[int, whole("≥ 1", "2", help="Processes for the replicas.")] = 1,
    seed: Annotated[int, whole("", "1", help="Seed of everything that is drawn.")] = 1,
    json_target: JsonOption = None,
) -> None:
    """Simulate policies on synthetic or real arrivals: drift, context mix, replicas, overload, faults.

    Exit status 1 if specpilot was simulated and broke a promise.
    """
    from dataclasses import replace

    from specpilot.demo.report import policy_rows, result_table
    from specpilot.simulation.account import Account
    from specpilot.simulation.arrivals import read_arrivals
    from specpilot.simulation.fleet import BATCH, Simulation, run_fleet
    from specpilot.simulation.policies import SIMULATED_NAMES, check_policy
    from specpilot.simulation.scenarios import scenario as find
    from specpilot.simulation.stream import costs_from

    names = [check_policy(name, SIMULATED_NAMES) for name in policy or DEFAULT_POLICIES]
    check_writable(json_target, read=[arrivals, cost])
    if rate is not None:
        refuse(context, "together with --rate, which replaces it", "load")
    if arrivals is None:
        refuse(context, "without --arrivals: generated requests have no recorded pace", "speed")
    else:
        replaced = ("load", "rate", "burst", "prompts")
        refuse(context, "together with --arrivals, which has times and prompt lengths of its own", *replaced)
    if processes < 1:
        raise ValueError(f"processes: {processes} is not ≥ 1; use 1 for this process alone")
    if processes > 1 and replicas <= BATCH:
        refuse(
            context, f"with {replicas} of --replicas, where one process takes {BATCH} at a time", "processes"
        )
    if rate is None and not 0.0 < load < math.inf:
        raise ValueError(f"load: {load} is not > 0 and finite; 0.5 is typical, above 1 is overload")
    config = find(scenario).config
    config = replace(
        config,
        slo_p95_ms=config.slo_p95_ms if slo_p95_ms is None else slo_p95_ms,
        pass_budget=config.pass_budget if pass_budget is None else pass_budget,
        max_nodes=max_nodes,
    )
    if arrivals is not None:
        check_text("arrivals", arrivals)
        # Reads the whole file once: what is wrong with it shows before the work.
        requests = min(requests, sum(1 for _ in read_arrivals(arrivals)))
    given = cost is not None or any(value is not None for value in (draft_ms, verify_ms, verify_token_ms))
    with reading("cost", cost, COSTS_WANTED):
        costs = costs_from(cost, draft_ms, verify_ms, verify_token_ms) if given else None
    spec = Simulation(
        scenario=scenario,
        requests=requests,
        rate=1.0 if rate is None else rate,
        replicas=replicas,
        seed=seed,
        arrivals=arrivals,
        speed=speed,
        config=config,
        costs=costs,
        drift=() if drift is None else tuple(numbers("drift", drift, float, "0.75,0.25,0.75")),
        prompts=() if prompts is None else tuple(numbers("prompts", prompts, int, "20,100,300")),
        max_tokens=max_tokens,
        burst=burst,
        outage=_span(outage),
    )
    if arrivals is None and rate is None:
        spec = replace(spec, rate=load * spec.capacity() * replicas)
    screen = console(json_target)
    results, wall_s = [], {}
    with progress(screen) as bar:
        task = bar.add_task("simulating", total=len(names) * -(-replicas // BATCH))
        for name in names:
            start = time.perf_counter()
            account = Account(config.slo_p95_ms)
            for part in run_fleet(spec, name, processes):
                account.merge(part)
                bar.advance(task)
            wall_s[name] = time.perf_counter() - start
            results.append(account.result(name))
    screen.print(result_table(policy_rows(results)))
    pace = ", ".join(
        f"{result.name} {60.0 * result.arrivals / wall_s[result.name]:,.0f}" for result in results
    )
    screen.print(f"Simulated requests a minute, {processes} process{'es' * (processes > 1)}: {pace}.")
    for note in NOTES:
        screen.print(f"[dim]{note}[/]")
    write_json(
        json_target,
        {
            "policies": {result.name: result.to_json() for result in results},
            "scenario": scenario,
            "replicas": replicas,
            "rate_per_s": None if arrivals else spec.rate,
            "seed": seed,
            "wall_s": wall_s,
            "limits": NOTES,
        },
    )
    own = next((result for result in results if result.name == "specpilot"), None)
    if own is not None and (own.budget_violations or own.slo_attainment < 0.95):
        raise typer.Exit(1)


def _span(text: str | None) -> tuple[float, float] | None:
    """Two shares such as 0.4-0.5.

    Raises:
        ValueError: if they are not two numbers.
    """
    if text is None:
        return None
    values = numbers("outage", text, float, "0.4-0.5", "-")
    if len(values) != 2:
        raise ValueError(f"outage: {text!r} is not two shares; write 0.4-0.5 for the fifth tenth of the run")
    return values[0], values[1]
