"""What a drafter is: something that proposes blocks for a batch of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from specpilot.control.stop import StopRule
from specpilot.control.tree import TreeRule
from specpilot.decoding.types import Draft

if TYPE_CHECKING:
    from specpilot.decoding.rule import AcceptanceRule


@dataclass(frozen=True, slots=True)
class DraftItem:
    """One request's part of a drafting call.

    ``context`` is prompt plus output so far. At most ``max_draft`` positions deep and ``max_nodes``
    tokens in all; ``stop`` is asked before and after each step. ``rule`` draws the tokens (greedy,
    from q, or coupled). ``elapsed_ms`` is how long the cycle has been running when drafting starts.
    With ``tree`` the block may branch; without, it is a chain.
    """

    request_id: str
    context: Sequence[int]
    max_draft: int
    max_nodes: int
    stop: StopRule
    rule: AcceptanceRule
    elapsed_ms: float = 0.0
    tree: TreeRule | None = None


class Drafter(Protocol):
    """Proposes blocks. Must be free of side effects on the target.

    Every method may raise; the cycle turns a drafter's exception into plain target decoding.
    """

    @property
    def name(self) -> str:
        """What it is called in messages and reports."""
        ...

    @property
    def vocab_size(self) -> int:
        """Proposed token ids are below it; it must be the target's."""
        ...

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None = None) -> int:
        """Take up a request; returns how many prompt tokens need no draft prefill."""
        ...

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        """One draft per item, in order. An item with ``max_draft == 0`` gets an empty draft."""
        ...

    def close(self, request_id: str) -> None:
        """Let go of a request; its cache may be kept for its session. Unknown ids are ignored."""
        ...
