"""Diagnosis: rules over traces, each with a signature that a healthy engine cannot show."""

from specpilot.diagnosis.columns import TraceColumns, read_columns
from specpilot.diagnosis.findings import CAUSES, Diagnosis, Finding, diagnose

__all__ = ["CAUSES", "Diagnosis", "Finding", "TraceColumns", "diagnose", "read_columns"]
