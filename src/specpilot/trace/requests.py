"""A trace's records of requests: one arrived, the policy ended it, it is over.

Words and times are those of :mod:`specpilot.trace.schema`, which has the other records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast, get_args

from specpilot.control.types import AcceptanceName, Binding, StopCause
from specpilot.trace import lines


@dataclass(frozen=True, slots=True)
class AdmitRecord:
    """A request arrived: what :class:`~specpilot.control.types.RequestInfo` says of it, and the answer."""

    kind: ClassVar[str] = "admit"
    call: int
    time_s: float
    request: str
    arrival_s: float | None
    prompt_tokens: int
    max_tokens: int
    cached_tokens: int = 0
    slo_ms: float | None = None
    max_draft: int | None = None
    prefill_passes: int = 0
    drafter: str = "draft_model"
    tenant: str = ""
    admitted: bool = True
    deadline_s: float = 0.0
    reason: str = ""
    prefill_drafts: bool = True
    acceptance: AcceptanceName = "greedy"

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> AdmitRecord:
        """Read an ``admit`` line."""
        return cls(
            call=lines.count(record, "call"),
            time_s=lines.number(record, "time_s"),
            request=lines.text(record, "request"),
            arrival_s=lines.optional_number(record, "arrival_s"),
            prompt_tokens=lines.count(record, "prompt_tokens"),
            max_tokens=lines.count(record, "max_tokens", least=1),
            cached_tokens=lines.count(record, "cached_tokens"),
            slo_ms=_slo_ms(record),
            max_draft=lines.optional_count(record, "max_draft"),
            prefill_passes=lines.count(record, "prefill_passes"),
            drafter=lines.text(record, "drafter"),
            tenant=lines.text(record, "tenant"),
            admitted=lines.flag(record, "admitted"),
            deadline_s=lines.number(record, "deadline_s"),
            reason=lines.text(record, "reason"),
            prefill_drafts="prefill_drafts" not in record or lines.flag(record, "prefill_drafts"),
            acceptance=_acceptance(record),
        )


def _slo_ms(record: Mapping[str, Any]) -> float | None:
    value = lines.optional_number(record, "slo_ms")
    if value is not None and value <= 0.0:
        raise ValueError(f"slo_ms: {value} is not > 0; give milliseconds, or null where none was asked for")
    return value


def _acceptance(record: Mapping[str, Any]) -> AcceptanceName:
    if "acceptance" not in record:
        return "greedy"
    return cast(AcceptanceName, lines.one_of(record, "acceptance", get_args(AcceptanceName)))


@dataclass(frozen=True, slots=True)
class StopRecord:
    """The policy ended a request instead of planning a cycle; ``place`` is its position in the call."""

    kind: ClassVar[str] = "stop"
    call: int
    place: int
    time_s: float
    request: str
    cause: StopCause
    binding: Binding
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> StopRecord:
        """Read a ``stop`` line."""
        reasons = lines.mapping(record, "numbers")
        return cls(
            call=lines.count(record, "call"),
            place=lines.count(record, "place"),
            time_s=lines.number(record, "time_s"),
            request=lines.text(record, "request"),
            cause=StopCause(lines.one_of(record, "cause", tuple(StopCause))),
            binding=Binding(lines.one_of(record, "binding", tuple(Binding))),
            numbers={name: lines.number(reasons, name, infinite=True) for name in reasons},
            note=lines.text(record, "note"),
        )


@dataclass(frozen=True, slots=True)
class EndRecord:
    """A request is over: its account (see :class:`~specpilot.control.types.RequestSummary`)."""

    kind: ClassVar[str] = "end"
    call: int
    time_s: float
    request: str
    cause: StopCause
    emitted_tokens: int
    target_passes: int
    pool_passes: int
    cycles: int
    e2e_ms: float
    met_slo: bool

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> EndRecord:
        """Read an ``end`` line."""
        return cls(
            call=lines.count(record, "call"),
            time_s=lines.number(record, "time_s"),
            request=lines.text(record, "request"),
            cause=StopCause(lines.one_of(record, "cause", tuple(StopCause))),
            emitted_tokens=lines.count(record, "emitted_tokens"),
            target_passes=lines.count(record, "target_passes"),
            pool_passes=lines.count(record, "pool_passes"),
            cycles=lines.count(record, "cycles"),
            e2e_ms=lines.duration(record, "e2e_ms"),
            met_slo=lines.flag(record, "met_slo"),
        )
