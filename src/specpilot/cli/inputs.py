"""Files that a command is given: what is wrong with them is said with the option's name and a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

N = TypeVar("N", int, float)
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of compressed files."""


def check_file(name: str, path: Path | None) -> None:
    """Refuse a file that is not there.

    Args:
        name: the option or argument.
        path: what it was given; None: nothing.

    Raises:
        ValueError: if there is no such file, or it is a folder.
    """
    if path is not None and not path.exists():
        raise ValueError(f"{name}: {path}: there is no such file; correct the path")
    if path is not None and path.is_dir():
        raise ValueError(f"{name}: {path}: this is a folder; name a file in it")


def check_text(name: str, path: Path | None) -> None:
    """Refuse a file that is not there or compressed, where text is wanted.

    Raises:
        ValueError: saying what the file is.
    """
    check_file(name, path)
    if path is None:
        return
    from specpilot.trace.files import is_trace

    with path.open("rb") as file:
        start = file.read(4)
    method = next((method for magic, method in COMPRESSED.items() if start.startswith(magic)), None)
    if method == "gzip" and is_trace(path):
        raise ValueError(f"{name}: {path.name}: this is a trace of cycles; read it with `specpilot diagnose`")
    if method is not None:
        raise ValueError(f"{name}: {path.name}: the file is compressed ({method}); unpack it first")


@contextmanager
def reading(name: str, path: Path | None, wanted: str) -> Iterator[None]:
    """Around the reading of an option's text file: errors name the option and the kind of file wanted.

    Raises:
        ValueError: if the file cannot be read or is of another kind.
    """
    check_text(name, path)
    try:
        yield
    except ValueError as error:
        if path is None:
            raise
        problem = str(error).removeprefix(f"{name}: ")
        raise ValueError(f"{name}: {problem} (wanted: {wanted})") from None


def numbers(name: str, text: str, kind: Callable[[str], N], example: str, separator: str = ",") -> list[N]:
    """The numbers in a list such as 0.75,0.25.

    Args:
        name: the option.
        text: what it was given.
        kind: ``int`` or ``float``.
        example: a list that could be written instead.
        separator: what stands between the numbers.

    Raises:
        ValueError: if something in the list is no such number.
    """
    try:
        return [kind(part) for part in text.split(separator)]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{name}: {text!r} is not a list of {what}; write e.g. {example}") from None
