"""Where results go: tables to the terminal, JSON to a file or standard output, progress in between."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the result as JSON; - is standard output.", show_default=False
    ),
]


def console(json_target: str | None) -> Console:
    """For people; standard error where standard output carries the JSON alone."""
    from rich.console import Console

    return Console(stderr=json_target == "-", highlight=False)


def progress(screen: Console) -> Progress:
    """A progress bar that shows on a terminal only and is gone afterwards."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )


def write_json(target: str | None, result: Mapping[str, Any]) -> None:
    """Write ``result`` where ``--json`` says; nothing where it was not given.

    Raises:
        OSError: if the file cannot be written.
    """
    if target is None:
        return
    from specpilot.trace.lines import finite

    text = json.dumps(finite(result), indent=1) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        try:
            Path(target).write_text(text, encoding="utf-8")
        except OSError as error:
            error.filename = error.filename or target  # a full disk does not say which file
            raise


def check_writable(*targets: str | Path | None, read: Iterable[str | Path | None] = ()) -> None:
    """Fail before the work and not after it where a result could not be written, or would replace something.

    Args:
        targets: files to write; None: not asked for, ``-``: standard output.
        read: files that the command reads.

    Raises:
        ValueError: if a file's folder does not exist, the file is a folder, or it is read or written as well.
    """
    inputs = {Path(path).resolve() for path in read if path is not None}
    outputs: set[Path] = set()
    for target in targets:
        if target is None or str(target) == "-":
            continue
        path = Path(target)
        whole = path.resolve()
        if whole in inputs:
            raise ValueError(f"{target}: the command reads this file; name another one to write")
        if whole in outputs and not (path.exists() and not path.is_file()):  # /dev/null takes anything
            raise ValueError(f"{target}: two results cannot go to one file; name another one")
        outputs.add(whole)
        if not path.parent.is_dir():
            raise ValueError(f"{target}: the folder {path.parent} does not exist; create it first")
        if path.is_dir():
            raise ValueError(f"{target}: this is a folder; name a file in it")


def check_suffix(name: str, path: Path, allowed: Sequence[str]) -> None:
    """Refuse a file to write whose name says that it is of another kind.

    Raises:
        ValueError: if the name ends in none of ``allowed``.
    """
    if path.suffix not in allowed:
        raise ValueError(f"{name}: {path.name!r} does not end in {', '.join(allowed)}; give it such a name")
