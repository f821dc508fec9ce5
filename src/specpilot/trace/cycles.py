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

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, cast, get_args

from specpilot.control.types import AcceptanceName, Binding, StopCause
from specpilot.trace import lines

VERSION = 2
OBSERVED, ABORTED, DROPPED = "observed", "aborted", "dropped"
STATUSES = (OBSERVED, ABORTED, DROPPED)
"""How a cycle ended: observed; given up by ``abort``; still open when its request was finished."""


@dataclass(frozen=True, slots=True)
class LedgerState:
    """The pass ledger at one instant: requests admitted, passes started, passes in the pool."""

    admitted: int
    passes_started: int
    pool: float


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
        """Read a header line."""
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
            slo_ms=lines.optional_number(record, "slo_ms"),
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


def _acceptance(record: Mapping[str, Any]) -> AcceptanceName:
    if "acceptance" not in record:
        return "greedy"
    return cast(AcceptanceName, lines.one_of(record, "acceptance", get_args(AcceptanceName)))


@dataclass(frozen=True, slots=True)
class CycleEvidence:
    """What only the engine knows of a cycle; every field is optional, and nothing here is shown to a policy.

    ``temperature`` is the request's. ``proposed_ids`` are the block's tokens, ``own_id`` the target's token
    after the accepted ones. ``accepted_at`` are the accepted positions, from 1. ``verdicts`` says per
    proposed position whether the target's own choice, given the block before it, was that token.
    ``overlaps`` holds Σ min(p, q) per proposed position, both models at the request's sampling parameters,
    as far as the block was judged (up to the first rejection): the probability that it is accepted.
    ``proposal_q`` is what the draft said the probability of each proposed token was.
    ``sampled`` has four numbers for each emitted token that was looked at: the probability, by the target's p
    after its prefix at the request's sampling parameters, of a token less likely than it, and of one at most
    as likely (the two ends of its probability integral transform, tokens in order of p); p of the token
    before it; and 1 if it is that token again.
    ``emitted_ids`` are the tokens appended, ``prompt_ids`` (in a request's first cycle alone) its prompt.
    Token ids are text of a user: they are written only if asked for.
    """

    temperature: float | None = None
    accepted_at: tuple[int, ...] | None = None
    verdicts: tuple[int, ...] | None = None
    overlaps: tuple[float, ...] | None = None
    proposal_q: tuple[float, ...] | None = None
    proposed_ids: tuple[int, ...] | None = None
    own_id: int | None = None
    emitted_ids: tuple[int, ...] | None = None
    prompt_ids: tuple[int, ...] | None = None
    sampled: tuple[float, ...] | None = None


NO_EVIDENCE = CycleEvidence()


