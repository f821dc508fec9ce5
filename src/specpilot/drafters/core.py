"""Two threads that take turns, kept on one processor core while one of them waits for the other.

The operating system likes to wake a thread on an idle core. For a caller that does nothing but wait for its
worker this is the wrong choice: the idle core sleeps, and waking it takes some 40 µs on a virtual machine,
twice for every call. On the caller's own core, which is awake, both switches together take about 20 µs.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable


class SharedCore:
    """Keeps a worker on its caller's core: ``with core:`` around handing it a job and waiting for the answer.

    The caller may run anywhere again when it has its answer. The worker stays where it is until the caller
    has moved, or until :meth:`part`. Where the system has no such calls, refuses them, or gives the process
    one core only, nothing happens.

    Args:
        worker: the thread that answers; it has been started. None: nothing is done.
    """

    def __init__(self, worker: threading.Thread | None) -> None:
        self._worker = None if worker is None else worker.native_id
        self._current = _current_core() if self._worker is not None else None
        self._cores: set[int] = set()  # where the caller may run when it does not wait
        self._joined: int | None = None  # the core that the worker is kept on

    def __enter__(self) -> None:
        """Bring both to the caller's core."""
        if self._current is None or self._worker is None or sys.platform != "linux":
            return
        try:
            self._cores = os.sched_getaffinity(0)
            if len(self._cores) < 2:
                self._cores = set()
                return
            core = self._current()
            if core != self._joined:
                os.sched_setaffinity(self._worker, (core,))
                self._joined = core
            os.sched_setaffinity(0, (core,))
        except OSError:  # a sandbox that forbids it, a worker that has ended
            self._current, self._cores = None, set()

    def __exit__(self, *_: object) -> None:
        """The caller may run where it likes."""
        if self._cores and sys.platform == "linux":
            os.sched_setaffinity(0, self._cores)

    def part(self) -> None:
        """The worker is not waited for any more: it must not get in the caller's way."""
        if self._joined is not None and self._worker is not None and sys.platform == "linux":
            self._joined = None
            try:
                os.sched_setaffinity(self._worker, self._cores)
            except OSError:
                self._current = None


def _current_core() -> Callable[[], int] | None:
    """The C library's ``sched_getcpu``, if it has one."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        function = ctypes.CDLL(None).sched_getcpu
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_int
    return function
