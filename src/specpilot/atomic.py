"""Replaces a file as a whole: readers and a crash find the old one or the new one, never half of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write aside, in the same folder, and rename.

    Args:
        path: the file; it need not exist.
        data: its new content.
        mode: its permissions.

    Raises:
        OSError: if it cannot be written; what was there before is left as it was.
    """
    handle, aside = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(aside, mode)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
