"""Other systems' logs as traces, with what such a log cannot tell named in the header.

Two kinds: *steps*, a table with a verification step a line (CSV with a header line, or JSON Lines); and
*vllm*, the per-request metrics of vLLM (``--per-request-spec-decode-metrics detailed``), a response or its
``speculative_decoding`` object a line.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from specpilot.control.stop import StopRule
from specpilot.control.types import (
    Admission,
    BatchPlan,
    Binding,
    CycleOutcome,
    CyclePlan,
    Reason,
    RequestInfo,
    RequestSummary,
    StopCause,
)
from specpilot.trace import lines
from specpilot.trace.cycles import LedgerState
from specpilot.trace.recorder import TraceRecorder
from specpilot.trace.schema import TraceHeader, TraceRecord

KINDS = ("steps", "vllm")
NEVER_TOLD = (
    "max_draft", "binding", "numbers", "from_pool", "ledger", "deadline_s", "queue_ms", "host_ms",
    "draft_prefill_ms", "context_tokens", "verified_tokens", "batch_size", "batch_tokens", "ended",
)  # fmt: skip
"""Fields of a cycle that no such log has."""
STEP_COLUMNS = {
    "request": "whose step; default: all of one request",
    "proposed": "draft tokens verified (needed)",
    "accepted": "of these, accepted; the target's own token not counted (needed)",
    "confidence": "the draft's probability at each position: a number, or a list (JSON, or separated by ;)",
    "prompt_tokens": "length of the prompt",
    "draft_ms": "time of drafting",
    "verify_ms": "time of the target pass",
    "time_s": "when the step began, on any clock that goes forward",
}
OPTIONAL = {
    "confidence": "confidences",
    "prompt_tokens": "prompt_tokens",
    "draft_ms": "draft_ms",
    "verify_ms": "verify_ms",
    "time_s": "start_s",
}
"""Columns that may be missing, and the field of a cycle that is then unknown."""


@dataclass(frozen=True, slots=True)
class Step:
    """One verification step of a log; times in ms and s, unknown ones 0."""

    request: str
    proposed: int
    accepted: int
    confidences: tuple[float, ...] = ()
    prompt_tokens: int = 0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """A log as a trace. ``lacks`` are the fields of a cycle that it does not tell."""

    header: TraceHeader
    records: Sequence[TraceRecord]
    requests: int
    cycles: int

    @property
    def lacks(self) -> tuple[str, ...]:
        """What the log cannot tell."""
        return self.header.lacks


def read_log(path: Path, kind: str) -> Imported:
    """Read a log.

    Raises:
        ValueError: with the line's number, naming the field, its value, the range and the remedy.
        OSError: if it cannot be read.
    """
    if kind not in KINDS:
        raise ValueError(
            f"format: {kind!r} is not one of {', '.join(KINDS)}; steps reads CSV (a name in .csv) "
            "and JSON Lines"
        )
    told: set[str] = set()
    if kind == "vllm":
        groups = enumerate(lines.read_lines(path, _vllm_request), 1)
        steps = list(_numbered(path, (_named(group, number) for number, group in groups)))
    else:
        read = _csv_steps if path.suffix == ".csv" else _json_steps
        steps = list(_numbered(path, ([step] for step in read(path, told))))
    if kind == "vllm" and all(step.prompt_tokens for step in steps):
        told.add("prompt_tokens")
    if not steps:
        raise ValueError(f"{path.name}: no steps; a log needs at least one line")
    lacks = (*NEVER_TOLD, *(field for column, field in OPTIONAL.items() if column not in told))
    if "time_s" not in told:
        lacks = (*lacks, "end_s", "planned_s")
    header = TraceHeader(source=f"import-{kind}", policy="unknown", lacks=lacks)
    records: list[TraceRecord] = []
    requests = _replay_calls(steps, records.append)
    return Imported(header, records, requests, len(steps))


def _named(group: Sequence[Step], number: int) -> Sequence[Step]:
    """Steps of a request that its line gives no name."""
    return [step if step.request else replace(step, request=f"line-{number}") for step in group]


def _numbered(path: Path, groups: Iterator[Sequence[Step]]) -> Iterator[Step]:
    """The steps of all groups; a request's steps stand together."""
    closed: set[str] = set()
    current: str | None = None
    for group in groups:
        for step in group:
            if step.request != current:
                if step.request in closed:
                    raise ValueError(
                        f"{path.name}: request {step.request!r} goes on after another one; sort the log"
                    )
                if current is not None:
                    closed.add(current)
                current = step.request
            yield step


def _json_steps(path: Path, told: set[str]) -> Iterator[Step]:
    return lines.read_lines(path, lambda row: _step(row, told))


def _csv_steps(path: Path, told: set[str]) -> Iterator[Step]:
    with lines.text_of(path), path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                if None in row:
                    raise ValueError("there are more cells than columns; quote cells that hold a comma")
                yield _step({name: _cell(name, text) for name, text in row.items() if text}, told)
            except ValueError as error:
                raise ValueError(f"{path.name}, line {reader.line_num}: {error}") from None


