"""A server's trace: every call of the controller, as :mod:`specpilot.trace` writes it; no text, no token."""

from __future__ import annotations

import logging
from pathlib import Path

from specpilot.trace.files import TraceWriter
from specpilot.trace.requests import EndRecord
from specpilot.trace.schema import TraceHeader, TraceRecord

LOG = logging.getLogger("specpilot.serving")


class TraceFile:
    """Takes a controller's records once it is open; a full disk ends the trace, not the server.

    Args:
        path: the file; replaced if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: TraceWriter | None = None

    def open(self, header: TraceHeader) -> None:
        """Begin.

        Raises:
            OSError: if the file cannot be written.
        """
        self._writer = TraceWriter(self._path, header)

    def sink(self, record: TraceRecord) -> None:
        """Write a record; what belongs to an ended request is handed to the system."""
        if self._writer is None:
            return
        try:
            self._writer.write(record)
            if isinstance(record, EndRecord):
                self._writer.flush()
        except OSError as error:
            LOG.error("trace %s cannot be written any more (%s); it ends here", self._path, error)
            self._writer = None

    def close(self) -> None:
        """Write the last line."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
        except OSError as error:
            LOG.error("trace %s cannot be completed (%s)", self._path, error)