@dataclass(frozen=True, slots=True)
class CycleRecord:
    """One cycle: ``index`` counts a request's cycles from 0; ``start_s``/``end_s`` on the run's clock.

    ``max_draft`` is what the plan allowed; ``drafted``, ``proposed``, ``accepted``, ``emitted`` and the
    times are as in :class:`~specpilot.control.types.CycleOutcome`. ``queue_ms`` is how long the request had
    waited for this cycle (since its arrival or the cycle before). ``ledger`` is the state after the pass
    had started. ``*_call`` number the controller's calls, ``*_place`` the position in the call's list.
    ``stop_digest`` is a checksum of the plan's rules. ``side_judged`` has three numbers for each choice
    judged beside the draft's first (rank, share, 1 where right), ``lookup_judged`` three for looked-up
    text.
    """

    kind: ClassVar[str] = "cycle"
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
    note: str = ""
    confidences: tuple[float, ...] = ()
    draft_prefill_tokens: int = 0
    batch_size: int = 1
    batch_tokens: int = 0
    queue_ms: float = 0.0
    drafter: str = "draft_model"
    cycle: int = 0
    status: str = OBSERVED
    planned_s: float = 0.0
    deadline_s: float = 0.0
    max_nodes: int = 0
    shadow_draft: int | None = None
    stop_digest: int = 0
    plan_call: int = 0
    plan_place: int = 0
    begin_call: int | None = None
    end_call: int = 0
    end_place: int = 0
    side_proposed: int = 0
    side_accepted: int = 0
    side_judged: tuple[float, ...] = ()
    lookup_judged: tuple[float, ...] | None = None
    evidence: CycleEvidence = NO_EVIDENCE

    @property
    def own(self) -> str | None:
        """The target's own token in this cycle: ``bonus``, ``recovered``, or none (the output had ended)."""
        if self.emitted <= self.accepted + self.side_accepted:
            return None
        return "bonus" if self.accepted == self.proposed or self.side_accepted else "recovered"

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CycleRecord:
        """Read a ``cycle`` line.

        Raises:
            ValueError: naming the field, its value, the allowed range and the remedy.
        """
        ledger = record.get("ledger")
        if not isinstance(ledger, dict):
            raise ValueError("ledger: there is no object; give admitted, passes_started and pool")
        reasons = lines.mapping(record, "numbers")
        ended = lines.optional_text(record, "ended")
        counts: dict[str, Any] = {name: lines.count(record, name) for name in COUNTS}
        times: dict[str, Any] = {name: lines.number(record, name) for name in NUMBERS}
        if not counts["accepted"] <= counts["proposed"]:
            raise ValueError(
                f"accepted: {counts['accepted']} exceeds proposed={counts['proposed']}; leave out the token "
                "of the target"
            )
        return cls(
            **counts,
            **times,
            request=lines.text(record, "request"),
            from_pool=lines.flag(record, "from_pool"),
            binding=Binding(lines.one_of(record, "binding", tuple(Binding))),
            ledger=LedgerState(
                lines.count(ledger, "admitted"),
                lines.count(ledger, "passes_started"),
                lines.number(ledger, "pool"),
            ),
            numbers={name: lines.number(reasons, name, infinite=True) for name in reasons},
            ended=None if ended is None else StopCause(lines.one_of(record, "ended", tuple(StopCause))),
            draft_fault=lines.optional_text(record, "draft_fault"),
            note=lines.text(record, "note"),
            confidences=lines.numbers(record, "confidences", low=0.0, high=1.0) or (),
            drafter=lines.text(record, "drafter"),
            status=lines.one_of(record, "status", STATUSES),
            shadow_draft=lines.optional_count(record, "shadow_draft"),
            begin_call=lines.optional_count(record, "begin_call"),
            side_proposed=lines.optional_count(record, "side_proposed") or 0,
            side_accepted=lines.optional_count(record, "side_accepted") or 0,
            side_judged=_groups(record, "side_judged", 3) or (),
            lookup_judged=_groups(record, "lookup_judged", 3),
            evidence=_evidence(record),
        )


COUNTS = (
    "index",
    "prompt_tokens",
    "max_draft",
    "drafted",
    "proposed",
    "accepted",
    "emitted",
    "verified_tokens",
    "context_tokens",
    "draft_prefill_tokens",
    "batch_size",
    "batch_tokens",
    "cycle",
    "max_nodes",
    "stop_digest",
    "plan_call",
    "plan_place",
    "end_call",
    "end_place",
)
NUMBERS = (
    "start_s",
    "end_s",
    "draft_ms",
    "draft_prefill_ms",
    "verify_ms",
    "host_ms",
    "queue_ms",
    "planned_s",
    "deadline_s",
)


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
            e2e_ms=lines.number(record, "e2e_ms"),
            met_slo=lines.flag(record, "met_slo"),
        )


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
_EVIDENCE = tuple(f.name for f in fields(CycleEvidence))
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
            for name in _EVIDENCE:
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


def _groups(
    record: Mapping[str, Any], field: str, size: int, high: float = math.inf
) -> tuple[float, ...] | None:
    values = lines.numbers(record, field, low=0.0, high=high)
    if values is not None and len(values) % size:
        raise ValueError(f"{field}: {len(values)} numbers are no groups of {size}; give {size} for each")
    return values


def _evidence(record: Mapping[str, Any]) -> CycleEvidence:
    if not any(name in record for name in _EVIDENCE):
        return NO_EVIDENCE
    return CycleEvidence(
        temperature=lines.optional_number(record, "temperature"),
        accepted_at=lines.whole_numbers(record, "accepted_at", low=1),
        verdicts=lines.whole_numbers(record, "verdicts", high=1),
        overlaps=lines.numbers(record, "overlaps", low=0.0, high=1.0),
        proposal_q=lines.numbers(record, "proposal_q", low=0.0, high=1.0),
        proposed_ids=lines.whole_numbers(record, "proposed_ids"),
        own_id=lines.optional_count(record, "own_id"),
        emitted_ids=lines.whole_numbers(record, "emitted_ids"),
        prompt_ids=lines.whole_numbers(record, "prompt_ids"),
        sampled=_groups(record, "sampled", 4, 1.0),
    )
