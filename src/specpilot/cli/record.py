"""``specpilot record``: generations of a pair → an agreement trace, and the engine's measured costs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from specpilot.cli.inputs import check_text
from specpilot.cli.options import DraftOption, TargetOption, whole
from specpilot.cli.output import JsonOption, check_writable, console, progress, write_json

SERVED = 16
"""Prompts that are also served, to measure what cycles take that really run."""


def run(
    out: Annotated[Path, typer.Argument(help="Where to write the agreement trace.", show_default=False)],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help='JSON Lines of {"prompt": …, "request": name?, "label": class?}. Default: bundled.',
            show_default=False,
        ),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(help="Also measure the engine, and write its costs here.", show_default=False),
    ] = None,
    max_tokens: Annotated[int, whole("≥ 1", "24", help="Most output tokens per prompt.")] = 24,
    limit: Annotated[
        int | None, whole("≥ 1", "24", help="Only the first so many prompts.", show_default=False)
    ] = None,
    target: TargetOption = None,
    draft: DraftOption = None,
    engine: Annotated[str, typer.Option(help="onnx or transformers.")] = "onnx",
    json_target: JsonOption = None,
) -> None:
    """Record where the draft agrees with the target along the target's own greedy text.

    Exit status 1 if the engine is inconsistent: its choice at a position depends on how the tokens were
    split into passes (near-ties apart), so that a replay would not be exact.
    """
    from specpilot.demo.live import service_costs
    from specpilot.demo.pair_engine import load_engine
    from specpilot.simulation.costs import write_costs
    from specpilot.simulation.measure import measure_costs
    from specpilot.simulation.record import Recorder
    from specpilot.trace import write_agreement
    from specpilot.trace.compressed import COMPRESSED

    check_writable(out, costs, json_target, read=[prompts])
    if out.suffix in COMPRESSED:
        raise ValueError(f"out: {out.name!r}: an agreement trace is plain text; leave {out.suffix} out")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} is not ≥ 1; give a count, or leave it out")
    check_text("prompts", prompts)
    wanted = read_prompts(prompts)[:limit]
    screen = console(json_target)
    with progress(screen) as bar:
        task = bar.add_task("recording", total=len(wanted))
        loaded = load_engine(engine, target, draft)
        recorder = Recorder(loaded.target, loaded.draft)
        tokens = {name: loaded.encode(text) for name, _, text in wanted}
        recordings = {}
        for name, label, _ in wanted:
            try:
                recordings[name] = recorder.record(name, tokens[name], max_tokens, label=label)
            except ValueError as error:
                raise ValueError(f"prompts: {name}: {error}") from None
            bar.advance(task)
        if costs is not None:
            bar.update(task, description="measuring the engine")
            bare = measure_costs(loaded.target, loaded.draft, engine=loaded.name)
            some = dict(islice(recordings.items(), SERVED))
            write_costs(costs, service_costs(loaded, tokens, some, bare))
    traces = [recording.trace for recording in recordings.values()]
    inconsistent = sum(recording.inconsistent for recording in recordings.values())
    write_agreement(out, traces)
    bits = [bit for trace in traces for bit in trace.agree]
    agreement = sum(bit or 0 for bit in bits) / len(bits)
    screen.print(
        f"{len(traces)} requests, {len(bits)} positions: the draft agrees at {agreement:.1%} of them."
    )
    cut = sum(trace.ended is None for trace in traces)
    if cut:
        screen.print(f"{cut} of {len(traces)} outputs end where the context does, before --max-tokens.")
    if inconsistent:
        screen.print(
            f"[bold red]Inconsistent[/]: at {inconsistent} positions another split of the passes differs."
        )
    write_json(
        json_target,
        {
            "requests": len(traces),
            "positions": len(bits),
            "agreement": agreement,
            "inconsistent_positions": inconsistent,
            "cut_by_context": cut,
            "near_ties": sum(trace.near_ties(len(trace.agree)) for trace in traces),
            "trace": str(out),
            "costs": None if costs is None else str(costs),
        },
    )
    if inconsistent:
        raise typer.Exit(1)


def read_prompts(path: Path | None) -> list[tuple[str, str | None, str]]:
    """(name, class, text) of each prompt; the bundled ones where no file is given.

    Raises:
        ValueError: with the line's number, for anything that is not a prompt.
        OSError: if the file cannot be read.
    """
    if path is None:
        from specpilot.demo.workload import bundled_prompts

        return [(prompt.key, prompt.label, prompt.text) for prompt in bundled_prompts()]
    from specpilot.trace.lines import read_numbered

    names: set[str] = set()

    def prompt(number: int, record: Mapping[str, Any]) -> tuple[str, str | None, str]:
        text, label = record.get("prompt"), record.get("label")
        if not isinstance(text, str) or not text:
            raise ValueError('prompt: there is no text; write {"prompt": "…"}')
        name = str(record.get("request", f"line-{number}"))
        if name in names:
            raise ValueError(f"request: {name!r} occurs twice; names must be unique")
        names.add(name)
        return name, None if label is None else str(label), text

    found = list(read_numbered(path, prompt))
    if not found:
        raise ValueError(f"{path.name}: no prompts; write one JSON object a line")
    return found
