"""JSON Lines with checked fields: what the trace formats share.

A reader of a file that somebody else wrote must say *where* it is wrong, so every error names the
file, the line, the field, its value, the allowed range and the remedy. Every function here that is given a
``record`` and a ``field`` raises such a ``ValueError`` for a value that it does not describe; the reader adds
file and line.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Record = TypeVar("Record")
NOT_TEXT = "not UTF-8 text; is the file compressed, damaged or of another kind?"


def read_lines(path: Path, parse: Callable[[Mapping[str, Any]], Record]) -> Iterator[Record]:
    """Parse each non-empty line of a JSON Lines file.

    Raises:
        ValueError: with the file's name and the line's number, for anything that is not a record.
        OSError: if the file cannot be read.
    """
    return read_numbered(path, lambda _, record: parse(record))


def read_numbered(path: Path, parse: Callable[[int, Mapping[str, Any]], Record]) -> Iterator[Record]:
    """As :func:`read_lines`; ``parse`` is also given the line's number, from 1.

    Raises:
        ValueError: with the file's name and the line's number, for anything that is not a record.
        OSError: if the file cannot be read.
    """
    # Bytes: a line that is no text is then an error of that line, as any other.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield parse(number, parse_object(line))
            except ValueError as error:
                raise ValueError(f"{path.name}, line {number}: {error}") from None


@contextmanager
def text_of(path: Path) -> Iterator[None]:
    """Around the reading of a whole text file or table.

    Raises:
        ValueError: naming the file, if it is no text, or no table.
    """
    try:
        yield
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}: {NOT_TEXT}") from None
    except csv.Error as error:
        raise ValueError(f"{path.name}: no table ({error}); give comma-separated values") from None


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write one compact JSON object a line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
            count += 1
    return count


def finite(value: Any) -> Any:
    """The same value for JSON, which has no infinity: a number that is unlimited, or none, becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


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


def optional_count(record: Mapping[str, Any], field: str) -> int | None:
    """A whole number ≥ 0, or ``None`` where the field is absent or null."""
    return None if record.get(field) is None else count(record, field)


def number(record: Mapping[str, Any], field: str, *, infinite: bool = False) -> float:
    """A required finite number; with ``infinite`` null stands for an unlimited one (JSON has no infinity)."""
    value: Any = record.get(field)
    if infinite and value is None:
        return math.inf
    if not _is_number(value):
        raise ValueError(f"{field}: {_shown(value)} is not a finite number; give one")
    return float(value)


def optional_number(record: Mapping[str, Any], field: str) -> float | None:
    """A finite number, or ``None`` where the field is absent or null."""
    return None if record.get(field) is None else number(record, field)


def duration(record: Mapping[str, Any], field: str) -> float:
    """A required finite number of milliseconds, ≥ 0."""
    value = number(record, field)
    if value < 0.0:
        raise ValueError(f"{field}: {value} is not ≥ 0; give milliseconds")
    return value


def one_of(record: Mapping[str, Any], field: str, allowed: Sequence[str]) -> str:
    """A required string out of a few."""
    value = text(record, field)
    if value not in allowed:
        raise ValueError(f"{field}: {value!r} is not one of {', '.join(allowed)}; use one of them")
    return value


def mapping(record: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """An object; an empty one where the field is absent or null."""
    value = record.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{field}: {_shown(value)} is not an object; give names and values")
    return value


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


def rows(
    record: Mapping[str, Any], field: str, *, low: float = 0.0, high: float = math.inf
) -> tuple[tuple[float, ...], ...] | None:
    """An optional list of lists of numbers in [low, high]; ``None`` where it is absent or null."""
    values = record.get(field)
    if values is None:
        return None
    if not isinstance(values, list):
        raise ValueError(f"{field}: {_shown(values)} is not a list; give one list per output position")
    return tuple(
        numbers({f"{field}[{index}]": row}, f"{field}[{index}]", low=low, high=high) or ()
        for index, row in enumerate(values)
    )


def whole_numbers(
    record: Mapping[str, Any], field: str, *, low: int = 0, high: float = math.inf
) -> tuple[int, ...] | None:
    """An optional list of whole numbers in [low, high]; ``None`` where the field is absent or null."""
    values = numbers(record, field, low=low, high=high)
    for index, value in enumerate(values or ()):
        if not value.is_integer():
            raise ValueError(f"{field}[{index}]: {value} is not a whole number; correct it")
    return None if values is None else tuple(int(value) for value in values)


def parse_object(line: str | bytes) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
        ValueError: if it holds anything else.
    """
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        raise ValueError(NOT_TEXT) from None
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
    """Whether it is a finite number that a float can stand for: JSON's integers have no end."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _shown(value: object) -> str:
    """The value for a message, shortened: a trace line may hold thousands of numbers."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"
