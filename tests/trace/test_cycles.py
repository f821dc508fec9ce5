"""Cycle records survive the file, fallback cycles included."""

from pathlib import Path

import pytest

from specpilot.control.types import Binding, StopCause
from specpilot.trace.cycles import CycleRecord, LedgerState, read_cycles, write_cycles

PLAIN = CycleRecord(
    request="a",
    index=0,
    start_s=0.5,
    end_s=0.512,
    prompt_tokens=10,
    max_draft=0,
    from_pool=False,
    binding=Binding.BREAKER,
    drafted=0,
    proposed=0,
    accepted=0,
    emitted=1,
    draft_ms=0.0,
    draft_prefill_ms=0.0,
    verify_ms=12.0,
    host_ms=0.1,
    verified_tokens=10,
    context_tokens=0,
    ledger=LedgerState(1, 1, 0.0),
    numbers={"theta": 0.25},
    ended=StopCause.EOS,
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "cycles.jsonl"
    assert write_cycles(path, [PLAIN, PLAIN]) == 2
    assert read_cycles(path) == [PLAIN, PLAIN]


def test_a_bad_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cycles.jsonl"
    write_cycles(path, [PLAIN])
    path.write_text(path.read_text().replace('"drafted":0', '"drafted":-1'))
    with pytest.raises(ValueError, match="line 1: drafted: -1 is not a whole number ≥ 0"):
        read_cycles(path)
    path.write_text(path.read_text().replace('"version":1', '"version":9'))
    with pytest.raises(ValueError, match="version: 9 is not 1"):
        read_cycles(path)
