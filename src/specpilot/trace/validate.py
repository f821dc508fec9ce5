"""Is a trace whole and consistent? Every field of every line, and what lines say about each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specpilot.trace import schema
from specpilot.trace.cycles import OBSERVED, CycleRecord
from specpilot.trace.files import TraceReader
from specpilot.trace.requests import AdmitRecord, EndRecord, StopRecord
from specpilot.trace.schema import TraceHeader


@dataclass(slots=True)
class Validated:
    """What a valid trace holds. ``open_requests`` were in flight when it ended."""

    header: TraceHeader
    lines: int = 0
    requests: int = 0
    refused: int = 0
    cycles: int = 0
    plain_cycles: int = 0
    ended: int = 0
    left_out: str | None = None

    @property
    def open_requests(self) -> int:
        """Requests admitted that have no end."""
        return self.requests - self.refused - self.ended


@dataclass(slots=True)
class _Life:
    line: int
    cycles: int = 0
    emitted: int = 0


def validate(path: Path, *, partial: bool = False) -> Validated:
    """Check a trace file line by line.

    Raises:
        ValueError: with the file's name and the number of the first line that is wrong, and why.
        OSError: if the file cannot be read.
    """
    reader = TraceReader(path, partial)
    result: Validated | None = None
    lives: dict[str, _Life] = {}
    seen: set[int] = set()
    for content in reader.objects():
        try:
            record = schema.from_json(content)
            if isinstance(record, TraceHeader):
                result = Validated(record)
            elif result is not None:
                _check(record, result, lives, seen, reader.line)
        except ValueError as error:
            raise reader.error(error) from None
    if result is None:
        raise ValueError(f"{path.name}: there is no header line; a trace begins with one")
    result.lines = reader.line
    result.left_out = reader.left_out
    return result


def _check(
    record: schema.TraceRecord, result: Validated, lives: dict[str, _Life], seen: set[int], line: int
) -> None:
    if isinstance(record, AdmitRecord):
        result.requests += 1
        if not record.admitted:
            result.refused += 1
        elif record.request in lives:
            raise ValueError(
                f"request: {record.request!r} is in flight since line {lives[record.request].line}; ids are "
                "used once at a time"
            )
        else:
            lives[record.request] = _Life(line)
    elif isinstance(record, CycleRecord):
        _check_cycle(record, _life(lives, record.request), seen, result.header.lacks)
        result.cycles += 1
        result.plain_cycles += record.proposed == 0
    elif isinstance(record, EndRecord):
        life = _life(lives, record.request)
        if record.emitted_tokens != life.emitted:
            raise ValueError(
                f"emitted_tokens: {record.emitted_tokens} at the end of {record.request!r}, its cycles "
                f"emitted {life.emitted}; cycles are missing or were added"
            )
        del lives[record.request]
        result.ended += 1
    elif isinstance(record, StopRecord):
        _life(lives, record.request)


def _check_cycle(record: CycleRecord, life: _Life, seen: set[int], lacks: tuple[str, ...]) -> None:
    if record.cycle in seen:
        raise ValueError(f"cycle: {record.cycle} occurs twice; ids are unique in a trace")
    seen.add(record.cycle)
    if record.index != life.cycles:
        raise ValueError(
            f"index: {record.index} of {record.request!r} follows {life.cycles} cycles; cycles are missing "
            "or out of order"
        )
    if not record.planned_s <= record.start_s <= record.end_s:
        raise ValueError(
            f"start_s: planned {record.planned_s}, started {record.start_s}, ended {record.end_s}; a clock "
            "that only goes forward is needed"
        )
    if record.proposed > record.drafted and "drafted" not in lacks:
        raise ValueError(
            f"drafted: {record.drafted} is below proposed={record.proposed}; count every draft step, at "
            "least one per proposed token"
        )
    # More would be asked for too, but a pass that did not cover what was emitted is a fault of the engine
    # that `diagnose` is there to find.
    if record.proposed and not record.verified_tokens and "verified_tokens" not in lacks:
        raise ValueError(
            f"verified_tokens: 0 is not ≥ 1 with proposed={record.proposed}; give the width of this "
            "request's part of the pass"
        )
    evidence = record.evidence
    for name in ("verdicts", "proposed_ids"):
        values = getattr(evidence, name)
        if values is not None and len(values) != record.proposed:
            raise ValueError(
                f"{name}: {len(values)} values for proposed={record.proposed}; give one per proposed token"
            )
    verdicts = evidence.emitted_verdicts
    if verdicts is not None and len(verdicts) != record.emitted:
        raise ValueError(
            f"emitted_verdicts: {len(verdicts)} values for emitted={record.emitted}; give one per emitted "
            "token"
        )
    sampled = evidence.sampled or ()
    if len(sampled) > 4 * record.emitted:
        raise ValueError(
            f"sampled: {len(sampled)} numbers for emitted={record.emitted}; give four per emitted token"
        )
    if any(low >= high > 0.0 for low, high in zip(sampled[0::4], sampled[1::4], strict=True)):
        raise ValueError(
            "sampled: a token's upper end is not above its lower one; give the probability of less likely "
            "tokens first, both 0 for a token that p forbids"
        )
    if record.status == OBSERVED:
        life.cycles += 1
        life.emitted += record.emitted


def _life(lives: dict[str, _Life], request: str) -> _Life:
    try:
        return lives[request]
    except KeyError:
        raise ValueError(
            f"request: {request!r} is not in flight here; an admit line comes before its cycles"
        ) from None
