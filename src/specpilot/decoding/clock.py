"""Clocks for the serving loop: the machine's, and one that only moves when it is told to."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds on one monotonic scale."""

    def now(self) -> float:
        """The time, in seconds."""
        ...

    def wait_until(self, time_s: float) -> None:
        """Return at ``time_s``; at once if that is past."""
        ...

    def elapse(self, duration_ms: float) -> None:
        """Told what a batch of cycles took by its own account; a real clock has seen it pass already."""
        ...


class RealClock:
    """The machine's monotonic clock, from 0 when it is made."""

    def __init__(self) -> None:
        self._zero = time.perf_counter()

    def now(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._zero

    def wait_until(self, time_s: float) -> None:
        """Sleep until then."""
        left = time_s - self.now()
        if left > 0.0:
            time.sleep(left)

    def elapse(self, duration_ms: float) -> None:
        """Nothing: the time has passed."""


class VirtualClock:
    """Moves only by waiting and by what cycles report, so that a replay takes no time of its own."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s

    def now(self) -> float:
        """The virtual time in seconds."""
        return self._now

    def wait_until(self, time_s: float) -> None:
        """Jump there."""
        self._now = max(self._now, time_s)

    def elapse(self, duration_ms: float) -> None:
        """Move on by ``duration_ms``.

        Raises:
            ValueError: if it is negative.
        """
        if not duration_ms >= 0.0:
            raise ValueError(f"duration_ms: {duration_ms} is not ≥ 0; time does not run backwards")
        self._now += duration_ms / 1000.0
