"""What a trace says about time: a small model of the engine, and what would change if a part were better.

A cycle costs τ draft steps of d ms, a pass of a + b · (width − 1) ms and host work; it yields one token and
every accepted one. From the measured parts follow the rate of any fixed draft length and the gain of mending
one part alone (Leviathan et al. 2023, section 3, with the verification's slope kept).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specpilot.diagnosis.columns import Bools, Floats, TraceColumns

NARROW = 40
"""Widest pass that counts as decoding; wider ones carry a prompt's prefill."""
LONGEST = 16
GOOD_HAZARD = 0.8
"""Acceptance of a good draft model at every position (what a well-chosen small model of a family reaches)."""
GOOD_STEP = 0.1
"""A good draft step, as a share of a plain target pass."""
GOOD_HOST = 0.03
"""Good host work of a cycle, as a share of a plain target pass."""


@dataclass(frozen=True, slots=True)
class SpeedModel:
    """Medians of a trace, in ms, where requests share a pass an equal part of it; ``survival[j]`` is the
    probability that j + 1 draft tokens are accepted.
    """

    draft_ms: float
    pass_ms: float
    token_ms: float
    host_ms: float
    fixed_ms: float
    """Prefill and catching up, spread over the cycles."""
    survival: Floats
    widths: int
    """How many different pass widths were seen; with one the slope is unknown (taken as 0)."""
    rate: float
    """Tokens per ms of engine time, measured."""
    cycle_ms: float
    tokens: float
    """Tokens per cycle, measured."""
    assumed: bool = False
    """The trace holds no times: a pass counts 1, a draft step what a good one costs, the rest nothing."""

    def rate_at(self, tau: int, survival: Floats | None = None, draft_ms: float | None = None) -> float:
        """Tokens per ms at a fixed draft length."""
        reach = self.survival if survival is None else survival
        step = self.draft_ms if draft_ms is None else draft_ms
        cost = tau * step + self.pass_ms + self.token_ms * tau + self.host_ms + self.fixed_ms
        return float(1.0 + reach[:tau].sum()) / cost

    def best(self, survival: Floats | None = None, draft_ms: float | None = None) -> tuple[int, float]:
        """(draft length, rate) of the best fixed one."""
        rates = [self.rate_at(tau, survival, draft_ms) for tau in range(LONGEST + 1)]
        tau = int(np.argmax(rates))
        return tau, rates[tau]

    @property
    def plain(self) -> float:
        """Tokens per ms without any draft."""
        return self.rate_at(0)


def usable(trace: TraceColumns) -> Bools:
    """Cycles that ran a pass (the others are faults of their own)."""
    return np.asarray(trace.verify_ms > 0.0)


def decoding(trace: TraceColumns) -> Bools:
    """Cycles whose pass held a block and the token before it, but nothing of a prompt."""
    own = trace.verified_tokens - trace.proposed
    return np.asarray((trace.verified_tokens >= 1) & (own <= 2) & (trace.verified_tokens <= NARROW))


def hazards(trace: TraceColumns, mask: Bools | None = None, longest: int = LONGEST) -> tuple[Floats, Floats]:
    """(acceptance at each position given that it was reached, how often it was reached)."""
    accepted = trace.accepted if mask is None else trace.accepted[mask]
    proposed = trace.proposed if mask is None else trace.proposed[mask]
    reached = np.zeros(longest)
    passed = np.zeros(longest)
    for place in range(longest):
        there = (proposed > place) & (accepted >= place)
        reached[place] = there.sum()
        passed[place] = (there & (accepted > place)).sum()
    with np.errstate(invalid="ignore"):
        return np.where(reached > 0, passed / np.maximum(reached, 1.0), np.nan), reached


