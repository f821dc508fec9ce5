"""Per-cycle records: every cycle of a run, those with τ = 0 included.

Without the plain cycles a fallback is invisible in a log. One JSON object a line; the plan (what the
policy asked for and why), the outcome (what the engine did) and the ledger after the pass had started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specpilot.control.types import Binding, StopCause
from specpilot.trace import lines

VERSION = 1


@dataclass(frozen=True, slots=True)
class LedgerState:
    """The pass ledger at one instant: requests admitted, passes started, passes in the pool."""

    admitted: int
    passes_started: int
    pool: float


@dataclass(frozen=True, slots=True)
class CycleRecord:
    """One cycle: ``index`` counts a request's cycles from 0; ``start_s``/``end_s`` on the run's clock.

    ``max_draft`` is what the plan allowed; ``drafted``, ``proposed``, ``accepted``, ``emitted`` and the
    times are as in :class:`~specpilot.control.types.CycleOutcome`.
    """

    request: str
    index: int
    start_s: float
    end_s: float
    prompt_tokens: int
    max_draft: int
    from_pool: bool
    binding: Binding
    drafted: int
    proposed: int
    accepted: int
    emitted: int
    draft_ms: float
    draft_prefill_ms: float
    verify_ms: float
    host_ms: float
    verified_tokens: int
    context_tokens: int
    ledger: LedgerState
    numbers: Mapping[str, float] = field(default_factory=dict)
    ended: StopCause | None = None
    draft_fault: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object (enums as their names, times rounded to microseconds)."""
        record: dict[str, Any] = {"version": VERSION}
        for name, value in asdict(self).items():
            record[name] = round(value, 6) if isinstance(value, float) else value
        record["numbers"] = {name: round(value, 6) for name, value in self.numbers.items()}
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CycleRecord:
        """Read one record.

        Raises:
            ValueError: naming the field, its value, the allowed range and the remedy.
        """
        lines.check_version(record, VERSION, "cycle trace")
        ledger = record.get("ledger")
        if not isinstance(ledger, dict):
            raise ValueError("ledger: there is no object; give admitted, passes_started and pool")
        reasons = record.get("numbers") or {}
        if not isinstance(reasons, dict):
            raise ValueError(f"numbers: {reasons!r} is not an object; give names and numbers")
        ended = lines.optional_text(record, "ended")
        return cls(
            request=lines.text(record, "request"),
            index=lines.count(record, "index"),
            start_s=lines.number(record, "start_s"),
            end_s=lines.number(record, "end_s"),
            prompt_tokens=lines.count(record, "prompt_tokens"),
            max_draft=lines.count(record, "max_draft"),
            from_pool=lines.flag(record, "from_pool"),
            binding=Binding(lines.text(record, "binding")),
            drafted=lines.count(record, "drafted"),
            proposed=lines.count(record, "proposed"),
            accepted=lines.count(record, "accepted"),
            emitted=lines.count(record, "emitted"),
            draft_ms=lines.number(record, "draft_ms"),
            draft_prefill_ms=lines.number(record, "draft_prefill_ms"),
            verify_ms=lines.number(record, "verify_ms"),
            host_ms=lines.number(record, "host_ms"),
            verified_tokens=lines.count(record, "verified_tokens"),
            context_tokens=lines.count(record, "context_tokens"),
            ledger=LedgerState(
                lines.count(ledger, "admitted"),
                lines.count(ledger, "passes_started"),
                lines.number(ledger, "pool"),
            ),
            numbers={name: lines.number(reasons, name) for name in reasons},
            ended=None if ended is None else StopCause(ended),
            draft_fault=lines.optional_text(record, "draft_fault"),
        )


def read_cycles(path: Path) -> list[CycleRecord]:
    """Read a whole file of cycle records.

    Raises:
        ValueError: with the line's number, for a bad record.
        OSError: if the file cannot be read.
    """
    return list(lines.read_lines(path, CycleRecord.from_json))


def write_cycles(path: Path, records: Iterable[CycleRecord]) -> int:
    """Write a file of cycle records; returns how many."""
    return lines.write_lines(path, (record.to_json() for record in records))
