"""Traces: what happened, on disk. Agreement traces (for exact replay) and per-cycle records."""

from specpilot.trace.agreement import AgreementTrace, read_agreement, write_agreement
from specpilot.trace.cycles import CycleRecord, LedgerState, read_cycles, write_cycles

__all__ = [
    "AgreementTrace",
    "CycleRecord",
    "LedgerState",
    "read_agreement",
    "read_cycles",
    "write_agreement",
    "write_cycles",
]
