"""Real arrivals: a CSV with a time, the prompt's and the output's length per request.

The columns are those of the Azure LLM inference traces (Patel et al. 2024): ``TIMESTAMP`` (a date and time,
or seconds), ``ContextTokens``, ``GeneratedTokens``; others are ignored.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from specpilot.trace.lines import text_of

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when, in seconds since the first, and how long its prompt and its output are."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def read_arrivals(path: Path) -> Iterator[Arrival]:
    """Arrivals in the order of the file, read as they are asked for.

    Raises:
        ValueError: naming file and line, for a missing column, a value that is no time or count, or a time
            before the one above it.
        OSError: if the file cannot be read.
    """
    with text_of(path), path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path.name}: column {missing[0]} is missing; the first line must name {', '.join(COLUMNS)}"
            )
        first: float | None = None
        last = 0.0
        for number, row in enumerate(rows, 2):
            where = f"{path.name}, line {number}"
            time = _seconds(row["TIMESTAMP"], where)
            first = time if first is None else first
            if time - first < last:
                raise ValueError(f"{where}: TIMESTAMP is before the line above; sort the file by time")
            last = time - first
            yield Arrival(
                last,
                _count(row["ContextTokens"], "ContextTokens", where),
                _count(row["GeneratedTokens"], "GeneratedTokens", where),
            )
        if first is None:
            raise ValueError(f"{path.name}: there are no arrivals; give at least one line below the header")


def _seconds(text: str | None, where: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(text or "")
        # Only differences count: without a zone every day has 24 hours.
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        raise ValueError(
            f"{where}: TIMESTAMP {text!r} is no time; give 2023-11-16 18:15:46.68 or seconds"
        ) from None


def _count(text: str | None, name: str, where: str) -> int:
    try:
        value = int(text or "")
    except ValueError:
        raise ValueError(f"{where}: {name} {text!r} is not a whole number; give a count") from None
    if value < 1:
        raise ValueError(f"{where}: {name} {value} is not ≥ 1; leave out requests without tokens")
    return value
