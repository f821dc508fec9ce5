"""``specpilot complete PROMPT``: one completion on the terminal; ``--explain`` shows each cycle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specpilot.cli.output import JsonOption, check_writable, console, write_json
from specpilot.control import ControllerConfig

if TYPE_CHECKING:
    from rich.console import Console

    from specpilot.pair import Completion, Pair

DEFAULTS = ControllerConfig()


def run(
    prompt: Annotated[str, typer.Argument(help="The text to continue.", show_default=False)],
    max_tokens: Annotated[int, typer.Option(help="Most output tokens.")] = 24,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show each cycle: proposed, accepted, own token, τ, reason.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[
        int | None, typer.Option(help="Same prompt and seed, same text.", show_default=False)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Target: folder or hub id. Default: bundled.", show_default=False)
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="Draft: folder or hub id. Default: bundled.", show_default=False)
    ] = None,
    engine: Annotated[str, typer.Option(help="onnx or transformers.")] = "onnx",
    json_target: JsonOption = None,
) -> None:
    """Complete one prompt within the promises."""
    from specpilot.pair import load_pair

    check_writable(json_target)
    screen = console(json_target)
    pair = load_pair(target, draft, engine)
    completion = pair.complete(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
    screen.print(f"[dim]{_safe(prompt)}[/][bold]{_safe(completion.text)}[/]")
    screen.print(
        f"[dim]{len(completion.token_ids)} tokens in {completion.e2e_ms:.0f} ms, "
        f"{completion.target_passes} target passes, ended by {completion.stop_cause.value}"
        f"{_because(completion)}[/]"
    )
    if explain:
        _explain(screen, pair, completion)
    write_json(json_target, _as_json(pair, completion))


def _because(completion: Completion) -> str:
    """What is said of the end, where there is more to say than its cause."""
    return f" ({_safe(completion.reason)})" if completion.reason else ""


def _explain(screen: Console, pair: Pair, completion: Completion) -> None:
    """One line per cycle: green was accepted, red thrown away, blue is the target's own token."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("cycle", "τ", "proposed", "accepted", "own token", "why"):
        table.add_column(name, justify="right" if name in ("cycle", "τ", "accepted") else "left")
    for number, cycle in enumerate(completion.cycles, 1):
        kept = len(cycle.accepted)
        block = cycle.block.token_ids
        proposed = f"[green]{_piece(pair, block[:kept])}[/][red strike]{_piece(pair, block[kept:])}[/]"
        table.add_row(
            str(number),
            str(len(block)),
            proposed if block else "[dim]–[/]",
            f"{kept} of {len(block)}",
            f"[blue]{_piece(pair, [cycle.own])}[/] ({cycle.own_kind})",
            _safe(str(cycle.reason)) + (f" [red]{_safe(cycle.fault)}[/]" if cycle.fault else ""),
        )
    screen.print(table)


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
