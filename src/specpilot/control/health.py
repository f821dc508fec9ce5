"""Fallback that always recovers: a circuit breaker for faults, probes for drafting that does not pay.

Both count cycles, not time, so that the bound on recovery (I6) is a number of cycles: an idle drafter
gives no information, so fallback is left only by trying, at doubling intervals up to a maximum.
"""

from __future__ import annotations


class Backoff:
    """Doubling intervals between ``first`` and ``maximum`` cycles."""

    def __init__(self, first: int, maximum: int) -> None:
        self._first = first
        self._maximum = maximum
        self._interval = first
        self._left = first

    def due(self) -> bool:
        """Count one cycle; True if this one is to try (the next interval is then twice as long)."""
        self._left -= 1
        if self._left > 0:
            return False
        self._interval = min(self._maximum, self._interval * 2)
        self._left = self._interval
        return True

    def due_within(self, cycles: int) -> bool:
        """Whether :meth:`due` is going to answer with True once in so many cycles."""
        return self._left <= cycles

    def reset(self) -> None:
        """Start over at the first interval."""
        self._interval = self._left = self._first

    def again(self) -> None:
        """The cycle that was to try did not: the next one is to, and the interval does not grow for it."""
        self._interval = max(self._first, self._interval // 2)
        self._left = 1

    def hurry(self) -> None:
        """Let the very next cycle try: the last trial looked good."""
        self._interval = self._first
        self._left = 1


class Breaker:
    """Opens after ``faults`` drafter faults in a row, then lets trials through at doubling intervals."""

    def __init__(self, faults: int, first: int, maximum: int) -> None:
        self._limit = faults
        self._faults = 0
        self._backoff = Backoff(first, maximum)

    @property
    def open(self) -> bool:
        """Whether drafting is suspended."""
        return self._faults >= self._limit

    def allow(self) -> bool:
        """Whether this cycle may draft: always while closed, a trial now and then while open."""
        return self._faults < self._limit or self._backoff.due()

    def unused(self) -> None:
        """A cycle that was allowed to draft did not: a trial moves on to the next one."""
        if self.open:
            self._backoff.again()

    def observe(self, fault: bool) -> None:
        """A cycle that drafted has ended, with or without a fault."""
        if fault:
            self._faults += 1
        else:
            self._faults = 0
            self._backoff.reset()


class Breakers(dict[str, Breaker]):
    """By drafter; a drafter's breaker is made when it is first asked for."""

    def __init__(self, faults: int, first: int, maximum: int) -> None:
        super().__init__()
        self._settings = faults, first, maximum

    def __missing__(self, drafter: str) -> Breaker:
        breaker = self[drafter] = Breaker(*self._settings)
        return breaker


class Fallback:
    """Whether a context decodes with the target alone, with hysteresis and probes.

    Entered after two decisions in a row for which drafting does not pay, left as soon as it pays by
    ``margin``. While in it, a probe is due after ``first`` cycles, then after twice as many, up to
    ``maximum``; :meth:`hurry` brings the next one forward to the very next cycle.
    """

    def __init__(self, first: int, maximum: int, margin: float = 0.02) -> None:
        self._backoff = Backoff(first, maximum)
        self._margin = margin
        self._against = 0
        self.active = False

    def decide(self, gain: float) -> bool:
        """Given drafting's relative gain over plain decoding, whether to fall back now."""
        if self.active:
            if gain > self._margin:
                self.active = False
                self._against = 0
        elif gain <= 0.0:
            self._against += 1
            if self._against >= 2:
                self.active = True
                self._backoff.reset()
        else:
            self._against = 0
        return self.active

    def probe_due(self) -> bool:
        """Count one cycle of fallback; True if it is to be a probe."""
        return self._backoff.due()

    def due_within(self, cycles: int) -> bool:
        """Whether one of the next so many cycles of fallback is going to be a probe."""
        return self._backoff.due_within(cycles)

    def retry(self) -> None:
        """The cycle that was to probe had no draft: the next one is to, and the interval does not grow."""
        self._backoff.again()

    def hurry(self) -> None:
        """Let the very next cycle probe: there is a sign that drafting pays again."""
        self._backoff.hurry()
