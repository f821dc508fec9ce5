"""What a target is: it verifies blocks, keeps the KV cache, and commits what was accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specpilot.decoding.types import Block, Verification


@dataclass(frozen=True, slots=True)
class TargetCapabilities:
    """What a target can do; a plan asks for nothing beyond it."""

    trees: bool
    max_batch: int
    context_limit: int


@dataclass(frozen=True, slots=True)
class VerifyItem:
    """One request's part of a target pass: ``context`` (prompt plus output so far; the uncached rest
    of it is prefilled in the same pass) and the block to be verified behind it.
    """

    request_id: str
    context: Sequence[int]
    block: Block


class Target(Protocol):
    """Verifies a batch of blocks in one forward pass."""

    @property
    def name(self) -> str:
        """What it is called in messages and reports."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are below it; as wide are the logits."""
        ...

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an output; may be empty."""
        ...

    @property
    def capabilities(self) -> TargetCapabilities:
        """Whether it verifies trees, and how much a pass and a context can hold."""
        ...

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None = None) -> int:
        """Take up a request; returns how many prompt tokens need no prefill (session reuse)."""
        ...

    def verify(self, items: Sequence[VerifyItem]) -> list[Verification]:
        """One target forward pass over all items, each with its own block length and position."""
        ...

    def commit(self, request_id: str, path: Sequence[int]) -> None:
        """Keep the cache rows of the context and of the last block's accepted ``path``; drop the rest."""
        ...

    def close(self, request_id: str) -> None:
        """Let go of a request; its cache may be kept for its session. Unknown ids are ignored."""
        ...
