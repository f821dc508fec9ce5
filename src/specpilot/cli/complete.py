"""``specpilot complete PROMPT``: one completion on the terminal; ``--explain`` shows each cycle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specpilot.cli.options import DraftOption, MaxNodesOption, TargetOption, given, real, refuse, whole
from specpilot.cli.output import JsonOption, check_writable, console, write_json
from specpilot.control import ControllerConfig, StopCause

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

    from specpilot.decoding.request import CycleDetail
    from specpilot.pair import Completion, Pair

DEFAULTS = ControllerConfig()


def run(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="The text to continue.", show_default=False)],
    max_tokens: Annotated[int, whole("≥ 1", "24", help="Most output tokens.")] = 24,
    drafter: Annotated[
        str,
        typer.Option(
            help="Who proposes: model (the draft model), lookup (the text so far) or both, in a tree."
        ),
    ] = "model",
    max_nodes: MaxNodesOption = DEFAULTS.max_nodes,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show each cycle: proposed, accepted, own token, τ, reason.")
    ] = False,
    temperature: Annotated[float, real("≥ 0", "0.7", help="0 is greedy.")] = 0.0,
    seed: Annotated[
        int | None, whole("", "1", help="Same prompt and seed, same text.", show_default=False)
    ] = None,
    slo_p95_ms: Annotated[float, real("> 0", "250", help="End-to-end latency SLO.")] = DEFAULTS.slo_p95_ms,
    pass_budget: Annotated[float, real("≥ 1", "2", help="Target passes per request.")] = DEFAULTS.pass_budget,
    target: TargetOption = None,
    draft: DraftOption = None,
    engine: Annotated[str, typer.Option(help="onnx or transformers.")] = "onnx",
    json_target: JsonOption = None,
) -> None:
    """Complete one prompt within the promises.

    Exit status 1 if the target model failed.
    """
    from specpilot.pair import load_pair

    check_writable(json_target)
    if temperature == 0.0:
        refuse(context, "at temperature 0, where nothing is drawn", "seed")
    if drafter == "lookup":
        refuse(context, "together with --drafter lookup, which proposes chains", "max_nodes")
    if drafter == "both" and given(context, "max_nodes") and not max_nodes:
        raise ValueError("max_nodes: 0 is not in 1…256: --drafter both proposes trees; use --drafter model")
    screen = console(json_target)
    config = ControllerConfig(pass_budget=pass_budget, slo_p95_ms=slo_p95_ms, max_nodes=max_nodes)
    pair = load_pair(target, draft, engine, config=config, drafter=drafter)
    completion = pair.complete(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
    screen.print(f"[dim]{_safe(prompt)}[/][bold]{_safe(completion.text)}[/]", soft_wrap=True)
    screen.print(
        f"[dim]{len(completion.token_ids)} tokens in {completion.e2e_ms:.0f} ms, "
        f"{completion.target_passes} target passes, ended by {completion.stop_cause.value}"
        f"{_because(completion)}[/]",
        soft_wrap=True,
    )
    if explain:
        _explain(screen, pair, completion)
    write_json(json_target, _as_json(pair, completion))
    if completion.stop_cause is StopCause.ERROR:
        raise typer.Exit(1)


def _because(completion: Completion) -> str:
    """What is said of the end, where there is more to say than its cause."""
    return f" ({_safe(completion.reason)})" if completion.reason else ""


def _explain(screen: Console, pair: Pair, completion: Completion) -> None:
    """Each cycle: green was accepted, red thrown away, blue is the target's own token; a tree as a tree."""
    for number, cycle in enumerate(completion.cycles, 1):
        block, kept = cycle.block, len(cycle.accepted)
        source = f", {cycle.drafter}" if cycle.drafter else ""
        if block.is_chain:
            head = f"τ = {len(block)} of at most {cycle.max_draft}{source}, {kept} accepted"
        else:
            head = f"a tree of {len(block)} nodes, {block.depth} deep{source}, {kept} accepted"
        screen.print(f"[bold]cycle {number}[/]  {head}", soft_wrap=True)
        if block.is_chain:
            tokens = block.token_ids
            proposed = f"[green]{_piece(pair, tokens[:kept])}[/][red strike]{_piece(pair, tokens[kept:])}[/]"
            shown = proposed if tokens else "[dim]nothing: plain target decoding[/]"
            screen.print(f"  proposed  {shown}", soft_wrap=True)
        else:
            screen.print(_tree(pair, cycle), soft_wrap=True)
        lines = [
            f"  {cycle.own_kind:<9} [blue]{_piece(pair, [cycle.own])}[/]",
            f"  because   {_safe(str(cycle.reason))}",
        ]
        if cycle.fault:
            lines.append(f"  [red]fault     {_safe(cycle.fault)}[/]")
        for line in lines:
            screen.print(line, soft_wrap=True)


def _tree(pair: Pair, cycle: CycleDetail) -> Tree:
    """The proposed tree; runs of tokens with one successor stand on one line."""
    from rich.tree import Tree

    block, path = cycle.block, set(cycle.path)
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(block.parents):
        children.setdefault(parent, []).append(node)
    root = Tree("[dim]proposed[/]", guide_style="dim")
    waiting = [(root, node) for node in reversed(children[-1])]
    while waiting:
        branch, node = waiting.pop()
        run = [node]
        while len(below := children.get(run[-1], [])) == 1 and (below[0] in path) == (node in path):
            run.append(below[0])
        style = "green" if node in path else "red"
        piece = _piece(pair, [block.token_ids[at] for at in run])
        label = branch.add(f"[{style}]{piece}[/]")
        waiting += [(label, at) for at in reversed(children.get(run[-1], []))]
    return root


def _as_json(pair: Pair, completion: Completion) -> dict[str, Any]:
    return {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "stop_cause": completion.stop_cause.value,
        "target_passes": completion.target_passes,
        "e2e_ms": completion.e2e_ms,
        "reason": completion.reason,
        "cycles": [
            {
                "max_draft": cycle.max_draft,
                "proposed": list(cycle.block.token_ids),
                "parents": list(cycle.block.parents),
                "path": list(cycle.path),
                "accepted": len(cycle.accepted),
                "own": cycle.own,
                "own_kind": cycle.own_kind,
                "emitted": len(cycle.emitted),
                "binding": cycle.reason.binding.value,
                "numbers": dict(cycle.reason.numbers),
                "fault": cycle.fault,
            }
            for cycle in completion.cycles
        ],
    }


def _piece(pair: Pair, token_ids: Sequence[int]) -> str:
    """Tokens as they read, with line breaks made visible."""
    return _safe(pair.decode(token_ids).replace("\n", "⏎"))


def _safe(text: str) -> str:
    """Text that rich does not take for markup."""
    from rich.markup import escape

    return escape(text)