def _cell(name: str, text: str) -> Any:
    """A CSV cell as JSON would have it."""
    if name == "request" or name not in STEP_COLUMNS:
        return text
    try:
        if name == "confidence":
            return [float(part) for part in text.strip("[]").replace(";", ",").split(",")]
        return int(text) if name in ("proposed", "accepted", "prompt_tokens") else float(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a number; correct the log") from None


def _step(row: Mapping[str, Any], told: set[str]) -> Step:
    unknown = set(row) - set(STEP_COLUMNS)
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is unknown; use {', '.join(STEP_COLUMNS)}")
    told |= set(row)
    confidence = row.get("confidence")
    if isinstance(confidence, int | float):
        row = {**row, "confidence": [confidence]}
    proposed, accepted = lines.count(row, "proposed"), lines.count(row, "accepted")
    if accepted > proposed:
        raise ValueError(
            f"accepted: {accepted} exceeds proposed={proposed}; leave out the target's own token"
        )
    return Step(
        request=str(row.get("request", "log")),
        proposed=proposed,
        accepted=accepted,
        confidences=lines.numbers(row, "confidence", low=0.0, high=1.0) or (),
        prompt_tokens=lines.count(row, "prompt_tokens") if "prompt_tokens" in row else 0,
        draft_ms=lines.duration(row, "draft_ms") if "draft_ms" in row else 0.0,
        verify_ms=lines.duration(row, "verify_ms") if "verify_ms" in row else 0.0,
        time_s=lines.number(row, "time_s") if "time_s" in row else None,
    )


def _vllm_request(record: Mapping[str, Any]) -> list[Step]:
    """One response of vLLM, or the ``speculative_decoding`` object alone."""
    part: Any = record
    for name in ("metrics", "speculative_decoding"):
        part = part[name] if isinstance(part, Mapping) and name in part else part
    if not isinstance(part, Mapping) or "num_spec_steps" not in part:
        raise ValueError(
            "speculative_decoding: there is none; serve with --per-request-spec-decode-metrics detailed"
        )
    accepted = lines.whole_numbers(part, "per_step_accepted")
    drafted = lines.whole_numbers(part, "per_step_drafted")
    if accepted is None or drafted is None:
        raise ValueError(
            "per_step_accepted: there are sums only; serve with --per-request-spec-decode-metrics detailed"
        )
    if len(accepted) != len(drafted):
        raise ValueError(
            f"per_step_drafted: {len(drafted)} values for {len(accepted)} steps; give one a step"
        )
    name = str(record.get("id", record.get("request", "")))
    usage = record.get("usage")
    prompt = lines.count(usage, "prompt_tokens") if isinstance(usage, Mapping) else 0
    steps = []
    for proposed, right in zip(drafted, accepted, strict=True):
        if right > proposed:
            raise ValueError(f"per_step_accepted: {right} exceeds per_step_drafted={proposed}")
        steps.append(Step(name, proposed, right, prompt_tokens=prompt))
    return steps


def _replay_calls(steps: Sequence[Step], sink: Callable[[TraceRecord], None]) -> int:
    """The controller's calls as they may have been: one request after the other, a plan a step."""
    admitted = passes = 0
    recorder = TraceRecorder(sink, lambda: LedgerState(admitted, passes, 0.0))
    clock = 0.0
    for request, group in groupby(steps, lambda step: step.request):
        own = list(group)
        clock = max(clock, own[0].time_s or 0.0)
        began = clock
        emitted = sum(step.accepted + 1 for step in own)
        admitted += 1
        recorder.admitted(
            RequestInfo(request, own[0].prompt_tokens, max(1, emitted), clock), Admission(True, clock), clock
        )
        for step in own:
            passes += 1
            clock = max(clock, step.time_s or 0.0)
            plan = CyclePlan(
                passes, request, step.proposed, step.proposed, StopRule(), clock, False, Reason(Binding.MAX)
            )
            recorder.planned([request], BatchPlan((plan,), ()), clock)
            recorder.begun([passes], clock)
            clock += (step.draft_ms + step.verify_ms) / 1000.0
            outcome = CycleOutcome(
                passes,
                drafted=step.proposed,
                proposed=step.proposed,
                accepted=step.accepted,
                emitted=step.accepted + 1,
                confidences=step.confidences[: step.proposed],
                draft_ms=step.draft_ms,
                verify_ms=step.verify_ms,
                verified_tokens=step.proposed + 1,
            )
            recorder.observed([outcome], clock)
        e2e_ms = (clock - began) * 1000.0
        summary = RequestSummary(request, StopCause.MAX_TOKENS, emitted, len(own), 0, len(own), e2e_ms, True)
        recorder.finished(summary, clock)
    return admitted
