"""What changed between two traces: time per token taken apart, and findings that came or went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specpilot.diagnosis.columns import TraceColumns
from specpilot.diagnosis.findings import HEALTHY, Diagnosis, metrics
from specpilot.diagnosis.speed import drafting_ms, shared

SHOWN = (
    "ms_per_token",
    "first_token_acceptance",
    "drafted_per_cycle",
    "plain_share",
    "discarded_share",
    "draft_step_ms",
    "pass_ms_at_one_token",
    "ms_for_each_further_token",
    "queue_ms_per_request",
)
QUIET = 0.05
"""A relative change below this is not shown."""


@dataclass(frozen=True, slots=True)
class Change:
    """A number before and after. ``ms_per_token`` is its part in the change of time per token, where it has
    one.
    """

    name: str
    before: float
    after: float
    ms_per_token: float | None = None

    @property
    def ratio(self) -> float:
        """After over before (1 where both are 0)."""
        if self.before == self.after:
            return 1.0
        return self.after / self.before if self.before else math.inf


@dataclass(frozen=True, slots=True)
class Comparison:
    """Changes, those that cost or save most time per token first."""

    before: Diagnosis
    after: Diagnosis
    changes: tuple[Change, ...]

    @property
    def new(self) -> tuple[str, ...]:
        """Causes found only afterwards."""
        return _only(self.after, self.before)

    @property
    def gone(self) -> tuple[str, ...]:
        """Causes found only before."""
        return _only(self.before, self.after)

    def to_json(self) -> dict[str, Any]:
        """The command line's ``comparison``."""
        return {
            "before": self.before.trace.name,
            "after": self.after.trace.name,
            "new": list(self.new),
            "gone": list(self.gone),
            "changes": [
                {
                    "name": change.name,
                    "before": change.before,
                    "after": change.after,
                    "ratio": change.ratio,
                    "ms_per_token": change.ms_per_token,
                }
                for change in self.changes
            ],
        }


def compare(before: Diagnosis, after: Diagnosis) -> Comparison:
    """Take the change of engine time per token apart.

    Time per token is the time per cycle over the tokens per cycle. The parts of a cycle (drafting, catching
    up, passes, host) are compared at the tokens per cycle of before; the rest of the change is that of
    tokens per cycle. So the parts add up to the whole.
    """
    old, new = _parts(before.trace), _parts(after.trace)
    tokens_old, tokens_new = before.model.tokens, after.model.tokens
    changes = [
        Change(name, old[name], new[name], (new[name] - old[name]) / max(tokens_old, 1e-9)) for name in old
    ]
    cycle = sum(new.values())
    rest = cycle / max(tokens_new, 1e-9) - cycle / max(tokens_old, 1e-9)
    changes.append(Change("tokens_per_cycle", tokens_old, tokens_new, rest))
    # A shift in what is asked for explains more than it costs.
    a, b = metrics(before.trace, before.model), metrics(after.trace, after.model)
    asked = [("prompt_tokens", _prompts(before.trace), _prompts(after.trace))]
    asked += [(name, a[name], b[name]) for name in SHOWN if name in a and name in b]
    changes.sort(key=lambda change: -abs(change.ms_per_token or 0.0))
    others = [Change(name, x, y) for name, x, y in asked]
    others.sort(key=lambda change: -_size(change))
    return Comparison(before, after, (*changes, *(c for c in others if _size(c) >= QUIET)))


def _size(change: Change) -> float:
    low, high = sorted((abs(change.before), abs(change.after)))
    return (high - low) / max(high, 1e-9)


def _parts(trace: TraceColumns) -> dict[str, float]:
    """Mean time per cycle by part, in ms; what a shared pass and its drafting take in equal parts."""
    return {
        "draft_ms_per_cycle": float(shared(trace, drafting_ms(trace)).mean()),
        "draft_prefill_ms_per_cycle": float(trace.draft_prefill_ms.mean()),
        "verify_ms_per_cycle": float(shared(trace, trace.verify_ms).mean()),
        "host_ms_per_cycle": float(shared(trace, trace.host_ms).mean()),
    }


def _prompts(trace: TraceColumns) -> float:
    first = trace.cycles["index"] == 0
    return float(trace.prompt_tokens[first].mean()) if first.any() else 0.0


def _only(one: Diagnosis, other: Diagnosis) -> tuple[str, ...]:
    known = {finding.cause for finding in other.findings}
    names: Sequence[str] = [finding.cause for finding in one.findings if finding.cause != HEALTHY]
    return tuple(name for name in names if name not in known)
