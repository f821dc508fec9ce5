"""Trace files: plain JSON Lines, or compressed where the name ends in ``.gz`` or ``.zst``.

Writing is made for the serving loop: a record is encoded and handed to a buffered file, nothing is flushed
on the way. Reading is strict: a file that is cut, damaged or of another version is refused with the line's
number, and ``partial`` (for the trace of a server that still runs) says how much was left out.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from specpilot.trace import lines, schema
from specpilot.trace.schema import CloseRecord, TraceHeader, TraceRecord, to_json

Checked = TypeVar("Checked")
BUFFER_BYTES = 1 << 18
_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class TraceWriter:
    """Writes a trace, header first; :meth:`close` adds the last line. A context manager.

    Args:
        path: ``.gz`` and ``.zst`` (needs ``zstandard``) are compressed.
        header: the first line.

    Raises:
        OSError: if the file cannot be written.
        ModuleNotFoundError: for ``.zst`` without ``zstandard``.
    """

    def __init__(self, path: Path, header: TraceHeader) -> None:
        self._file = _open_write(path)
        self._lines = 0
        self.write(header)

    def write(self, record: TraceRecord) -> None:
        """Add a record."""
        content = to_json(record)
        try:
            line = _ENCODE(content)
        except ValueError:  # JSON has no infinity; null stands for it
            line = _ENCODE(lines.finite(content))
        self._file.write(line.encode() + b"\n")
        self._lines += 1

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._file.flush()

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
        with _open_read(self.path) as file:
            iterator = iter(file)
            while True:
                try:
                    raw = next(iterator, None)
                except (EOFError, OSError, ValueError, zlib.error, _zstd_error()) as error:
                    if self._cut(f"the compressed data ends early or is damaged ({error})"):
                        return
                    raise
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
            raise ValueError(
                f"{self.path.name}, line 1: the file is empty or cut before its first line ends; a trace has "
                "at least a header line"
            )
        if closed is None:
            self._cut("there is no closing line: the trace was cut, or its writer still runs")

    def error(self, message: object) -> ValueError:
        """An error about the current line."""
        return ValueError(f"{self.path.name}, line {self.line}: {message}")

    def _parse(self, raw: bytes) -> dict[str, Any] | None:
        try:
            return lines.parse_object(raw)
        except ValueError as error:
            if not raw.endswith(b"\n") and self._cut("the last line is cut in the middle"):
                return None
            raise self.error(error) from None

    def _cut(self, why: str) -> bool:
        """Whether the file may end here; raises if it may not."""
        if not self.partial:
            raise self.error(f"{why}; read what is whole with --partial, or use the whole file")
        self.left_out = f"{self.path.name}, after line {self.line}: {why}"
        return True

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
    try:
        with _open_read(path) as file:
            return lines.parse_object(next(iter(file), b"")).get("kind") == "trace"
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error, _zstd_error()):
        return False


def _same_version(record: Mapping[str, Any]) -> None:
    lines.check_version(record, schema.VERSION, "trace")


def _open_write(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        # The name and the time are left out: the same run gives the same bytes.
        raw = path.open("wb")
        return io.BufferedWriter(_Owning(raw), BUFFER_BYTES)
    if path.suffix == ".zst":
        import zstandard

        stream: Any = zstandard.ZstdCompressor(level=3).stream_writer(path.open("wb"), closefd=True)
        return io.BufferedWriter(stream, BUFFER_BYTES)
    return path.open("wb", buffering=BUFFER_BYTES)


class _Owning(gzip.GzipFile):
    """A gzip stream that also closes the file below it."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0)
        self._raw = raw

    def close(self) -> None:
        super().close()
        self._raw.close()


def _open_read(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"), BUFFER_BYTES)
    if path.suffix == ".zst":
        import zstandard

        return io.BufferedReader(
            zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True), BUFFER_BYTES
        )
    return path.open("rb", buffering=BUFFER_BYTES)


def _zstd_error() -> type[Exception]:
    try:
        import zstandard
    except ModuleNotFoundError:
        return EOFError
    error: type[Exception] = zstandard.ZstdError
    return error
