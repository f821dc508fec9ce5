"""A trace of a real run: the serving loop and the controller on recorded agreement bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from specpilot.control import ControllerConfig
from specpilot.simulation.policies import replay_policy
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.stream import first_guess
from specpilot.trace import AgreementTrace, TraceHeader, TraceRecord, write_trace


def run_trace(
    requests: int = 60, rate: float = 20.0, config: ControllerConfig | None = None
) -> tuple[TraceHeader, list[TraceRecord]]:
    """Requests of 24 tokens, accepted by a fixed pattern, some of them refused or cut by the budget."""
    stream = []
    for index in range(requests):
        bits = tuple(int((index * 7 + position * 5) % 11 > 2 + index % 3) for position in range(24))
        confidence = tuple(0.9 if bit else 0.3 + 0.02 * (position % 9) for position, bit in enumerate(bits))
        trace = AgreementTrace(f"r{index}", 20 + 40 * (index % 5), bits, confidence, ended="eos")
        stream.append(ReplayRequest(f"r{index}", trace, 24, index / rate))
    run = replay_policy("specpilot", stream, first_guess(), config, keep_cycles=True)
    return run.controller.header, run.controller.trace


@pytest.fixture(scope="session")
def run() -> Callable[..., tuple[TraceHeader, list[TraceRecord]]]:
    """Makes a run: (requests, arrivals per second, configuration)."""
    return run_trace


@pytest.fixture(scope="session")
def whole() -> tuple[TraceHeader, list[TraceRecord]]:
    """A header and its records."""
    return run_trace()


@pytest.fixture
def trace_file(whole: tuple[TraceHeader, list[TraceRecord]], tmp_path: Path) -> Path:
    """The trace as a plain file."""
    path = tmp_path / "trace.jsonl"
    write_trace(path, *whole)
    return path
