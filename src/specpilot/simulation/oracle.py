"""The clairvoyant: knows each accept length, so that it never drafts a token in vain.

An upper bound for chain policies under the same ledger and deadlines: it drafts exactly as many tokens
as will be accepted (at most what is left), and bids for a pool pass what the pass will really yield.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specpilot.control.planning import Choice, CycleView
from specpilot.control.stop import StopRule
from specpilot.control.types import Binding, CycleOutcome, Reason


class Oracle:
    """Drafts what will be accepted.

    Args:
        agree: request id → agreement bits per output position, all known.
    """

    name = "oracle"

    def __init__(self, agree: Mapping[str, Sequence[int]]) -> None:
        self._agree = agree

    def admitted(self, request_id: str, prompt_tokens: int, *, now: float) -> None:
        """Nothing is kept for a request."""

    def choose(self, view: CycleView, *, now: float) -> Choice:
        """As many as will be accepted."""
        accepted = run_of_ones(self._agree[view.request_id], view.emitted_tokens, view.max_draft)
        if not view.speculation_allowed:
            accepted = 0
        reason = Reason(Binding.MAX, {"tau": float(accepted)}, "clairvoyant")
        return Choice(accepted, StopRule(), reason, bid_tokens=accepted + 1.0)

    def observe(self, view: CycleView, outcome: CycleOutcome, *, now: float) -> None:
        """There is nothing to learn for one who knows."""

    def discarded(self, request_id: str) -> None:
        """Nothing is remembered of a choice."""

    def finished(self, request_id: str, *, now: float) -> None:
        """Nothing is kept for a request."""


def run_of_ones(agree: Sequence[int], start: int, limit: int) -> int:
    """The accepted length of a block of ``limit`` tokens that begins at output position ``start``."""
    length = 0
    while length < limit and start + length < len(agree) and agree[start + length] == 1:
        length += 1
    return length
