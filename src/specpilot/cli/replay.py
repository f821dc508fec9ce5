"""``specpilot replay TRACE``: any policies over an agreement trace, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specpilot.cli.inputs import check_text, reading
from specpilot.cli.options import (
    COSTS_WANTED,
    CostOption,
    DraftMsOption,
    LookupDepthOption,
    MaxNodesOption,
    VerifyMsOption,
    VerifyTokenMsOption,
    real,
    refuse,
    whole,
)
from specpilot.cli.output import JsonOption, check_writable, console, progress, write_json
from specpilot.control import ControllerConfig

if TYPE_CHECKING:
    from specpilot.simulation.results import PolicyResult

DEFAULTS = ControllerConfig()


def run(
    context: typer.Context,
    trace: Annotated[
        Path, typer.Argument(help="Agreement trace, as written by `specpilot record`.", show_default=False)
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", help="A policy's name; repeatable. Default: all.", show_default=False),
    ] = None,
    cost: CostOption = None,
    draft_ms: DraftMsOption = None,
    verify_ms: VerifyMsOption = None,
    verify_token_ms: VerifyTokenMsOption = None,
    requests: Annotated[
        int | None,
        whole("≥ 1", "400", help="Requests to replay. Default: each of the trace once.", show_default=False),
    ] = None,
    max_tokens: Annotated[int, whole("≥ 1", "24", help="Most output tokens per request.")] = 24,
    load: Annotated[
        float, real("≥ 0", "0.4", help="Arrival rate ÷ capacity of specpilot; 0: closed loop, one client.")
    ] = 0.4,
    seed: Annotated[int, whole("", "1", help="Seed of the arrivals and of unknown bits.")] = 1,
    slo_p95_ms: Annotated[float, real("> 0", "250", help="End-to-end latency SLO.")] = DEFAULTS.slo_p95_ms,
    pass_budget: Annotated[float, real("≥ 1", "2", help="Target passes per request.")] = DEFAULTS.pass_budget,
    max_nodes: MaxNodesOption = DEFAULTS.max_nodes,
    lookup_depth: LookupDepthOption = DEFAULTS.lookup_depth,
    no_ledger: Annotated[
        bool, typer.Option("--no-ledger", help="No pass budget: what it costs the others.")
    ] = False,
    json_target: JsonOption = None,
) -> None:
    """Replay policies over an agreement trace: exact accepted lengths, measured times.

    Exit status 1 if specpilot was replayed and broke a promise.
    """
    from specpilot.demo.report import policy_rows, result_table
    from specpilot.simulation.baselines import STATIC_NAMES
    from specpilot.simulation.policies import POLICY_NAMES, TREE_NAMES, check_policy, replay_policy
    from specpilot.simulation.replay import LIMITS
    from specpilot.simulation.results import best_of
    from specpilot.simulation.stream import at_load, costs_from
    from specpilot.trace import read_agreement

    known = (*POLICY_NAMES, *(TREE_NAMES if max_nodes else ()))
    for name in policy or ():
        if name in TREE_NAMES and not max_nodes:
            raise ValueError(f"policy: {name!r} needs token trees; give --max-nodes, e.g. 32")
    names = [check_policy(name, known) for name in policy or known]
    if no_ledger:
        refuse(context, "together with --no-ledger, which has no budget", "pass_budget")
    check_writable(json_target, read=[trace, cost])
    check_text("trace", trace)
    with reading("cost", cost, COSTS_WANTED):
        costs = costs_from(cost, draft_ms, verify_ms, verify_token_ms)
    # Every pass yields a token, so that a budget of max_tokens never binds.
    config = ControllerConfig(
        pass_budget=float(max(1, max_tokens)) if no_ledger else pass_budget,
        slo_p95_ms=slo_p95_ms,
        max_nodes=max_nodes,
        lookup_depth=lookup_depth,
    )
    traces = read_agreement(trace)
    arriving, drawn = at_load(traces, costs, config, load, count=requests, max_tokens=max_tokens, seed=seed)
    screen = console(json_target)
    results = []
    with progress(screen) as bar:
        task = bar.add_task("replaying", total=len(names))
        for name in names:
            results.append(replay_policy(name, arriving, costs, config, closed_loop=load == 0.0).result)
            bar.advance(task)
    notes = [*LIMITS, f"Costs: {costs.engine}. Unknown bits drawn: {drawn}."]
    screen.print(result_table(policy_rows(results)))
    for note in notes:
        screen.print(f"[dim]{note}[/]")
    rows = {result.name: result for result in results}
    statics = [result for result in results if result.name in STATIC_NAMES]
    write_json(
        json_target,
        {
            "policies": {name: result.to_json() for name, result in rows.items()},
            "best_static": best_of(statics).name if statics else None,
            "gain_over_best_static": _ratio(rows.get("specpilot"), best_of(statics) if statics else None),
            "oracle_share": _ratio(rows.get("specpilot"), rows.get("oracle")),
            "drawn_bits": drawn,
            "load": load,
            "seed": seed,
            "limits": notes,
        },
    )
    own = rows.get("specpilot")
    if own is not None and (own.budget_violations or own.slo_attainment < 0.95):
        raise typer.Exit(1)


def _ratio(own: PolicyResult | None, other: PolicyResult | None) -> float | None:
    """Goodput over goodput, where both were replayed."""
    if own is None or other is None or other.goodput_tokens_per_s == 0.0:
        return None
    return own.goodput_tokens_per_s / other.goodput_tokens_per_s
