"""JSON Lines with checked fields: what the trace formats share.

A reader of a file that somebody else wrote must say *where* it is wrong, so every error names the
file, the line, the field, its value, the allowed range and the remedy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

Record = TypeVar("Record")


def read_lines(path: Path, parse: Callable[[Mapping[str, Any]], Record]) -> Iterator[Record]:
    """Parse each non-empty line of a JSON Lines file.

    Raises:
        ValueError: with the file's name and the line's number, for anything that is not a record.
        OSError: if the file cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield parse(_object(line))
            except ValueError as error:
                raise ValueError(f"{path.name}, line {number}: {error}") from None


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write one compact JSON object a line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
            count += 1
    return count


def check_version(record: Mapping[str, Any], version: int, what: str) -> None:
    """Refuse a record of another version.

    Raises:
        ValueError: if ``record["version"]`` is not ``version``.
    """
    found = record.get("version")
    if found != version or isinstance(found, bool):
        raise ValueError(
            f"version: {found!r} is not {version}, the only {what} version this program reads; "
            f'write "version": {version} or use the program that wrote it'
        )


def text(record: Mapping[str, Any], field: str) -> str:
    """A required string."""
    value: Any = record.get(field)
    if not isinstance(value, str):
        raise ValueError(f"{field}: {_shown(value)} is not a string; every record needs one")
    return value


def optional_text(record: Mapping[str, Any], field: str) -> str | None:
    """A string, or ``None`` where the field is absent or null."""
    return None if record.get(field) is None else text(record, field)


def count(record: Mapping[str, Any], field: str, *, least: int = 0) -> int:
    """A required whole number ≥ ``least``."""
    value: Any = record.get(field)
    if not _is_int(value) or value < least:
        raise ValueError(f"{field}: {_shown(value)} is not a whole number ≥ {least}; give a count")
    return int(value)


def number(record: Mapping[str, Any], field: str) -> float:
    """A required finite number."""
    value: Any = record.get(field)
    if not _is_number(value):
        raise ValueError(f"{field}: {_shown(value)} is not a finite number; give one")
    return float(value)


def flag(record: Mapping[str, Any], field: str) -> bool:
    """A required true or false."""
    value: Any = record.get(field)
    if not isinstance(value, bool):
        raise ValueError(f"{field}: {_shown(value)} is not true or false; give one of the two")
    return value


def numbers(
    record: Mapping[str, Any], field: str, *, low: float = -math.inf, high: float = math.inf
) -> tuple[float, ...] | None:
    """An optional list of numbers in [low, high]; ``None`` where the field is absent or null."""
    values = record.get(field)
    if values is None:
        return None
    if not isinstance(values, list):
        raise ValueError(f"{field}: {_shown(values)} is not a list; give one number per output position")
    for index, value in enumerate(values):
        if not _is_number(value) or not low <= value <= high:
            raise ValueError(
                f"{field}[{index}]: {_shown(value)} is not a number in {low:g}…{high:g}; correct it"
            )
    return tuple(float(value) for value in values)


def _object(line: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON ({error.msg} at column {error.colno}); write one JSON object a line"
        ) from None
    if not isinstance(record, dict):
        raise ValueError(f"{_shown(record)} is not an object; write one JSON object a line")
    return record


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    """The value for a message, shortened: a trace line may hold thousands of numbers."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"
