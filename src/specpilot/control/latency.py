"""The latency promise: an internal deadline tight enough for the SLO, and the price of time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from specpilot.control.window import Window

STRAIN_STEP = 0.1
LOST_MEMORY = 0.995
"""Some two hundred arrivals."""
MOST_LOST = 0.05
"""The share of the arrivals that a p95 promise may lose."""
SLACKS = 64
"""Arrivals of which it is remembered how long they could have waited for the engine."""
IDLE = 1e-3
"""Of θ*, what time is worth at least: so that of two ways to the same tokens the faster one is taken."""


class Lost(StrEnum):
    """What an arrival that was refused for want of time was lost to."""

    DRAFTING = "drafting"
    """Had nothing been drafted while it waited, there would have been time."""
    CROWD = "crowd"
    """The others' passes left no time."""
    ALONE = "alone"
    """It could not have been served on an idle engine either."""


@dataclass(frozen=True, slots=True)
class Pressing:
    """How hard misses of the SLO may press.

    While more than a share ``misses`` of the arrivals misses it, refusals among them, θ rises though nobody
    waits, unless so many are lost whatever is drafted that the promise cannot be kept: to ``unasked`` times
    θ* at most, and by ``hindering`` times θ* more for a cycle that leaves no arrival time, by as much of that
    as it does leave none. The queue presses harder, up to ``1 + harder`` times on θ, which may then rise to
    ``1 + above`` times θ*.
    """

    misses: float
    unasked: float
    hindering: float
    harder: float
    above: float


PRESSING = Pressing(0.04, 0.75, 8.0, 8.0, 0.5)
"""Every request takes its own passes: much more would cost tokens and help few. With these 95 % of the
arrivals are in time on development seeds where a static length manages that."""
GIVING_WAY = Pressing(0.03, 0.75, 8.0, 24.0, 3.0)
"""Requests may give way: pressure frees time."""


class DeadlineTracker:
    """The share of the SLO that requests may plan to use.

    An online quantile tracker aiming at ``miss_target``: every miss tightens the internal deadline by
    step·(1 − target), every hit relaxes it by step·target, so that it settles where that share misses.
    """

    def __init__(self, miss_target: float = 0.03, step: float = 0.04) -> None:
        self._target = miss_target
        self._step = step
        self.share = 0.95

    def observe(self, met_slo: bool) -> None:
        """A request has ended within its SLO, or not."""
        move = self._target if met_slo else self._target - 1.0
        self.share = min(1.0, max(0.4, self.share + self._step * move))


class TimePrice:
    """θ: what a millisecond of engine time is worth, in tokens.

    θ* = (tokens − λ · pool passes) ÷ engine time, prefill included, over recent cycles: the rate at
    which the busy system earns (Dinkelbach's parametric price). It is charged only as far as the time
    would be missed. Having somebody wait is not yet a loss: below capacity the queue empties again and
    every arrival is served, whatever a cycle took. So θ = θ* · the larger of

    * utilisation⁶: next to nothing at a load of 0.4, an eighth at 0.7, all at saturation; ``IDLE`` at least;
    * the strain: where too many arrivals miss the SLO, most of them find an engine at work on others, so time
      is dear before anybody waits; the dearer, the more of the recent arrivals could not have waited for this
      cycle, since a short one hardly hinders anybody. But only while fewer are lost whatever is drafted than
      the promise allows: beyond that no sacrifice keeps it;
    * the share of this request's remaining time that the queue's work would take: a burst has to be
      worked off before its deadlines whatever the average load is. The more arrivals miss the SLO, the
      harder the queue presses (:class:`Pressing`, in proportion to :attr:`strain`), for a refusal is worse
      than the tokens it loses.
    """

    def __init__(self, memory: float = 0.99, pressing: Pressing = PRESSING) -> None:
        self.pressing = pressing
        self._memory = memory
        self._tokens = 0.0
        self._time_ms = 0.0
        self._span_ms = 0.0
        self._cycles = 0.0
        self._last_s: float | None = None
        self._slacks = Window(SLACKS)
        self._lost = 0.0  # share of recent arrivals that are refused whatever is drafted
        self.strain = 0.0
        """0…1: how far the promise to all arrivals is in danger."""

    @property
    def busy_rate(self) -> float:
        """θ* in tokens per ms; 0 before the first cycle."""
        return max(0.0, self._tokens / self._time_ms) if self._time_ms > 0.0 else 0.0

    @property
    def utilisation(self) -> float:
        """Share of recent time in which the engine was at work, 0.32…1 (less makes no difference)."""
        time_ms, span_ms = self._time_ms, self._span_ms
        return time_ms / span_ms if time_ms < span_ms else 1.0

    def cycle(self, tokens: float, engine_ms: float, now: float) -> None:
        """A cycle that ended ``now`` earned ``tokens`` (net of λ for a pool pass) in ``engine_ms``."""
        keep = self._memory
        self._tokens = self._tokens * keep + tokens
        self._time_ms = self._time_ms * keep + engine_ms
        self._cycles = self._cycles * keep + 1.0
        span = engine_ms if self._last_s is None else max(0.0, now - self._last_s) * 1000.0
        # Below the utilisation at which ``IDLE`` takes over nothing changes, so no more of a pause is kept:
        # after a night the busy hour is not taken for a quiet one for a thousand cycles.
        self._span_ms = min(self._span_ms * keep + span, self._time_ms / IDLE ** (1.0 / 6.0))
        self._last_s = now

    def arrived(self, slack_ms: float) -> None:
        """A request has come, served or not, that could have waited so long for its first pass to begin.

        One that could not be served even at once is hindered by nobody.
        """
        if slack_ms > 0.0:
            self._slacks.add(slack_ms)

    def hindered(self, cycle_ms: float) -> float:
        """The share of the recent arrivals that could not have waited for such a cycle, had they come as it
        began; 0 where nothing is known.
        """
        return self._slacks.share_below(cycle_ms)

    def arrival(self, in_time: bool) -> None:
        """One that was admitted was answered within its SLO, or not."""
        self._lost *= LOST_MEMORY
        self._strain(in_time)

    def refused(self, lost: Lost) -> None:
        """One was refused for want of time."""
        self._lost = self._lost * LOST_MEMORY + (1.0 - LOST_MEMORY) * (lost is not Lost.DRAFTING)
        if lost is not Lost.ALONE:
            self._strain(in_time=False)

    def _strain(self, in_time: bool) -> None:
        """Pinball steps: it rises while more than ``pressing.misses`` of the arrivals miss."""
        move = -self.pressing.misses if in_time else 1.0 - self.pressing.misses
        self.strain = min(1.0, max(0.0, self.strain + STRAIN_STEP * move))

    def price(self, waiting: int, left_ms: float, cycle_ms: float = 0.0) -> float:
        """θ in tokens per ms.

        Args:
            waiting: other requests that are ready.
            left_ms: time to this request's deadline.
            cycle_ms: how long its cycle is going to take; 0 where that is not known.
        """
        time_ms = self._time_ms
        if time_ms <= 0.0 or self._tokens <= 0.0:
            return 0.0
        strain, how = self.strain, self.pressing
        pressure = max(IDLE, self.utilisation**6)
        if self._lost < MOST_LOST:
            pressure = max(pressure, strain * (how.unasked + how.hindering * self.hindered(cycle_ms)))
        if waiting:
            queue_ms = waiting * time_ms / self._cycles
            share = (1.0 + how.harder * strain) * queue_ms / max(left_ms, 1.0)
            pressure = max(pressure, min(1.0 + how.above * strain, share))
        return self._tokens / time_ms * pressure
