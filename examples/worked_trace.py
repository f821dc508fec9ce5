"""A short life of the policy, to be read cycle by cycle: the worked trace of docs/policy.md.

    python examples/worked_trace.py

Long prompts on a saturated engine whose draft is dear (2 ms a step, 6 ms a pass, flat in the block's length:
verification is parallel). No randomness and no confidences, so that every number can be checked by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from specpilot.control import (
    Controller,
    ControllerConfig,
    CostProfile,
    CycleOutcome,
    CyclePlan,
    PlannedStop,
    RequestInfo,
    StopCause,
)

STEP_MS, PASS_MS = 2.0, 6.0
PROMPT_TOKENS, MAX_TOKENS, MAX_DRAFT = 300, 48, 8
PHASES: Sequence[tuple[str, int, tuple[int, ...]]] = (
    ("easy text", 20, (8,)),
    ("hard: rejected at token 2 or 3", 24, (1, 2)),
    ("useless: rejected at token 1", 38, (0,)),
    ("easy text again", 50, (8,)),
)
"""(what the text is like, cycles, draft tokens that would be accepted, in turn)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One cycle, or the end of a request where ``plan`` is a :class:`PlannedStop`."""

    number: int
    phase: str
    request: str
    plan: CyclePlan | PlannedStop
    accepted: int
    pool: float


class Life:
    """Drives one controller; time moves by what the engine takes, so it is always busy."""

    def __init__(self) -> None:
        profile = CostProfile(STEP_MS, (PASS_MS,) * 12, (0.001,) * 12)
        self.controller = Controller(
            ControllerConfig(max_draft=MAX_DRAFT, slo_p95_ms=1000.0), profile=profile
        )
        self.now = 0.0
        self.rows: list[Row] = []
        self._serial = 0

    def admit(self) -> str:
        """A request with a long prompt that is cached already."""
        self._serial += 1
        name = f"r{self._serial}"
        info = RequestInfo(name, PROMPT_TOKENS, MAX_TOKENS, cached_tokens=PROMPT_TOKENS - 1)
        assert self.controller.admit(info, now=self.now).admitted
        return name

    def cycle(self, name: str, phase: str, would_accept: int, ends: StopCause | None = None) -> bool:
        """One cycle; False if the request was ended instead."""
        answer = self.controller.plan([name], now=self.now)
        number = 1 + sum(isinstance(row.plan, CyclePlan) for row in self.rows)
        if answer.stops:
            stop = answer.stops[0]
            self.rows.append(Row(number - 1, phase, name, stop, 0, self.controller.ledger.pool))
            self.controller.finish(name, stop.cause, now=self.now)
            return False
        plan = answer.cycles[0]
        self.controller.begin([plan.cycle_id], now=self.now)
        accepted = min(would_accept, plan.max_draft)
        draft_ms = STEP_MS * plan.max_draft
        self.now += (draft_ms + PASS_MS) / 1000.0
        outcome = CycleOutcome(
            plan.cycle_id,
            drafted=plan.max_draft,
            proposed=plan.max_draft,
            accepted=accepted,
            emitted=accepted + 1,
            draft_ms=draft_ms,
            verify_ms=PASS_MS,
            verified_tokens=plan.max_draft + 1,
            ended=ends,
        )
        self.controller.observe([outcome], now=self.now)
        self.rows.append(Row(number, phase, name, plan, accepted, self.controller.ledger.pool))
        return True

    def phases(self) -> None:
        """The four phases: two passes a request, one request after the other."""
        for phase, cycles, pattern in PHASES:
            done = 0
            while done < cycles:
                name = self.admit()
                for _ in range(2):
                    self.cycle(name, phase, pattern[done % len(pattern)])
                    done += 1
                self.controller.finish(name, StopCause.CANCELLED, now=self.now)

    def budget(self) -> None:
        """A short answer leaves a pass to the pool; a long one draws it; the next is cut."""
        short = self.admit()
        self.cycle(short, "ends early, leaves its second pass", 8, StopCause.EOS)
        self.controller.finish(short, StopCause.EOS, now=self.now)
        for phase in ("third pass from the pool", "no pass left"):
            name = self.admit()
            while self.cycle(name, phase, 8):
                pass


def trace() -> list[Row]:
    """The whole life."""
    life = Life()
    life.phases()
    life.budget()
    return life.rows


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown; cycles in a row of one phase that were bound by the same thing are one line."""
    yield "| cycles | text | τ | accepted | S₁ | θ, tokens/ms | gain of drafting | bound by | pool |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for _, group in groupby(rows, lambda row: (row.phase, _bound(row), isinstance(row.plan, PlannedStop))):
        members = list(group)
        first, last = members[0], members[-1]
        numbers = first.plan.reason.numbers
        if isinstance(first.plan, PlannedStop):
            end = f"{_bound(first)}: {numbers['missing_tokens']:.0f} tokens short"
            yield f"| after {first.number} | {first.phase} | ends | | | | | {end} | {first.pool:g} |"
            continue
        plans = [row.plan for row in members if isinstance(row.plan, CyclePlan)]
        lengths = _some([plan.max_draft for plan in plans])
        source = ", the last from the pool" if plans[-1].from_pool else ""
        count = f"{first.number}" if len(members) == 1 else f"{first.number}–{last.number}"
        yield (
            f"| {count} | {first.phase} | {lengths}{source} | {_some([row.accepted for row in members])} | "
            f"{numbers['S1']:.2f} | {numbers['theta']:.3f} | {numbers['gain']:+.2f} | {_bound(first)} | "
            f"{last.pool:g} |"
        )


def _bound(row: Row) -> str:
    reason = row.plan.reason
    return " ".join(part for part in (reason.binding.value, reason.note) if part)


def _some(values: Sequence[int]) -> str:
    """The first values, and that there are more."""
    return " ".join(str(value) for value in values[:8]) + (" …" if len(values) > 8 else "")


def main() -> None:
    """Print the table."""
    print("\n".join(table(trace())))


if __name__ == "__main__":
    main()
