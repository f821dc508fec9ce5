"""The per-cycle trace of a server: numbers only, no text and no token."""

from __future__ import annotations

import json
from pathlib import Path

from specpilot.control import Controller
from specpilot.control.types import CycleOutcome, CyclePlan, RequestInfo, RequestSummary
from specpilot.decoding.loop import LoopObserver
from specpilot.trace.cycles import CycleRecord, LedgerState


class TraceWriter(LoopObserver):
    """Appends a line per cycle to a file (the format of :mod:`specpilot.trace.cycles`).

    Its methods run under the engine's lock; lines are buffered and written out when a request ends.

    Args:
        path: the file; what it holds stays.
        controller: its ledger is recorded with each cycle.

    Raises:
        OSError: if the file cannot be opened.
    """

    def __init__(self, path: Path, controller: Controller) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._controller = controller
        self._index: dict[str, int] = {}

    def cycle(
        self, info: RequestInfo, plan: CyclePlan, outcome: CycleOutcome, start_s: float, end_s: float
    ) -> None:
        """Buffers one line."""
        index = self._index.get(info.request_id, 0)
        self._index[info.request_id] = index + 1
        ledger = self._controller.ledger
        record = CycleRecord(
            request=info.request_id,
            index=index,
            start_s=start_s,
            end_s=end_s,
            prompt_tokens=info.prompt_tokens,
            max_draft=plan.max_draft,
            from_pool=plan.from_pool,
            binding=plan.reason.binding,
            drafted=outcome.drafted,
            proposed=outcome.proposed,
            accepted=outcome.accepted,
            emitted=outcome.emitted,
            draft_ms=outcome.draft_ms,
            draft_prefill_ms=outcome.draft_prefill_ms,
            verify_ms=outcome.verify_ms,
            host_ms=outcome.host_ms,
            verified_tokens=outcome.verified_tokens,
            context_tokens=outcome.context_tokens,
            ledger=LedgerState(ledger.admitted, ledger.passes_started, ledger.pool),
            numbers=plan.reason.numbers,
            ended=outcome.ended,
            draft_fault=outcome.draft_fault,
        )
        self._file.write(json.dumps(record.to_json()) + "\n")

    def finished(self, info: RequestInfo, summary: RequestSummary, now: float) -> None:
        """Writes out."""
        self._index.pop(info.request_id, None)
        self._file.flush()

    def close(self) -> None:
        """Write out and close the file."""
        self._file.close()
