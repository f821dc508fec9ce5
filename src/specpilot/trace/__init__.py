"""Traces: what happened, on disk. Agreement traces (for exact replay) and traces of every cycle."""

from specpilot.trace.agreement import AgreementTrace, read_agreement, write_agreement
from specpilot.trace.cycles import CycleEvidence, CycleRecord, LedgerState
from specpilot.trace.files import TraceReader, TraceWriter, is_trace, read_trace, write_trace
from specpilot.trace.recorder import TraceRecorder
from specpilot.trace.requests import AdmitRecord, EndRecord, StopRecord
from specpilot.trace.schema import TraceHeader, TraceRecord
from specpilot.trace.traced import TracedController, header_for

__all__ = [
    "AdmitRecord",
    "AgreementTrace",
    "CycleEvidence",
    "CycleRecord",
    "EndRecord",
    "LedgerState",
    "StopRecord",
    "TraceHeader",
    "TraceReader",
    "TraceRecord",
    "TraceRecorder",
    "TraceWriter",
    "TracedController",
    "header_for",
    "is_trace",
    "read_agreement",
    "read_trace",
    "write_agreement",
    "write_trace",
]
