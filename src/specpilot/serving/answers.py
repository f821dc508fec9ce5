"""What a client asks for and what it gets: a validated ask, an answer, and the account that goes with it."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from specpilot.control.types import StopCause
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.types import SamplingParams
from specpilot.serving.engine import Job
from specpilot.serving.words import shown


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client wants, validated; ``prompt`` is as the target is to see it."""

    prompt: tuple[int, ...]
    max_tokens: int
    params: SamplingParams
    stop: tuple[str, ...] = ()
    tenant: str = ""
    user: str = ""
    session_id: str | None = None
    slo_ms: float | None = None
    max_draft: int | None = None
    whole_words: bool = True
    continuation: bool = True
    explain: bool = False
    streamed: bool = False

    @property
    def scope(self) -> Hashable:
        """Whose earlier outputs may be continued; a greedy one depends on no other parameter."""
        drawn = self.params if self.params.temperature else None
        return self.tenant, self.user, self.session_id, drawn

    @property
    def limited(self) -> bool:
        """Whether it may be cut where another request for the same text would not be."""
        return self.slo_ms is not None or self.max_draft is not None

    @property
    def repeatable(self) -> bool:
        """Whether the output is a function of prompt and parameters."""
        return self.params.temperature == 0.0 or self.params.seed is not None

    @property
    def session_key(self) -> str | None:
        """The session's name in the KV stores, which know nothing of tenants."""
        if self.session_id is None:
            return None
        return json.dumps((self.tenant, self.user, self.session_id))


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended: its visible text, and the account that goes with it."""

    text: str
    cause: StopCause
    prompt_tokens: int
    completion_tokens: int
    account: dict[str, Any]
    error: str | None = None

    @property
    def finish_reason(self) -> str:
        """OpenAI's word for the end."""
        return "stop" if self.cause in (StopCause.EOS, StopCause.STOP) else "length"


def usage_block(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's ``usage``."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def cut_again(cause: StopCause) -> StopCause:
    """Why a served rest ends: the cause that cut it the first time, where that still says something."""
    return cause if cause in (StopCause.BUDGET, StopCause.DEADLINE) else StopCause.POLICY


def answer_of(ask: Ask, request: DecodingRequest, cause: StopCause, account: dict[str, Any]) -> Answer:
    """How an ended request is shown."""
    complete = cause.complete or not ask.whole_words
    return Answer(
        text=shown(request.text, complete=complete),
        cause=cause,
        prompt_tokens=len(ask.prompt),
        completion_tokens=request.emitted,
        account=account,
        error=request.error if cause is StopCause.ERROR else None,
    )


def account_of(
    ask: Ask,
    request: DecodingRequest,
    cause: StopCause,
    *,
    carried: int,
    cached: bool,
    e2e_ms: float,
    job: Job | None = None,
) -> dict[str, Any]:
    """The ``specpilot`` block of an answer: how it came about."""
    summary = None if job is None else job.summary
    passes = 0 if summary is None else summary.target_passes
    fresh = request.emitted - carried
    block: dict[str, Any] = {
        "stop_cause": cause.value,
        "target_passes": passes,
        "cycles": 0 if summary is None else summary.cycles,
        "tokens_per_pass": round(fresh / passes, 3) if passes else None,
        "verified_tokens": request.emitted,
        "accepted_draft_tokens": 0 if job is None else job.accepted,
        "drafted_tokens": 0 if job is None else job.drafted,
        "carried_tokens": carried,
        "cached": cached,
        "e2e_ms": round(e2e_ms, 3),
        "reason": "" if job is None else job.reason,
    }
    if job is not None and job.first_cycle_s is not None and job.info.arrival_s is not None:
        block["engine_ms"] = round(job.engine_s * 1000.0, 3)
        block["queue_ms"] = round((job.first_cycle_s - job.info.arrival_s) * 1000.0, 3)
    if ask.explain:
        block["cycle_details"] = [
            {
                "max_draft": cycle.max_draft,
                "proposed": len(cycle.block),
                "accepted": len(cycle.accepted),
                "own_kind": cycle.own_kind,
                "emitted": len(cycle.emitted),
                "binding": cycle.reason.binding.value,
                "fault": cycle.fault,
            }
            for cycle in request.details
        ]
    return block


def tenant_of(session_key: str) -> str:
    """Whose text a session may be completed from: tenant and user of an :attr:`Ask.session_key`."""
    tenant, user, _ = json.loads(session_key)
    return json.dumps((tenant, user))
