"""A worker is kept on its caller's core while it is waited for, and the caller is not kept anywhere after."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from specpilot.control.stop import StopRule
from specpilot.decoding.acceptance import Greedy
from specpilot.decoding.types import Draft
from specpilot.drafters import core
from specpilot.drafters.base import DraftItem
from specpilot.drafters.core import SharedCore
from specpilot.drafters.guarded import GuardedDrafter

if sys.platform != "linux":
    pytest.skip("there are no such calls here", allow_module_level=True)

several_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
ITEM = DraftItem("r", [1, 2], 2, 2, StopRule(), Greedy())


@contextmanager
def worker() -> Iterator[threading.Thread]:
    """A thread that waits."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        done.set()
        thread.join()


def cores(thread: threading.Thread) -> set[int]:
    assert thread.native_id is not None
    return os.sched_getaffinity(thread.native_id)


@several_cores
def test_both_are_on_one_core_and_then_the_caller_is_free_again() -> None:
    before = os.sched_getaffinity(0)
    with worker() as thread:
        shared = SharedCore(thread)
        for _ in range(3):
            with shared:
                here = os.sched_getaffinity(0)
                assert len(here) == 1
                assert cores(thread) == here
            assert os.sched_getaffinity(0) == before
        shared.part()
        assert cores(thread) == before


@several_cores
def test_the_caller_is_free_again_after_an_error() -> None:
    before = os.sched_getaffinity(0)
    with worker() as thread, pytest.raises(RuntimeError), SharedCore(thread):
        raise RuntimeError
    assert os.sched_getaffinity(0) == before


@several_cores
def test_where_it_is_forbidden_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)

    def forbidden(*_: object) -> None:
        raise PermissionError

    with worker() as thread:
        shared = SharedCore(thread)
        monkeypatch.setattr(os, "sched_setaffinity", forbidden)
        with shared:
            assert os.sched_getaffinity(0) == before
        shared.part()
        assert cores(thread) == before


def test_without_the_call_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_current_core", lambda: None)
    before = os.sched_getaffinity(0)
    with worker() as thread:
        with SharedCore(thread):
            assert os.sched_getaffinity(0) == before
        assert cores(thread) == before


class Hangs:
    """A drafter that notes its thread and waits to be let go."""

    name = "hangs"
    vocab_size = 12

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.threads: list[threading.Thread] = []

    def open(self, *_: object) -> int:
        return 0

    def close(self, *_: object) -> None:
        pass

    def propose(self, _: object) -> list[Draft]:
        self.threads.append(threading.current_thread())
        self.let_go.wait()
        return [Draft()]


@several_cores
def test_a_call_that_hangs_is_off_the_core_of_the_one_that_goes_on() -> None:
    before = os.sched_getaffinity(0)
    inner = Hangs()
    guarded = GuardedDrafter(inner, 20.0, 12, one_core=True)
    fault = guarded.propose([ITEM])[0].fault
    assert (fault or "").startswith("time-out")
    assert os.sched_getaffinity(0) == before
    assert cores(inner.threads[0]) == before
    inner.let_go.set()
