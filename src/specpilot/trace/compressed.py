"""Files that are plain, or compressed where the name ends in ``.gz`` or ``.zst``, as traces need them.

What was written can be made readable on the way (:func:`release`), and of a file that was cut every byte that
can be decoded is read before the error is raised.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any

BUFFER_BYTES = 1 << 18
COMPRESSED = (".gz", ".zst")


def open_write(path: Path) -> io.BufferedWriter:
    """Open a file to be written.

    Raises:
        OSError: if it cannot be written.
        ModuleNotFoundError: for ``.zst`` without ``zstandard``.
    """
    if path.suffix == ".gz":
        return io.BufferedWriter(_Owning(path.open("wb")), BUFFER_BYTES)
    if path.suffix == ".zst":
        import zstandard

        stream: Any = zstandard.ZstdCompressor(level=3).stream_writer(path.open("wb"), closefd=True)
        return io.BufferedWriter(stream, BUFFER_BYTES)
    return io.BufferedWriter(path.open("wb", buffering=0), BUFFER_BYTES)


def release(file: io.BufferedWriter) -> None:
    """Make readable what was written so far. It ends a block of compressed data, which costs some bytes."""
    file.flush()
    # Of gzip this is a sync flush, of zstd the end of a block; both hand it on to the file below.
    file.raw.flush()


def open_read(path: Path) -> IO[bytes]:
    """Open a file to be read; what is wrong with compressed data is one of :func:`damages` on the way.

    Raises:
        OSError: if it cannot be read.
        ModuleNotFoundError: for ``.zst`` without ``zstandard``.
    """
    if path.suffix == ".gz":
        return io.BufferedReader(_Pieces(gzip.open(path, "rb")), BUFFER_BYTES)
    if path.suffix == ".zst":
        import zstandard

        stream = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True)
        return io.BufferedReader(_Pieces(stream), BUFFER_BYTES)
    return path.open("rb", buffering=BUFFER_BYTES)


def damages() -> tuple[type[Exception], ...]:
    """The errors of data that is cut or damaged."""
    try:
        import zstandard
    except ModuleNotFoundError:
        return (EOFError, gzip.BadGzipFile, zlib.error)
    return (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


class _Owning(gzip.GzipFile):
    """A gzip stream that also closes the file below it."""

    def __init__(self, raw: IO[bytes]) -> None:
        # The name and the time are left out: the same run gives the same bytes.
        super().__init__(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0)
        self._raw = raw

    def close(self) -> None:
        super().close()
        self._raw.close()


class _Pieces(io.RawIOBase):
    """Hands decoded data on piece by piece.

    A stream that is asked to fill a whole buffer drops what it has decoded for it when the data ends early.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read1(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._stream.close()
        super().close()
