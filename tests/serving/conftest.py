"""Fixtures: running servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from live_server import Running, Serve, running

from specpilot.pair import load_pair


@pytest.fixture(scope="module")
def bundled() -> Iterator[Running]:
    """The bundled pair, shared by a module's tests."""
    with running(load_pair()) as run:
        yield run


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(running(*args, **kwargs))
