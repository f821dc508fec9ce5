"""Export to Parquet: one table of cycles and one of requests, for pandas, polars, DuckDB and the like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from specpilot.trace.cycles import CycleEvidence, CycleRecord, LedgerState
from specpilot.trace.files import TraceReader
from specpilot.trace.requests import AdmitRecord, EndRecord
from specpilot.trace.schema import VERSION, TraceHeader, from_json

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK = 20_000


def _names(record: type[Any], **renamed: str) -> dict[str, str]:
    """A record's fields and their columns' names; those that are records themselves are left out."""
    names = (field.name for field in fields(record))
    return {name: renamed.get(name, name) for name in names if name not in ("ledger", "evidence")}


CYCLE_NAMES = _names(CycleRecord)
LEDGER_NAMES = {name: f"ledger_{name}" for name in _names(LedgerState)}
EVIDENCE_NAMES = _names(CycleEvidence)
ADMIT_NAMES = _names(AdmitRecord, call="admit_call", time_s="admit_s")
END_NAMES = _names(EndRecord, call="end_call", time_s="end_s")


def export_parquet(path: Path, cycles_path: Path, requests_path: Path, *, partial: bool = False) -> int:
    """Write a trace's cycles and requests as two Parquet files; returns the number of cycles.

    Both have a column for every field of the trace's records. A cycle's ledger is spread over columns
    ``ledger_*``, and its evidence stands beside the other columns. The requests' table holds one row per
    arrival: what was asked, and, where it has ended, its account.
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
                    row = _row(record, ADMIT_NAMES)
                    requests.append(row)
                    if record.admitted:
                        open_rows[record.request] = row
                elif isinstance(record, EndRecord):
                    open_rows.pop(record.request, {}).update(_row(record, END_NAMES))
            writer.write_table(pa.Table.from_pylist(rows, schema))
        pq.write_table(pa.Table.from_pylist(requests, _request_schema()), requests_path, compression="zstd")
    except BaseException:
        cycles_path.unlink(missing_ok=True)
        requests_path.unlink(missing_ok=True)
        raise
    return count


def _row(record: object, names: Mapping[str, str]) -> dict[str, Any]:
    return {column: getattr(record, name) for name, column in names.items()}


def _cycle_row(record: CycleRecord) -> dict[str, Any]:
    return (
        _row(record, CYCLE_NAMES)
        | {"own": record.own, "numbers": list(record.numbers.items())}
        | _row(record.ledger, LEDGER_NAMES)
        | _row(record.evidence, EVIDENCE_NAMES)
    )


def _cycle_schema() -> pa.Schema:
    import pyarrow as pa

    types = _types(CycleRecord, CYCLE_NAMES) | {"own": pa.string()}
    types |= _types(LedgerState, LEDGER_NAMES) | _types(CycleEvidence, EVIDENCE_NAMES)
    return pa.schema(list(types.items()))


def _request_schema() -> pa.Schema:
    import pyarrow as pa

    types = _types(AdmitRecord, ADMIT_NAMES) | _types(EndRecord, END_NAMES)
    return pa.schema(list(types.items()))


def _types(record: type[Any], names: Mapping[str, str]) -> dict[str, Any]:
    hints = get_type_hints(record)
    return {column: _type(hints[name]) for name, column in names.items()}


def _type(hint: Any) -> Any:
    """The column's type for a field's."""
    import pyarrow as pa

    if isinstance(hint, UnionType):  # every column may hold null
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple:
        return pa.list_(_type(get_args(hint)[0]))
    if get_origin(hint) is Mapping:
        return pa.map_(*map(_type, get_args(hint)))
    known = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return known.get(hint, pa.string())  # names: text, or an enumeration of strings