def fit(trace: TraceColumns) -> SpeedModel:
    """The model of a trace; of one without times, that of a good engine with its acceptance."""
    good = usable(trace)
    if not good.any() or not trace.tells("verify_ms"):
        return _without_times(trace)
    narrow = good & decoding(trace)
    drafting = trace.drafted > 0
    steps = shared(trace, trace.draft_ms)
    draft_ms = float(np.median(steps[drafting] / trace.drafted[drafting])) if drafting.any() else 0.0
    pass_ms, token_ms, widths = _pass_line(trace, narrow)
    host_ms = float(np.mean(shared(trace, trace.host_ms)))
    spent = trace.draft_prefill_ms + shared(trace, drafting_ms(trace) + trace.verify_ms + trace.host_ms)
    excess = _excess_ms(trace, good & ~narrow, narrow, pass_ms) + float(trace.draft_prefill_ms.sum())
    found, reached = hazards(trace)
    hazard = _extended(found, reached)
    total = float(spent.sum())
    return SpeedModel(
        draft_ms=draft_ms,
        pass_ms=pass_ms,
        token_ms=token_ms,
        host_ms=host_ms,
        fixed_ms=excess / len(trace),
        survival=np.cumprod(hazard),
        widths=widths,
        rate=float(trace.emitted.sum()) / max(total, 1e-9),
        cycle_ms=total / len(trace),
        tokens=float(trace.emitted.mean()),
    )


def _without_times(trace: TraceColumns) -> SpeedModel:
    found, reached = hazards(trace)
    cycle = 1.0 + GOOD_STEP * float(np.maximum(trace.drafted, trace.proposed).mean())
    tokens = float(trace.emitted.mean())
    survival = np.cumprod(_extended(found, reached))
    return SpeedModel(
        draft_ms=GOOD_STEP,
        pass_ms=1.0,
        token_ms=0.0,
        host_ms=0.0,
        fixed_ms=0.0,
        survival=survival,
        widths=0,
        rate=max(tokens, 1e-9) / cycle,
        cycle_ms=cycle,
        tokens=tokens,
        assumed=True,
    )


def shared(trace: TraceColumns, times_ms: Floats) -> Floats:
    """What all that share a pass wait for together, charged to them in equal parts."""
    return np.asarray(times_ms / np.maximum(trace.batch_size, 1))


def _excess_ms(trace: TraceColumns, wide: Bools, narrow: Bools, pass_ms: float) -> float:
    """What the wide passes took beyond narrow ones, each pass counted once; ``pass_ms`` is a request's part
    of a narrow one.

    Those sharing a pass start together. Where a trace does not hold them all, the others are taken to be wide
    as often as those that it holds.
    """
    begun = np.unique(trace.start_s, return_inverse=True)[1]
    wide_part = np.bincount(begun, weights=wide)[begun] / np.bincount(begun)[begun]
    counted = 1.0 / np.maximum(trace.batch_size * wide_part, 1.0)
    narrow_sizes = np.unique(trace.batch_size[narrow & (wide_part == 0.0)])
    parts = np.where(np.isin(trace.batch_size, narrow_sizes), trace.batch_size, 1)
    return float((np.maximum(trace.verify_ms - pass_ms * parts, 0.0) * counted)[wide].sum())


def drafting_ms(trace: TraceColumns) -> Floats:
    """What each cycle's pass spent on draft steps: all that share one wait for its longest block."""
    together = trace.batch_size > 1
    longest = trace.draft_ms.copy()
    passes, place = np.unique(trace.end_s[together], return_inverse=True)
    most = np.zeros(len(passes))
    np.maximum.at(most, place, longest[together])
    longest[together] = most[place]
    return np.asarray(longest)


def _pass_line(trace: TraceColumns, narrow: Bools) -> tuple[float, float, int]:
    """(time of a pass over one token, time of each further one, widths seen), from medians by width."""
    width = trace.verified_tokens[narrow]
    parts = shared(trace, trace.verify_ms)
    times = parts[narrow]
    if not len(width):
        return float(np.median(parts)), 0.0, 0
    points, medians, weights = [], [], []
    for value in np.unique(width):
        there = times[width == value]
        if len(there) >= 5:
            points.append(float(value) - 1.0)
            medians.append(float(np.median(there)))
            weights.append(float(np.sqrt(len(there))))
    if len(points) < 2:
        return float(np.median(times)), 0.0, len(points)
    slope, base = np.polyfit(points, medians, 1, w=weights)
    slope = max(0.0, float(slope))
    base = float(base) if slope else float(np.median(times))
    # A line through zero would make every ratio to the base infinite.
    return max(base, 0.02 * float(np.median(times))), slope, len(points)


def _extended(found: Floats, reached: Floats) -> Floats:
    """Hazards at all positions: what is rarely reached takes after the position before it."""
    result = np.zeros(len(found))
    last = 0.0
    for place in range(len(found)):
        known = 0.0 if np.isnan(found[place]) else float(found[place])
        weight = float(reached[place])
        last = (weight * known + 20.0 * last) / (weight + 20.0) if place else known
        result[place] = last
    return result
