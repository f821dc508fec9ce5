"""``specpilot diagnose TRACE…``: findings from traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specpilot.cli.inputs import check_file
from specpilot.cli.options import refuse
from specpilot.cli.output import JsonOption, check_writable, console, progress, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from specpilot.diagnosis.compare import Comparison
    from specpilot.diagnosis.findings import Diagnosis
    from specpilot.diagnosis.rescore import Rescored
    from specpilot.diagnosis.speed import SpeedModel
    from specpilot.models.base import CausalLM


def run(
    context: typer.Context,
    traces: Annotated[
        list[Path],
        typer.Argument(help="Trace files (.jsonl, .gz, .zst).", metavar="TRACE…", show_default=False),
    ],
    before: Annotated[
        Path | None,
        typer.Option(
            metavar="TRACE", help="Compare with this earlier trace: what changed?", show_default=False
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page with plots.", show_default=False)
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial", help="Accept traces that were cut or are still written; say what is left out."
        ),
    ] = False,
    rescore: Annotated[
        bool,
        typer.Option(
            "--rescore",
            help="Confirm or refute a wrong draft cache: run recorded requests through the draft again.",
        ),
    ] = False,
    pair_target: Annotated[
        str | None,
        typer.Option(
            help="For --rescore: the target, folder or hub id. Default: bundled.", show_default=False
        ),
    ] = None,
    pair_draft: Annotated[
        str | None,
        typer.Option(
            help="For --rescore: the draft, folder or hub id. Default: bundled.", show_default=False
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="For --rescore: onnx or transformers.")] = "onnx",
    json_target: JsonOption = None,
) -> None:
    """Say why an engine is slow or wrong, from its traces: cause, evidence, remedy.

    Exit status 1 if a cause was found in a trace, 0 if all are healthy.
    """
    from specpilot.diagnosis.columns import read_columns
    from specpilot.diagnosis.compare import compare
    from specpilot.diagnosis.findings import diagnose
    from specpilot.diagnosis.rescore import rescore as again

    check_writable(json_target, report, read=[*traces, before])
    if before is not None and len(traces) != 1:
        raise ValueError(f"before: given with {len(traces)} traces; compare one trace with one earlier trace")
    for name, path in (("before", before), *(("trace", path) for path in traces)):
        check_file(name, path)
    screen = console(json_target)
    draft: CausalLM | None = None
    if not (rescore or pair_target is not None or pair_draft is not None):
        refuse(context, "without --rescore, which alone loads models", "engine")
    else:
        from specpilot.pair import load_pair

        draft = load_pair(pair_target, pair_draft, engine).draft
    done: list[Diagnosis] = []
    with progress(screen) as bar:
        paths = [*([] if before is None else [before]), *traces]
        task = bar.add_task("reading", total=len(paths))
        for path in paths:
            columns = read_columns(path, partial=partial)
            # An earlier trace is compared with, not judged.
            fresh = None if draft is None or path is before else again(path, draft, partial=partial)
            done.append(diagnose(columns, fresh))
            bar.advance(task)
    comparison = compare(done[0], done[1]) if before is not None else None
    judged = done[1:] if comparison is not None else done
    if comparison is not None:
        _show_comparison(screen, comparison)
    for diagnosis in judged:
        _show(screen, diagnosis)
    if report is not None:
        from specpilot.diagnosis.page import write_page

        write_page(report, done, comparison)
        screen.print(f"Report: {report}", soft_wrap=True)
    write_json(json_target, _result(judged, comparison))
    if any(diagnosis.primary is not None for diagnosis in judged):
        raise typer.Exit(1)


def _result(judged: list[Diagnosis], comparison: Comparison | None) -> dict[str, Any]:
    """One trace: its findings at the top; several: the first primary cause, and all under ``traces``."""
    single = judged[0].to_json()
    result: dict[str, Any] = single
    if len(judged) > 1:
        primaries = [diagnosis.primary for diagnosis in judged if diagnosis.primary is not None]
        result = {
            "findings": [finding for diagnosis in judged for finding in diagnosis.to_json()["findings"]],
            "primary": primaries[0] if primaries else None,
            "traces": [diagnosis.to_json() for diagnosis in judged],
        }
    if comparison is not None:
        result["comparison"] = comparison.to_json()
    return result


def _show(screen: Console, diagnosis: Diagnosis) -> None:
    trace = diagnosis.trace
    screen.print(
        f"[bold]{trace.name}[/]: {len(trace)} cycles of {len(trace.causes)} requests; "
        f"primary cause: [bold]{diagnosis.primary or 'none, healthy'}[/]",
        soft_wrap=True,
    )
    if trace.left_out:
        screen.print(f"  left out: {trace.left_out}", soft_wrap=True)
    if diagnosis.not_told:
        screen.print(f"  not in this trace: {', '.join(diagnosis.not_told)}", soft_wrap=True)
    screen.print(f"  {_engine(diagnosis.model)}", soft_wrap=True)
    if diagnosis.rescored is not None:
        screen.print(f"  {_fresh(diagnosis.rescored)}", soft_wrap=True)
    for place, finding in enumerate(diagnosis.findings, 1):
        screen.print(f"{place}. [bold]{finding.cause}[/] (confidence {finding.confidence:.2f})")
        for name, value in finding.evidence.items():
            screen.print(f"     {name.replace('_', ' '):<42} {value:>10.4g}", soft_wrap=True)
        screen.print(f"   → {finding.remedy}", soft_wrap=True)


def _fresh(rescored: Rescored) -> str:
    """The re-scoring in one line."""
    from specpilot.diagnosis.rescore import KINDS

    told = (
        f"re-scored with a fresh cache: {rescored.requests} requests ({rescored.left_out} left out), "
        f"{rescored.compared_tokens} draft tokens: "
    )
    if not rescored.same_model:
        return told + (
            "the recorded drafts are not this model's from the requests' first cycles on: give the models "
            "that the engine ran (--pair-draft); if these are, ids are permuted or sessions' caches are wrong"
        )
    return told + ", ".join(f"{cause} {_verdict(rescored, cause)}" for cause in KINDS)


def _verdict(rescored: Rescored, cause: str) -> str:
    """One verdict; where evidence lacks, how much there is and how much it would take."""
    from specpilot.diagnosis.rescore import CONTROLS, FIRST, TOO_FEW, cycles_needed

    verdict = rescored.verdict(cause)
    if verdict != TOO_FEW:
        return verdict
    cycles, seen = rescored.examined(cause)
    told = (
        f"not enough evidence ({cycles} cycles examined, {seen} differ; {cycles_needed(seen)} would refute it"
    )
    controls = rescored.clean.get(FIRST, 0)
    if controls < CONTROLS:
        told += f"; {controls} requests began with a cache of their own, {CONTROLS} are needed to confirm it"
    return told + ")"


def _engine(model: SpeedModel) -> str:
    """The engine in one line."""
    if model.assumed:
        return f"{model.tokens:.2f} tokens a pass; no times in this trace, gains are those of a good engine"
    return (
        f"{model.tokens:.2f} tokens a pass, {model.rate / model.plain:.2f} times plain decoding; draft step "
        f"{model.draft_ms:.2f} ms, pass {model.pass_ms:.2f} ms, each further token {model.token_ms:.2f} ms, "
        f"host {model.host_ms:.2f} ms"
    )


def _show_comparison(screen: Console, comparison: Comparison) -> None:
    from rich.table import Table

    screen.print(
        f"[bold]{comparison.before.trace.name} → {comparison.after.trace.name}[/]: new: "
        f"{', '.join(comparison.new) or 'nothing'}; gone: {', '.join(comparison.gone) or 'nothing'}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what")
    for name in ("before", "after", "ms per token"):
        table.add_column(name, justify="right")
    for change in comparison.changes:
        part = "" if change.ms_per_token is None else f"{change.ms_per_token:+.3f}"
        table.add_row(change.name.replace("_", " "), f"{change.before:.4g}", f"{change.after:.4g}", part)
    screen.print(table)
