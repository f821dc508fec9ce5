"""The Parquet tables hold all that the trace's records hold: a column cannot be forgotten."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest

from specpilot.control.types import Binding, StopCause
from specpilot.trace import (
    AdmitRecord,
    CycleEvidence,
    CycleRecord,
    EndRecord,
    LedgerState,
    TraceHeader,
    TraceRecord,
    write_trace,
)
from specpilot.trace.parquet import export_parquet
from specpilot.trace.schema import to_json

EVIDENCE = CycleEvidence(
    temperature=0.7,
    accepted_at=(1, 2),
    verdicts=(1, 1, 0, 1),
    overlaps=(0.5, 0.25, 0.0),
    proposal_q=(0.9, 0.5, 0.4, 0.3),
    proposed_ids=(5, 6, 7, 8),
    own_id=9,
    emitted_ids=(5, 6, 9),
    prompt_ids=(1, 2, 3),
    sampled=(0.25, 0.75, 0.1, 0.0),
    emitted_verdicts=(1, 0, 1),
)
CYCLE = CycleRecord(
    request="a",
    index=1,
    start_s=1.5,
    end_s=1.75,
    prompt_tokens=20,
    max_draft=6,
    from_pool=True,
    binding=Binding.DEADLINE,
    drafted=5,
    proposed=4,
    accepted=2,
    emitted=3,
    draft_ms=2.5,
    draft_prefill_ms=0.5,
    verify_ms=30.25,
    host_ms=0.125,
    verified_tokens=7,
    context_tokens=16,
    ledger=LedgerState(3, 4, 1.5),
    numbers={"S1": 0.5},
    ended=StopCause.EOS,
    draft_fault="hung",
    note="a note",
    confidences=(0.5, 0.25),
    draft_prefill_tokens=2,
    batch_size=3,
    batch_tokens=11,
    queue_ms=4.5,
    drafter="lookup",
    cycle=8,
    status="aborted",
    planned_s=1.25,
    deadline_s=9.5,
    max_nodes=12,
    shadow_draft=2,
    stop_digest=77,
    plan_call=5,
    plan_place=1,
    begin_call=6,
    end_call=7,
    end_place=2,
    side_proposed=6,
    side_accepted=1,
    side_judged=(2.0, 0.25, 1.0),
    side_worth=0.75,
    lookup_judged=(0.5, 3.0, 4.0),
    coupled=True,
    evidence=EVIDENCE,
)
ADMITTED = AdmitRecord(
    call=1,
    time_s=1.0,
    request="a",
    arrival_s=0.5,
    prompt_tokens=20,
    max_tokens=24,
    cached_tokens=3,
    slo_ms=250.0,
    max_draft=5,
    prefill_passes=2,
    drafter="lookup",
    tenant="t",
    admitted=True,
    deadline_s=9.5,
    reason="a reason",
    prefill_drafts=False,
    acceptance="coupled",
)
ENDED = EndRecord(
    call=9,
    time_s=2.0,
    request="a",
    cause=StopCause.EOS,
    emitted_tokens=3,
    target_passes=2,
    pool_passes=1,
    cycles=2,
    e2e_ms=1500.0,
    met_slo=True,
)


def _tables(path: Path, *records: TraceRecord) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_trace(path / "t.jsonl", TraceHeader("test"), records)
    assert export_parquet(path / "t.jsonl", path / "c.parquet", path / "r.parquet") == 1
    return (
        parquet.read_table(path / "c.parquet").to_pylist(),
        parquet.read_table(path / "r.parquet").to_pylist(),
    )


def _without_kind(record: TraceRecord) -> dict[str, Any]:
    told = {name: list(v) if isinstance(v, tuple) else v for name, v in to_json(record).items()}
    del told["kind"]
    return told


@pytest.mark.parametrize("record", [CYCLE, EVIDENCE], ids=["cycle", "evidence"])
def test_the_example_says_something_in_every_field(record: CycleRecord | CycleEvidence) -> None:
    """A new field of a record must be given a value here: a default would look the same as none."""
    for field in fields(record):
        empty = field.default if field.default_factory is MISSING else field.default_factory()
        assert getattr(record, field.name) != empty, field.name


def test_every_field_of_a_cycle_is_exported_with_its_value(tmp_path: Path) -> None:
    (row,), _ = _tables(tmp_path, ADMITTED, CYCLE, ENDED)
    row["numbers"] = dict(row["numbers"])
    told = _without_kind(CYCLE)
    told |= {f"ledger_{name}": value for name, value in told.pop("ledger").items()}
    assert row == told


def test_what_a_cycle_does_not_tell_is_null(tmp_path: Path) -> None:
    plain = replace(
        CYCLE,
        ended=None,
        side_judged=(),
        side_worth=None,
        lookup_judged=None,
        shadow_draft=None,
        evidence=CycleEvidence(),
    )
    (row,), _ = _tables(tmp_path, plain)
    assert [row[name] for name in ("ended", "side_worth", "lookup_judged", "shadow_draft", "sampled")] == (
        [None] * 5
    )
    assert row["side_judged"] == []


def test_every_field_of_a_request_is_exported_with_its_value(tmp_path: Path) -> None:
    _, (row,) = _tables(tmp_path, ADMITTED, CYCLE, ENDED)
    told = _without_kind(ADMITTED)
    told |= {"admit_call": told.pop("call"), "admit_s": told.pop("time_s")}
    told |= _without_kind(ENDED)
    told |= {"end_call": told.pop("call"), "end_s": told.pop("time_s")}
    assert row == told
