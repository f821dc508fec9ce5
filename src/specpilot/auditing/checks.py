"""What a check says, and what all of them say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

STATUSES = ("pass", "fail", "near_tie", "skipped")


@dataclass(frozen=True, slots=True)
class Check:
    """One check: ``pass``, ``fail``, ``near_tie`` (differs, but only where the target hardly preferred its
    token) or ``skipped`` (could not be made; ``detail`` says why).

    Raises:
        ValueError: for another status.
    """

    name: str
    status: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status: {self.status!r} is not one of {', '.join(STATUSES)}")


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion of the audited system. ``token_ids`` are ``None`` where only text comes back."""

    text: str
    token_ids: tuple[int, ...] | None = None
    stop_cause: str | None = None


class Subject(Protocol):
    """The system that is audited."""

    @property
    def name(self) -> str:
        """What it is called in the checks' details."""
        ...

    def complete(
        self,
        prompt: str,
        max_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | None = None,
        max_draft: int | None = None,
    ) -> Answer:
        """Complete a prompt; ``max_draft`` 0 is without speculation, ``None`` as the system likes."""
        ...


def verdict(checks: Sequence[Check]) -> str:
    """``wrong`` if any check failed, ``inconclusive`` if none was made, else ``lossless``."""
    if any(check.status == "fail" for check in checks):
        return "wrong"
    return "lossless" if any(check.status in ("pass", "near_tie") for check in checks) else "inconclusive"
