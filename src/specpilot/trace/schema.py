"""The records of a trace, version 2: what a controller was told and what it answered, one JSON object a line.

A file is a header (``kind: trace``), then in the order in which things ended: ``admit`` (a request arrived
and was taken up or refused), ``cycle`` (one cycle of one request, plain ones with τ = 0 included, or a
fallback would be invisible), ``stop`` (the policy ended a request), ``mode``, ``end`` (a request is over),
and a last line ``close`` that counts the others: without it a file that was cut would look like a whole one.

Every call of the controller has a number, and each record names the calls it came from. The numbers and the
unrounded floats are what make a trace replay to the same decisions (:mod:`specpilot.trace.replay`).

Times are seconds on the run's clock (``*_s``) or durations in milliseconds (``*_ms``). Words are those of
:mod:`specpilot.control.types`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from specpilot.trace import lines
from specpilot.trace.cycles import EVIDENCE, NO_EVIDENCE, CycleRecord
from specpilot.trace.requests import AdmitRecord, EndRecord, StopRecord

VERSION = 2


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """The first line: who wrote the trace, and what is needed to replay it.

    ``config`` holds the fields of :class:`~specpilot.control.ControllerConfig`, ``snapshot`` what the
    controller had learned before (``None``: nothing). ``replayable`` is false where the decisions were not
    those of specpilot's own planner from the first request on. ``lacks`` names fields of the cycles that
    this source cannot tell; they hold their defaults.
    """

    kind: ClassVar[str] = "trace"
    source: str
    policy: str = "specpilot"
    engine: str = ""
    target: str = ""
    draft: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    snapshot: str | None = None
    replayable: bool = False
    lacks: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TraceHeader:
        """Read a header line.

        Raises:
            ValueError: for another version, or a file of another kind, which the message then names.
        """
        if "kind" not in record and "agree" in record:
            raise ValueError(
                "agree: this is an agreement trace, which holds no cycles; read it with `specpilot replay` "
                "or `specpilot plan`"
            )
        if "kind" not in record and "request" in record:
            raise ValueError("kind: there is none; this is not a trace (or one older than its header line)")
        if record.get("kind") not in (None, "trace"):
            raise ValueError(f"kind: {record['kind']!r} is not 'trace'; a trace begins with its header line")
        lines.check_version(record, VERSION, "trace")
        lacks = record.get("lacks") or []
        if not isinstance(lacks, list) or not all(isinstance(name, str) for name in lacks):
            raise ValueError(
                f"lacks: {lacks!r} is not a list of field names; use [] where nothing is missing"
            )
        return cls(
            source=lines.text(record, "source"),
            policy=lines.optional_text(record, "policy") or "specpilot",
            engine=lines.optional_text(record, "engine") or "",
            target=lines.optional_text(record, "target") or "",
            draft=lines.optional_text(record, "draft") or "",
            config=lines.mapping(record, "config"),
            snapshot=lines.optional_text(record, "snapshot"),
            replayable=bool(record.get("replayable")) and lines.flag(record, "replayable"),
            lacks=tuple(lacks),
        )


@dataclass(frozen=True, slots=True)
class ModeRecord:
    """The controller's mode was switched while running."""

    kind: ClassVar[str] = "mode"
    call: int
    mode: str

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ModeRecord:
        """Read a ``mode`` line."""
        return cls(lines.count(record, "call"), lines.text(record, "mode"))


@dataclass(frozen=True, slots=True)
class CloseRecord:
    """The last line: how many lines came before it (the header included)."""

    kind: ClassVar[str] = "close"
    lines: int

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CloseRecord:
        """Read a ``close`` line."""
        return cls(lines.count(record, "lines", least=1))


TraceRecord = TraceHeader | AdmitRecord | CycleRecord | StopRecord | ModeRecord | EndRecord | CloseRecord
KINDS: dict[str, type[TraceRecord]] = {
    record.kind: record
    for record in (
        TraceHeader,
        AdmitRecord,
        CycleRecord,
        StopRecord,
        ModeRecord,
        EndRecord,
        CloseRecord,
    )
}
_NAMES = {
    kind: tuple(f.name for f in fields(record) if f.name not in ("ledger", "evidence"))
    for kind, record in KINDS.items()
}


def to_json(record: TraceRecord) -> dict[str, Any]:
    """A record as a JSON object. Floats are not rounded: a replay needs every bit."""
    kind = record.kind
    result: dict[str, Any] = {"kind": kind}
    for name in _NAMES[kind]:
        result[name] = getattr(record, name)
    if isinstance(record, CycleRecord):
        ledger = record.ledger
        result["ledger"] = {
            "admitted": ledger.admitted,
            "passes_started": ledger.passes_started,
            "pool": ledger.pool,
        }
        result["own"] = record.own
        if record.evidence is not NO_EVIDENCE:
            for name in EVIDENCE:
                value = getattr(record.evidence, name)
                if value is not None:
                    result[name] = value
    elif isinstance(record, TraceHeader):
        result = {"kind": kind, "version": VERSION, **result}
    return result


def from_json(record: Mapping[str, Any]) -> TraceRecord:
    """Read any line of a trace.

    Raises:
        ValueError: naming the field, its value, the allowed range and the remedy.
    """
    kind = record.get("kind")
    if kind is None:
        return TraceHeader.from_json(record)
    found = KINDS.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(KINDS)}; correct it or drop the line")
    if "version" in record:
        lines.check_version(record, VERSION, "trace")
    return found.from_json(record)
