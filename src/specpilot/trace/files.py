"""Trace files: plain JSON Lines, or compressed where the name ends in ``.gz`` or ``.zst``.

Writing is made for the serving loop: a record is encoded and handed to a buffered file. Only every so many
lines, and where the loop asks for it, what was written is made readable: a trace of a server that still
runs, or was killed, lacks its last lines alone. Reading is strict: a file that is cut, damaged or of another
version is refused with the line's number, and ``partial`` (for such a trace) says how much was left out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from specpilot.trace import lines, schema
from specpilot.trace.compressed import COMPRESSED, damages, open_read, open_write, release
from specpilot.trace.schema import CloseRecord, TraceHeader, TraceRecord, to_json

Checked = TypeVar("Checked")
HELD_LINES = 64
"""At most so many lines of a trace are not readable yet: 0.5 % of a gzip file, 1 % of a zstd one."""
FEW_LINES, FLUSH_S = 16, 1.0
"""A flush of a compressed file waits while fewer lines than that are new and the last one is not as long ago:
after each of many short requests it would make a zstd file larger by a fifth."""
_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class TraceWriter:
    """Writes a trace, header first; :meth:`close` adds the last line. A context manager.

    Args:
        path: ``.gz`` and ``.zst`` (needs ``zstandard``) are compressed.
        header: the first line.
        clock: seconds, monotonic; :meth:`flush` alone looks at it, so the same records give the same bytes.

    Raises:
        OSError: if the file cannot be written.
        ModuleNotFoundError: for ``.zst`` without ``zstandard``.
    """

    def __init__(
        self, path: Path, header: TraceHeader, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = open_write(path)
        self._compressed = path.suffix in COMPRESSED
        self._clock = clock
        self._lines = self._held = 0
        self._released_s = -math.inf
        self.write(header)
        self._release()

    def write(self, record: TraceRecord) -> None:
        """Add a record; at most :data:`HELD_LINES` are then not readable yet."""
        content = to_json(record)
        try:
            line = _ENCODE(content)
        except ValueError:  # JSON has no infinity; null stands for it
            line = _ENCODE(lines.finite(content))
        self._file.write(line.encode() + b"\n")
        self._lines += 1
        self._held += 1
        if self._held >= HELD_LINES:
            self._release()

    def flush(self) -> None:
        """Make everything written so far readable; a few lines of the last second may wait if compressed."""
        if not self._held:
            return
        now_s = self._clock()
        if not self._compressed or self._held >= FEW_LINES or now_s - self._released_s >= FLUSH_S:
            self._released_s = now_s
            self._release()

    def _release(self) -> None:
        release(self._file)
        self._held = 0

    def close(self) -> None:
        """Write the last line and close the file; a second call does nothing."""
        if not self._file.closed:
            self.write(CloseRecord(self._lines))
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(slots=True)
class TraceReader:
    """Reads a trace line by line, checking its frame: header, version, last line, and that nothing follows.

    ``partial`` accepts a file without its last line and with a cut last record; :attr:`left_out` then says
    what was not read, and why. Iterate over :meth:`objects` once.
    """

    path: Path
    partial: bool = False
    left_out: str | None = field(default=None, init=False)
    line: int = field(default=0, init=False)
    """The line that was read last, from 1."""

    def objects(self) -> Iterator[dict[str, Any]]:
        """The JSON objects of all lines but the last, header first; their frame is checked, not their fields.

        Raises:
            ValueError: with the file's name and the line's number.
            OSError: if the file cannot be read.
        """
        closed: int | None = None
        damaged: tuple[type[Exception], ...] = (OSError, ValueError, *damages())
        with open_read(self.path) as file:
            iterator = iter(file)
            while True:
                try:
                    raw = next(iterator, None)
                except damaged as error:
                    why = f"the compressed data ends early or is damaged ({error})"
                    if not self.line:
                        raise ValueError(
                            f"{self.path.name}, line 1: {why} before its first line ends; use the whole file"
                        ) from None
                    self._cut(why)
                    return
                if raw is None:
                    break
                self.line += 1
                if closed is not None:
                    raise self.error(
                        f"the trace was closed on line {closed}, but more follows; two files were joined: "
                        "read them one by one"
                    )
                record = self._parse(raw)
                if record is None:
                    return
                kind = record.get("kind")
                if self.line == 1:
                    self._check(TraceHeader.from_json, record)
                elif kind == "trace":
                    raise self.error(
                        f"a second header (version {record.get('version')!r}); two files were joined: read "
                        "them one by one"
                    )
                elif "version" in record:
                    self._check(_same_version, record)
                if kind == "close":
                    closed = self.line
                    told = self._check(CloseRecord.from_json, record).lines
                    if told != self.line - 1:
                        raise self.error(
                            f"lines: {told} were written, {self.line - 1} are here; lines are missing or "
                            "were added: use the file as it was written"
                        )
                    continue
                yield record
        if not self.line:
            raise self._empty()
        if closed is None:
            self._cut("there is no closing line: the trace was cut, or its writer still runs")

    def error(self, message: object) -> ValueError:
        """An error about the current line."""
        return ValueError(f"{self.path.name}, line {self.line}: {message}")

    def _parse(self, raw: bytes) -> dict[str, Any] | None:
        try:
            return lines.parse_object(raw)
        except ValueError as error:
            if raw.endswith(b"\n"):
                raise self.error(error) from None
            if self.line == 1:
                raise self._empty() from None
            self._cut("the last line is cut in the middle", self.line - 1)
            return None

    def _cut(self, why: str, whole: int | None = None) -> None:
        """Let the file end here after so many whole lines (default: all that were read), or raise."""
        if not self.partial:
            raise self.error(f"{why}; read what is whole with --partial, or use the whole file")
        self.line = self.line if whole is None else whole
        self.left_out = f"{self.path.name}, after line {self.line}: {why}"

    def _empty(self) -> ValueError:
        return ValueError(
            f"{self.path.name}, line 1: the file is empty or cut before its first line ends; a trace has at "
            "least a header line"
        )

    def _check(self, parse: Callable[[Mapping[str, Any]], Checked], record: Mapping[str, Any]) -> Checked:
        try:
            return parse(record)
        except ValueError as error:
            raise self.error(error) from None


def read_trace(path: Path, *, partial: bool = False) -> list[TraceRecord]:
    """Read a whole trace, header first, every field checked.

    Raises:
        ValueError: with the line's number, for anything that is not a whole trace.
        OSError: if the file cannot be read.
    """
    reader = TraceReader(path, partial)
    records: list[TraceRecord] = []
    for content in reader.objects():
        try:
            records.append(schema.from_json(content))
        except ValueError as error:
            raise reader.error(error) from None
    return records


def write_trace(path: Path, header: TraceHeader, records: Iterable[TraceRecord]) -> None:
    """Write a whole trace at once."""
    with TraceWriter(path, header) as writer:
        for record in records:
            writer.write(record)


def is_trace(path: Path) -> bool:
    """Whether a file's first line is a trace's header (of any version)."""
    damaged: tuple[type[Exception], ...] = (ValueError, *damages())
    try:
        with open_read(path) as file:
            return lines.parse_object(next(iter(file), b"")).get("kind") == "trace"
    except damaged:
        return False


def _same_version(record: Mapping[str, Any]) -> None:
    lines.check_version(record, schema.VERSION, "trace")
