"""Is the output right? Checks of a local pair, of an OpenAI-compatible endpoint, and of a trace."""

from specpilot.auditing.checks import Answer, Check, Subject, verdict
from specpilot.auditing.local import LocalSubject, audit_pair, audit_tokenizers
from specpilot.auditing.recorded import audit_trace
from specpilot.auditing.reference import ModelReference

__all__ = [
    "Answer",
    "Check",
    "LocalSubject",
    "ModelReference",
    "Subject",
    "audit_pair",
    "audit_tokenizers",
    "audit_trace",
    "verdict",
]
