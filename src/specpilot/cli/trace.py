"""``specpilot trace``: check a trace, write it as Parquet, or make one of another system's log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from specpilot.cli.inputs import check_file, check_text
from specpilot.cli.output import JsonOption, check_suffix, check_writable, console, write_json

PARQUET = (".parquet",)
TRACES = (".jsonl", ".gz", ".zst")
app = typer.Typer(help="Check and convert traces.", no_args_is_help=True)

TraceArgument = Annotated[
    Path, typer.Argument(help="Trace file (.jsonl, .gz or .zst).", metavar="TRACE", show_default=False)
]
PartialOption = Annotated[
    bool,
    typer.Option(
        "--partial", help="Accept a trace that was cut or is still being written; say what is left out."
    ),
]


@app.command("validate")
def validate_command(
    trace: TraceArgument,
    partial: PartialOption = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Also replay it: does the policy decide the same again?")
    ] = False,
    json_target: JsonOption = None,
) -> None:
    """Check every line of a trace, and what lines say about each other.

    Exit status 1 if a replay decides differently, 2 with the line's number if the trace is broken.
    """
    from specpilot.trace.files import read_trace
    from specpilot.trace.replay import replay_decisions
    from specpilot.trace.validate import validate

    check_file("trace", trace)
    check_writable(json_target, read=[trace])
    found = validate(trace, partial=partial)
    screen = console(json_target)
    result: dict[str, Any] = {
        name: getattr(found, name)
        for name in ("lines", "requests", "refused", "cycles", "plain_cycles", "ended", "open_requests")
    }
    result |= {"source": found.header.source, "policy": found.header.policy, "left_out": found.left_out}
    screen.print(
        f"{trace.name}: {found.lines} lines, {found.requests} requests ({found.refused} refused, "
        f"{found.open_requests} not ended), {found.cycles} cycles ({found.plain_cycles} plain); "
        f"source {found.header.source}, policy {found.header.policy}.",
        soft_wrap=True,
    )
    if found.left_out:
        screen.print(f"Left out: {found.left_out}", soft_wrap=True)
    different = 0
    if replay:
        replayed = replay_decisions(read_trace(trace, partial=partial))
        different = replayed.different
        result["replay"] = {
            "admissions": replayed.admissions,
            "plans": replayed.plans,
            "stops": replayed.stops,
            "different": different,
            "differences": replayed.differences,
        }
        screen.print(
            f"Replay: {replayed.admissions} admissions, {replayed.plans} plans, {replayed.stops} stops; "
            f"{different} differ."
        )
        for line in replayed.differences:
            screen.print(f"  {line}", soft_wrap=True)
    write_json(json_target, result)
    if different:
        raise typer.Exit(1)


@app.command("export")
def export_command(
    trace: TraceArgument,
    cycles: Annotated[
        Path, typer.Argument(help="Parquet file for the cycles.", metavar="CYCLES", show_default=False)
    ],
    requests: Annotated[
        Path | None,
        typer.Argument(
            help="Parquet file for the requests. Default: beside it, with -requests in its name.",
            metavar="REQUESTS",
            show_default=False,
        ),
    ] = None,
    partial: PartialOption = False,
) -> None:
    """Write a trace as two Parquet tables: cycles and requests."""
    from specpilot.trace.parquet import export_parquet

    second = requests or cycles.with_name(f"{cycles.stem}-requests{cycles.suffix}")
    check_file("trace", trace)
    check_writable(cycles, second, read=[trace])
    check_suffix("cycles", cycles, PARQUET)
    check_suffix("requests", second, PARQUET)
    count = export_parquet(trace, cycles, second, partial=partial)
    console(None).print(f"{count} cycles: {cycles}; their requests: {second}", soft_wrap=True)


@app.command("import")
def import_command(
    log: Annotated[Path, typer.Argument(help="The other system's log.", metavar="LOG", show_default=False)],
    trace: Annotated[
        Path,
        typer.Argument(help="Trace to write (.jsonl, .gz or .zst).", metavar="TRACE", show_default=False),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--format", help="steps: a step a line (CSV or JSON Lines); vllm: its per-request metrics."
        ),
    ] = "steps",
    json_target: JsonOption = None,
) -> None:
    """Make a trace of another system's log, and say what such a log cannot tell."""
    from specpilot.trace.files import write_trace
    from specpilot.trace.foreign import KINDS, read_log

    check_text("log", log)
    check_writable(trace, json_target, read=[log])
    check_suffix("trace", trace, TRACES)
    try:
        found = read_log(log, kind)
    except ValueError as error:
        other = next((name for name in KINDS if name != kind and _reads(log, name)), None)
        if other is None or kind not in KINDS:
            raise
        raise ValueError(f"{error}; this is a log of another format: give --format {other}") from None
    write_trace(trace, found.header, found.records)
    screen = console(json_target)
    screen.print(f"{trace}: {found.cycles} cycles of {found.requests} requests.", soft_wrap=True)
    screen.print(
        f"This log does not tell: {', '.join(found.lacks)}. Rules of diagnose that need them are not asked.",
        soft_wrap=True,
    )
    write_json(json_target, {"requests": found.requests, "cycles": found.cycles, "lacks": list(found.lacks)})


def _reads(log: Path, kind: str) -> bool:
    """Whether a log is one of this kind."""
    from specpilot.trace.foreign import read_log

    try:
        read_log(log, kind)
    except ValueError:
        return False
    return True
