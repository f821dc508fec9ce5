"""Requests in flight and their open cycles, as the controller keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from specpilot.control.cost import CostModel
from specpilot.control.planning import TYPICAL_DRAFT, CycleView
from specpilot.control.types import CycleOutcome, CyclePlan, RequestInfo, StopCause


@dataclass(slots=True)
class OpenRequest:
    """A request that was admitted and is not finished.

    ``slo_ms`` counts from ``arrival_s``; ``deadline_s`` is the internal deadline, which is tighter.
    ``uncached`` and ``behind`` are context tokens that the target and the draft have not cached.
    ``cycle_id`` is that of the cycle that is planned or, since ``began_s``, running; its drafting is expected
    to take ``drafting_ms``. ``measures``: it was let in to measure again what a first pass takes, so it gets
    that pass whatever the costs say.
    """

    info: RequestInfo
    arrival_s: float
    slo_ms: float
    deadline_s: float
    uncached: int
    behind: int
    emitted: int = 0
    cycles: int = 0
    drafter_failed: bool = False
    cycle_id: int | None = None
    began_s: float | None = None
    drafting_ms: float = 0.0
    ended: StopCause | None = None
    measures: bool = False

    @property
    def window_ms(self) -> float:
        """From the arrival to the internal deadline."""
        return (self.deadline_s - self.arrival_s) * 1000.0

    @property
    def cached(self) -> int:
        """Context tokens that the target has cached."""
        cached = self.info.prompt_tokens + self.emitted - self.uncached
        return cached if cached > 0 else 0

    def left_ms(self, now: float) -> float:
        """Time to the internal deadline."""
        return (self.deadline_s - now) * 1000.0

    def first_ms(self, cost: CostModel) -> float:
        """Upper quantile of an arrival's first pass with nothing drafted."""
        return cost.verify_ms(self.uncached, self.info.cached_tokens) * cost.verify_upper.ratio

    def plain_ms(self, cost: CostModel) -> float:
        """Expected time of the next cycle with nothing drafted."""
        return cost.verify_ms(self.uncached, self.cached) + cost.host_ms

    def cycle_ms(self, cost: CostModel) -> float:
        """Expected time of the next cycle in a crowd, where one token is drafted."""
        drafting = cost.drafting_ms(self.behind - 1, 1)
        return drafting + cost.verify_ms(self.uncached + 1, self.cached) + cost.host_ms

    def rest_ms(self, cost: CostModel, now: float) -> float:
        """Expected time that its open cycle still takes, ≥ 0."""
        spent_ms = 0.0 if self.began_s is None else (now - self.began_s) * 1000.0
        return max(0.0, self.drafting_ms + self.plain_ms(cost) - spent_ms)

    def begin(self, cost: CostModel, draft: int, now: float) -> None:
        """Its open cycle begins, with a block of up to so many tokens."""
        self.began_s = now
        self.drafting_ms = cost.drafting_ms(self.behind - 1, min(draft, TYPICAL_DRAFT)) if draft else 0.0


@dataclass(slots=True)
class OpenCycle:
    """A cycle that is planned (its pass is reserved) or, from ``begun`` on, running.

    ``learns`` says whether the planner has seen it and so learns from what it did.
    """

    request: OpenRequest
    view: CycleView
    plan: CyclePlan
    learns: bool
    begun: bool = False

    def check(self, outcome: CycleOutcome, index: int) -> None:
        """Whether the cycle can have ended so; ``index`` is the outcome's in the caller's list.

        Raises:
            ValueError: if it has not begun, or for impossible counts.
        """
        where = f"outcomes[{index}]"
        if not self.begun:
            raise ValueError(f"{where}.cycle_id: {outcome.cycle_id} has not begun; call begin first")
        if not 0 <= outcome.accepted <= outcome.proposed:
            raise ValueError(
                f"{where}.accepted: {outcome.accepted} is not in 0…{outcome.proposed} (proposed); count the "
                "drafted tokens of the main chain that were accepted, not the target's own"
            )
        if outcome.confidences and len(outcome.confidences) < outcome.proposed:
            raise ValueError(
                f"{where}.confidences: {len(outcome.confidences)} are fewer than {outcome.proposed} "
                "(proposed); give one for each drafted token, or none at all"
            )
        if not 0 <= outcome.side_accepted <= outcome.side_proposed:
            raise ValueError(
                f"{where}.side_accepted: {outcome.side_accepted} is not in 0…{outcome.side_proposed} "
                "(side_proposed); count the accepted nodes beside the main chain"
            )
        most = outcome.accepted + outcome.side_accepted + 1
        if not 0 <= outcome.emitted <= most:
            raise ValueError(
                f"{where}.emitted: {outcome.emitted} is not in 0…{most} (the accepted and the target's own; "
                "a chunk of the prompt has none); count the tokens that were appended"
            )
        left = self.request.info.max_tokens - self.request.emitted
        if outcome.emitted > left:
            raise ValueError(
                f"{where}.emitted: {outcome.emitted} is not in 0…{left} (what {self.plan.request_id!r} still "
                f"wants of its max_tokens {self.request.info.max_tokens}); end the output there"
            )

    def close(self, outcome: CycleOutcome) -> None:
        """It has ended so: the request goes on from there."""
        request = self.request
        request.cycle_id = request.began_s = None
        request.cycles += 1
        request.emitted += outcome.emitted
        # A pass that emitted nothing was a chunk of the prompt.
        request.uncached = 1 if outcome.emitted else max(1, request.uncached - outcome.verified_tokens)
        left_behind = 0 if outcome.draft_prefill_tokens else request.behind
        stepped = outcome.drafted and outcome.drafter in (None, request.info.drafter)
        request.behind = 1 if stepped else max(1, left_behind + outcome.emitted)
        request.ended = outcome.ended
        if self.plan.max_draft and outcome.draft_fault is not None:
            request.drafter_failed = True


class Requests(dict[str, OpenRequest]):
    """The requests in flight by id, in the order of their admission; any other id is a ValueError."""

    def __missing__(self, request_id: str) -> NoReturn:
        raise ValueError(f"request_id: {request_id!r} is not in flight; admit it first")


class Cycles(dict[int, OpenCycle]):
    """The open cycles by id; any other id is a ValueError."""

    def __missing__(self, cycle_id: int) -> NoReturn:
        raise ValueError(f"cycle_id: {cycle_id} is not open; plan it first")
