"""A compressed trace that was cut, or whose writer still runs or was killed: all that is whole is read."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import pytest

from specpilot.serving.tracing import TraceFile
from specpilot.trace import EndRecord, TraceHeader, TraceRecord, TraceWriter, is_trace, read_trace
from specpilot.trace.files import FEW_LINES, FLUSH_S, HELD_LINES, write_trace
from specpilot.trace.validate import validate

Whole = tuple[TraceHeader, list[TraceRecord]]
COMPRESSED = pytest.mark.parametrize("suffix", ["gz", "zst"])
NO_LINE = r"line 1: .*before its first line ends"


def whole_lines(data: bytes, suffix: str) -> int:
    """How many whole lines a decompressor gets out of a cut file (what ``zcat FILE | wc -l`` says)."""
    if suffix == "zst":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data).count(b"\n")
    return zlib.decompressobj(31).decompress(data).count(b"\n")


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@COMPRESSED
@pytest.mark.parametrize("share", [0.35, 0.5, 0.8, 0.97])
def test_what_is_whole_of_a_cut_file_is_read(whole: Whole, tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"t.jsonl.{suffix}"
    write_trace(path, *whole)
    data = path.read_bytes()
    data = data[: int(share * len(data))]
    path.write_bytes(data)
    lines = whole_lines(data, suffix)
    assert lines > 20
    found = validate(path, partial=True)
    assert found.lines == len(read_trace(path, partial=True)) == lines
    assert found.left_out is not None
    assert f"after line {lines}: " in found.left_out
    assert is_trace(path)
    with pytest.raises(ValueError, match=rf"line ({lines}|{lines + 1}): .*read what is whole with --partial"):
        read_trace(path)


def test_a_file_of_one_piece_is_read_as_far_as_it_goes(whole: Whole, tmp_path: Path) -> None:
    """As other programs compress a trace: no piece of it ends on the way."""
    path = tmp_path / "t.jsonl.gz"
    write_trace(tmp_path / "t.jsonl", *whole)
    data = gzip.compress((tmp_path / "t.jsonl").read_bytes())
    data = data[: len(data) // 2]
    path.write_bytes(data)
    found = validate(path, partial=True)
    assert found.lines == whole_lines(data, "gz") > 100
    assert "the compressed data ends early" in str(found.left_out)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("size", [0, 3, 22, 40])
@pytest.mark.parametrize("partial", [False, True])
def test_of_a_file_cut_in_its_first_line_nothing_is_promised(
    whole: Whole, tmp_path: Path, suffix: str, size: int, partial: bool
) -> None:
    path = tmp_path / f"t.jsonl{suffix}"
    write_trace(path, *whole)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=NO_LINE) as caught:
        validate(path, partial=partial)
    assert "--partial" not in str(caught.value)


@COMPRESSED
def test_a_running_writer_holds_back_few_lines(whole: Whole, tmp_path: Path, suffix: str) -> None:
    """By the lines alone: this clock stands still. What is on the disk is what a kill -9 leaves."""
    path = tmp_path / f"t.jsonl.{suffix}"
    writer = TraceWriter(path, whole[0], clock=Clock())
    assert validate(path, partial=True).lines == 1
    for count, record in enumerate(whole[1], 2):
        writer.write(record)
        if count % 7 == 0:
            assert validate(path, partial=True).lines > count - HELD_LINES
    writer.close()
    assert read_trace(path) == [whole[0], *whole[1]]


@COMPRESSED
def test_a_flush_makes_everything_readable(whole: Whole, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.jsonl.{suffix}"
    clock = Clock()
    writer = TraceWriter(path, whole[0], clock=clock)

    def written(count: int) -> int:
        for record in whole[1][:count]:
            writer.write(record)
        writer.flush()
        return len(read_trace(path, partial=True))

    assert written(FEW_LINES) == 1 + FEW_LINES
    assert written(FEW_LINES - 1) == 1 + FEW_LINES  # so soon again so few lines wait
    clock.now_s += FLUSH_S
    assert written(1) == 1 + 2 * FEW_LINES
    size = path.stat().st_size
    clock.now_s += FLUSH_S
    writer.flush()
    assert path.stat().st_size == size, "nothing new, nothing written"


def test_a_plain_trace_is_flushed_at_once(whole: Whole, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    writer = TraceWriter(path, whole[0], clock=Clock())
    for count, record in enumerate(whole[1][:9], 2):
        writer.write(record)
        writer.flush()
        assert len(read_trace(path, partial=True)) == count


@COMPRESSED
def test_a_server_s_trace_is_readable_while_it_runs(whole: Whole, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.jsonl.{suffix}"
    trace = TraceFile(path)
    trace.open(whole[0])
    ended = 0
    for record in whole[1]:
        trace.sink(record)
        ended += isinstance(record, EndRecord)
        if ended == 20:
            break
    assert 17 <= validate(path, partial=True).ended <= 20


@COMPRESSED
def test_pieces_cost_little(whole: Whole, tmp_path: Path, suffix: str) -> None:
    """Against one piece; the requests are short and a flush follows each."""
    path, one = tmp_path / f"t.jsonl.{suffix}", tmp_path / f"one.jsonl.{suffix}"
    with TraceWriter(path, whole[0], clock=Clock()) as writer:
        for record in whole[1]:
            writer.write(record)
            if isinstance(record, EndRecord):
                writer.flush()
    write_trace(tmp_path / "t.jsonl", *whole)
    plain = (tmp_path / "t.jsonl").read_bytes()
    if suffix == "gz":
        one.write_bytes(gzip.compress(plain, 6))
    else:
        import zstandard

        one.write_bytes(zstandard.ZstdCompressor(level=3).compress(plain))
    assert path.stat().st_size < 1.08 * one.stat().st_size
    assert len(re.findall(rb'"kind":"end"', plain)) == 60
