"""What the demonstration needs of a loaded pair, and nothing more: tokens in, executors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from specpilot.decoding.seams import Executor
from specpilot.models.base import CausalLM


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """One request for the models: its prompt, how much is wanted, and the session whose KV it may reuse."""

    prompt: tuple[int, ...]
    max_tokens: int
    session_id: str | None = None


class LiveExecutor(Executor, Protocol):
    """An executor on real models, which can say what it has emitted."""

    def output(self, request_id: str) -> Sequence[int]:
        """The tokens emitted for a request, also after it has ended."""
        ...


class Engine(Protocol):
    """A loaded pair, as the demonstration uses it."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    @property
    def target(self) -> CausalLM:
        """The model whose output is wanted."""
        ...

    @property
    def draft(self) -> CausalLM:
        """The model that proposes; of the same vocabulary."""
        ...

    @property
    def encode(self) -> Callable[[str], Sequence[int]]:
        """From a prompt's text to token ids."""
        ...

    def executor(self, requests: Mapping[str, LiveRequest]) -> LiveExecutor:
        """An executor that serves these requests greedily."""
        ...
