"""A trace's record of one cycle, and what only the engine can tell of it.

Words and times are those of :mod:`specpilot.trace.schema`, which has the other records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from specpilot.control.types import Binding, StopCause
from specpilot.trace import lines

OBSERVED, ABORTED, DROPPED = "observed", "aborted", "dropped"
STATUSES = (OBSERVED, ABORTED, DROPPED)
"""How a cycle ended: observed; given up by ``abort``; still open when its request was finished."""

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
    "batch_tokens",
    "cycle",
    "max_nodes",
    "stop_digest",
    "plan_call",
    "plan_place",
    "end_call",
    "end_place",
)
INSTANTS = ("start_s", "end_s", "planned_s", "deadline_s")
DURATIONS = ("draft_ms", "draft_prefill_ms", "verify_ms", "host_ms", "queue_ms")


@dataclass(frozen=True, slots=True)
class LedgerState:
    """The pass ledger at one instant: requests admitted, passes started, passes in the pool."""

    admitted: int
    passes_started: int
    pool: float


@dataclass(frozen=True, slots=True)
class CycleEvidence:
    """What only the engine knows of a cycle; every field is optional, and nothing here is shown to a policy.

    ``temperature`` is the request's. ``proposed_ids`` are the block's tokens, ``own_id`` the target's token
    after the accepted ones. ``accepted_at`` are the accepted positions, from 1. ``verdicts`` says per
    proposed position of a chain whether the target's own choice, given the block before it, was that token;
    ``emitted_verdicts`` the same per emitted token, along the accepted path of a chain or a tree.
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
    emitted_verdicts: tuple[int, ...] | None = None


NO_EVIDENCE = CycleEvidence()
EVIDENCE = tuple(f.name for f in fields(CycleEvidence))
"""The names of the evidence's fields: they stand in the cycle's own object."""


@dataclass(frozen=True, slots=True)
class CycleRecord:
    """One cycle: ``index`` counts a request's cycles from 0; ``start_s``/``end_s`` on the run's clock.

    ``max_draft`` is what the plan allowed; ``drafted``, ``proposed``, ``accepted``, ``emitted`` and the
    times are as in :class:`~specpilot.control.types.CycleOutcome`. ``queue_ms`` is how long the request had
    waited for this cycle (since its arrival or the cycle before). ``ledger`` is the state after the pass
    had started. ``*_call`` number the controller's calls, ``*_place`` the position in the call's list.
    ``stop_digest`` is a checksum of the plan's rules. ``side_judged`` has three numbers for each choice
    judged beside the draft's first (rank, share, 1 where right), ``lookup_judged`` three for looked-up
    text; ``side_worth`` is the outcome's, ``coupled`` the plan's.
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
    side_worth: float | None = None
    lookup_judged: tuple[float, ...] | None = None
    coupled: bool = False
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
        times: dict[str, Any] = {name: lines.number(record, name) for name in INSTANTS}
        times |= {name: lines.duration(record, name) for name in DURATIONS}
        if not counts["accepted"] <= counts["proposed"]:
            raise ValueError(
                f"accepted: {counts['accepted']} exceeds proposed={counts['proposed']}; leave out the token "
                "of the target"
            )
        return cls(
            **counts,
            **times,
            batch_size=lines.count(record, "batch_size", least=1),
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
            side_worth=lines.optional_number(record, "side_worth"),
            lookup_judged=_groups(record, "lookup_judged", 3),
            coupled="coupled" in record and lines.flag(record, "coupled"),
            evidence=_evidence(record),
        )


def _groups(
    record: Mapping[str, Any], field: str, size: int, high: float = math.inf
) -> tuple[float, ...] | None:
    values = lines.numbers(record, field, low=0.0, high=high)
    if values is not None and len(values) % size:
        raise ValueError(f"{field}: {len(values)} numbers are no groups of {size}; give {size} for each")
    return values


def _evidence(record: Mapping[str, Any]) -> CycleEvidence:
    if not any(name in record for name in EVIDENCE):
        return NO_EVIDENCE
    return CycleEvidence(
        temperature=lines.optional_number(record, "temperature"),
        accepted_at=lines.whole_numbers(record, "accepted_at", low=1),
        verdicts=lines.whole_numbers(record, "verdicts", high=1),
        emitted_verdicts=lines.whole_numbers(record, "emitted_verdicts", high=1),
        overlaps=lines.numbers(record, "overlaps", low=0.0, high=1.0),
        proposal_q=lines.numbers(record, "proposal_q", low=0.0, high=1.0),
        proposed_ids=lines.whole_numbers(record, "proposed_ids"),
        own_id=lines.optional_count(record, "own_id"),
        emitted_ids=lines.whole_numbers(record, "emitted_ids"),
        prompt_ids=lines.whole_numbers(record, "prompt_ids"),
        sampled=_groups(record, "sampled", 4, 1.0),
    )
