"""The records that cross the policy's border: what it is told and what it answers.

Times are floats: ``now`` and every ``*_s`` in seconds on one monotonic clock that the caller owns,
every ``*_ms`` a duration in milliseconds. Nothing here reads a clock.

Words, as the field uses them: *accepted* tokens are draft tokens that the target confirmed; the
*recovered* token is the target's own token at the first rejection; the *bonus* token is the
target's own token after a full accept; *emitted* = accepted + that one token (fewer only where the
output ends inside the block).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, get_args

from specpilot.control.stop import StopRule
from specpilot.control.tree import TreeRule


class StopCause(StrEnum):
    """Why a request ended. Every admitted request ends with exactly one of these."""

    EOS = "eos"
    STOP = "stop"
    MAX_TOKENS = "max_tokens"
    BUDGET = "budget"
    DEADLINE = "deadline"
    POLICY = "policy"
    CANCELLED = "cancelled"
    ERROR = "error"

    @property
    def complete(self) -> bool:
        """Whether the suggestion ran to its own end (EOS, stop string, max_tokens)."""
        return self in (StopCause.EOS, StopCause.STOP, StopCause.MAX_TOKENS)


class Binding(StrEnum):
    """What bound a decision: the constraint or signal without which it would have been different."""

    BUDGET = "budget"
    DEADLINE = "deadline"
    DRAFT_COST = "draft_cost"
    CONFIDENCE = "confidence"
    LENGTH = "length"
    BREAKER = "breaker"
    PROBE = "probe"
    MAX = "max"


AcceptanceName = Literal["greedy", "rejection", "coupled", "deterministic"]
"""The rules of acceptance (:mod:`specpilot.decoding.acceptance`)."""


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What the policy may know of a request when it arrives.

    ``arrival_s`` is the *scheduled* arrival (latency counts from it, queueing included); ``None``
    means "now". ``cached_tokens`` is how many prompt tokens the target's KV cache already holds.
    ``slo_ms`` overrides the configured end-to-end SLO; ``max_draft`` caps τ for this request (0
    switches speculation off); ``prefill_passes`` is how many target passes the prompt needs before
    its last one (0 unless the engine chunks prefill). ``prefill_drafts`` says whether the prompt's last
    pass can carry the first block; engines that draft after the target's pass cannot (vLLM). ``acceptance``
    is the rule that the request begins with: estimates of acceptance are kept by it, and one that begins
    with ``rejection`` may go over to ``coupled`` for token trees (:attr:`CyclePlan.coupled`).

    Raises:
        ValueError: for a negative count, max_tokens < 1, an slo_ms that is not > 0 and finite, an arrival_s
            that is not finite, or an unknown rule.
    """

    request_id: str
    prompt_tokens: int
    max_tokens: int
    arrival_s: float | None = None
    cached_tokens: int = 0
    slo_ms: float | None = None
    max_draft: int | None = None
    prefill_passes: int = 0
    drafter: str = "draft_model"
    tenant: str = ""
    prefill_drafts: bool = True
    acceptance: AcceptanceName = "greedy"

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "cached_tokens", "prefill_passes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not ≥ 0; give a count")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: {self.max_tokens} is not ≥ 1; ask for at least one token")
        if self.slo_ms is not None and not 0.0 < self.slo_ms < math.inf:
            raise ValueError(f"slo_ms: {self.slo_ms} is not > 0 and finite; give milliseconds")
        if self.arrival_s is not None and not math.isfinite(self.arrival_s):
            raise ValueError(f"arrival_s: {self.arrival_s} is not finite; give seconds on the clock of `now`")
        if self.max_draft is not None and self.max_draft < 0:
            raise ValueError(f"max_draft: {self.max_draft} is not ≥ 0; use 0 to switch speculation off")
        if self.acceptance not in get_args(AcceptanceName):
            known = ", ".join(get_args(AcceptanceName))
            raise ValueError(f"acceptance: {self.acceptance!r} is no rule; use one of {known}")


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to :meth:`Controller.admit`: admitted, or refused with a reason that says why."""

    admitted: bool
    deadline_s: float
    reason: str = ""


# What a plan is made of is not frozen: a decision makes one of each, and frozen ones take 3 µs longer.


@dataclass(slots=True)
class Reason:
    """Why a plan is what it is: what bound it, and the numbers behind it; not to be changed."""

    binding: Binding
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        numbers = " ".join(f"{key}={value:.3g}" for key, value in self.numbers.items())
        return " ".join(part for part in (self.binding.value, numbers, self.note) if part)


@dataclass(slots=True)
class CyclePlan:
    """One cycle for one request: at most ``max_draft`` tokens deep and ``max_nodes`` in all.

    A chain has no ``tree`` and ``max_nodes == max_draft``. ``max_draft == 0`` is plain target decoding. The
    drafter runs ``stop`` by itself; ``deadline_s`` is when the pass must have ended. From a plan on that is
    ``coupled`` a request's tokens are drawn under noise that draft and target share. In shadow mode a static
    τ is run, ``shadow_draft`` is what the policy would have drafted at most, and ``reason`` is the
    policy's. Not to be changed.
    """

    cycle_id: int
    request_id: str
    max_draft: int
    max_nodes: int
    stop: StopRule
    deadline_s: float
    from_pool: bool
    reason: Reason
    shadow_draft: int | None = None
    tree: TreeRule | None = None
    coupled: bool = False


@dataclass(frozen=True, slots=True)
class PlannedStop:
    """The request gets no further pass: it ends now with what is verified."""

    request_id: str
    cause: StopCause
    reason: Reason


@dataclass(slots=True)
class BatchPlan:
    """The answer to :meth:`Controller.plan`: each request asked about is in exactly one of the two.

    Not to be changed.
    """

    cycles: tuple[CyclePlan, ...]
    stops: tuple[PlannedStop, ...]


@dataclass(frozen=True, slots=True)
class CycleOutcome:
    """What one cycle did, as the engine measured it.

    ``drafted`` counts draft steps whose distribution was computed, ``proposed`` the tokens sent to
    verification (``proposed <= drafted``: the last one computed may be dropped), ``accepted`` the
    accepted draft tokens (the bonus/recovered token not counted), ``emitted`` the tokens appended.
    ``confidences`` holds max q for each of the ``drafted`` positions. ``draft_ms`` covers the
    ``drafted`` steps, ``draft_prefill_ms`` the tokens the draft's cache had to catch up with
    (``draft_prefill_tokens``). ``verified_tokens`` is the width of the target pass for this request
    (uncached prompt + block), ``batch_tokens`` that of the whole physical pass (0: this request ran
    alone), ``context_tokens`` what its KV cache already held. ``host_ms`` is what else the cycle took, and
    with it what planning it and learning from the one before did: every pass costs that, too. In a shared
    pass ``verify_ms`` is the whole pass's, and ``host_ms`` and the longest block's ``draft_ms`` are what all
    that share it wait for together (blocks grow in step); ``draft_prefill_ms`` is this request's part.
    ``ended`` is set when the output ended in this cycle. ``draft_fault`` says what went wrong with the
    drafter.

    Of a token tree ``proposed`` and ``accepted`` count its main chain only: what is learnt of them is how
    far the draft's first choices hold. The nodes beside it are ``side_proposed``, those of them that were
    accepted ``side_accepted``; ``verified_tokens`` counts all nodes, and so do the emitted tokens.
    ``side_judged`` holds (rank, share, right) of the further choices that the verified path has judged: the
    choices beside the first one, best first up to the right one, wherever the path left the first choice.
    ``side_worth`` is what the drafter took the nodes beside the chain to be worth, in tokens (None: it was
    not asked for a tree).

    ``lookup_judged`` is (confidence, right, judged) of the text that was looked up, proposed or not: so many
    of its leading tokens were compared with the output, so many were right. ``drafter`` names the source of a
    block that the request's usual drafter did not make.
    """

    cycle_id: int
    drafted: int
    proposed: int
    accepted: int
    emitted: int
    confidences: tuple[float, ...] = ()
    draft_ms: float = 0.0
    draft_prefill_ms: float = 0.0
    draft_prefill_tokens: int = 0
    verify_ms: float = 0.0
    verified_tokens: int = 1
    context_tokens: int = 0
    batch_size: int = 1
    batch_tokens: int = 0
    host_ms: float = 0.0
    ended: StopCause | None = None
    draft_fault: str | None = None
    side_proposed: int = 0
    side_accepted: int = 0
    side_judged: tuple[tuple[int, float, bool], ...] = ()
    side_worth: float | None = None
    lookup_judged: tuple[float, int, int] | None = None
    drafter: str | None = None


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """A finished request's account."""

    request_id: str
    cause: StopCause
    emitted_tokens: int
    target_passes: int
    pool_passes: int
    cycles: int
    e2e_ms: float
    met_slo: bool
