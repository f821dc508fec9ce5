"""Export to Parquet: one table of cycles and one of requests, for pandas, polars, DuckDB and the like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from specpilot.trace.cycles import COUNTS, NUMBERS, CycleRecord
from specpilot.trace.files import TraceReader
from specpilot.trace.requests import AdmitRecord, EndRecord
from specpilot.trace.schema import VERSION, TraceHeader, from_json

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK = 20_000
_TEXTS = ("request", "binding", "note", "ended", "draft_fault", "drafter", "status", "own")
_LISTS = ("confidences", "overlaps", "proposal_q", "sampled")
_WHOLE_LISTS = ("accepted_at", "verdicts", "proposed_ids", "emitted_ids", "prompt_ids")


def export_parquet(path: Path, cycles_path: Path, requests_path: Path, *, partial: bool = False) -> int:
    """Write a trace's cycles and requests as two Parquet files; returns the number of cycles.

    The requests' table holds one row per arrival: what was asked, and, where it has ended, its account.
    Nothing is left behind if the trace turns out to be broken.

    Raises:
        ValueError: with the line's number, for anything that is not a whole trace.
        ModuleNotFoundError: if pyarrow is not installed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    reader = TraceReader(path, partial)
    requests: list[dict[str, Any]] = []
    open_rows: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    count = 0
    schema = _cycle_schema()
    try:
        with pq.ParquetWriter(cycles_path, schema, compression="zstd") as writer:
            for content in reader.objects():
                try:
                    record = from_json(content)
                except ValueError as error:
                    raise reader.error(error) from None
                if isinstance(record, TraceHeader):
                    writer.add_key_value_metadata({"specpilot.trace": str(VERSION)})
                elif isinstance(record, CycleRecord):
                    rows.append(_cycle_row(record))
                    count += 1
                    if len(rows) >= CHUNK:
                        writer.write_table(pa.Table.from_pylist(rows, schema))
                        rows.clear()
                elif isinstance(record, AdmitRecord):
                    row = {name: getattr(record, name) for name in _ADMIT}
                    requests.append(row)
                    if record.admitted:
                        open_rows[record.request] = row
                elif isinstance(record, EndRecord):
                    open_rows.pop(record.request, {}).update(
                        {name: getattr(record, name) for name in _END} | {"end_s": record.time_s}
                    )
            writer.write_table(pa.Table.from_pylist(rows, schema))
        pq.write_table(pa.Table.from_pylist(requests, _request_schema()), requests_path, compression="zstd")
    except BaseException:
        cycles_path.unlink(missing_ok=True)
        requests_path.unlink(missing_ok=True)
        raise
    return count


_ADMIT = (
    "request",
    "arrival_s",
    "prompt_tokens",
    "max_tokens",
    "cached_tokens",
    "slo_ms",
    "drafter",
    "tenant",
    "admitted",
    "deadline_s",
    "reason",
)
_END = ("cause", "emitted_tokens", "target_passes", "pool_passes", "cycles", "e2e_ms", "met_slo")


def _cycle_row(record: CycleRecord) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(record, name) for name in (*COUNTS, *NUMBERS, *_TEXTS)}
    row |= {
        "from_pool": record.from_pool,
        "shadow_draft": record.shadow_draft,
        "begin_call": record.begin_call,
        "ledger_admitted": record.ledger.admitted,
        "ledger_passes_started": record.ledger.passes_started,
        "ledger_pool": record.ledger.pool,
        "numbers": list(record.numbers.items()),
        "confidences": record.confidences,
    }
    for name in ("temperature", "own_id", *_LISTS[1:], *_WHOLE_LISTS):
        row[name] = getattr(record.evidence, name)
    return row


def _cycle_schema() -> pa.Schema:
    import pyarrow as pa

    types: dict[str, Any] = {name: pa.int64() for name in COUNTS}
    types |= {name: pa.float64() for name in NUMBERS}
    types |= {name: pa.string() for name in _TEXTS}
    types |= {name: pa.list_(pa.float64()) for name in _LISTS}
    types |= {name: pa.list_(pa.int64()) for name in _WHOLE_LISTS}
    types |= {
        "from_pool": pa.bool_(),
        "shadow_draft": pa.int64(),
        "begin_call": pa.int64(),
        "ledger_admitted": pa.int64(),
        "ledger_passes_started": pa.int64(),
        "ledger_pool": pa.float64(),
        "numbers": pa.map_(pa.string(), pa.float64()),
        "temperature": pa.float64(),
        "own_id": pa.int64(),
    }
    return pa.schema(list(types.items()))


def _request_schema() -> pa.Schema:
    import pyarrow as pa

    types: dict[str, Any] = {
        name: pa.string() for name in ("request", "drafter", "tenant", "reason", "cause")
    }
    types |= {name: pa.float64() for name in ("arrival_s", "slo_ms", "deadline_s", "end_s", "e2e_ms")}
    types |= {name: pa.bool_() for name in ("admitted", "met_slo")}
    counts = ("emitted_tokens", "target_passes", "pool_passes", "cycles")
    types |= {name: pa.int64() for name in ("prompt_tokens", "max_tokens", "cached_tokens", *counts)}
    return pa.schema(list(types.items()))
