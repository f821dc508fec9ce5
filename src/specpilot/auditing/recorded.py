"""What a trace proves of its outputs: the rules of emission, by the diagnosis of correctness."""

from __future__ import annotations

from pathlib import Path

from specpilot.auditing.checks import Check
from specpilot.diagnosis import diagnose, read_columns

RULES = {
    "prefix_rule": ("non_prefix_accept",),
    "every_token_verified": ("unverified_emission",),
    "bonus_token": ("missing_bonus_token",),
    "same_vocabulary": ("tokenizer_mismatch",),
    "draft_temperature": ("sampling_mismatch",),
}
"""Check → the causes that break it."""


def audit_trace(path: Path) -> list[Check]:
    """Checks of a recorded trace.

    Raises:
        ValueError: for a trace that is malformed.
        OSError: if it cannot be read.
    """
    columns = read_columns(path)
    found = {finding.cause: finding for finding in diagnose(columns).findings}
    checks = []
    for name, causes in RULES.items():
        hits = [found[cause] for cause in causes if cause in found]
        detail = {cause.cause: dict(cause.evidence) for cause in hits}
        checks.append(Check(name, "fail" if hits else "pass", detail))
    return checks
