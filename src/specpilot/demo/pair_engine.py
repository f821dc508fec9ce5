"""A loaded pair as the demonstration's engine: executors over its target and its draft model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from specpilot.decoding.caches import CacheStore
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.request import DecodingRequest
from specpilot.demo.engine import LiveRequest
from specpilot.drafters.lookup import LookupDrafter
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import CausalLM
from specpilot.targets.model import ModelTarget


class GreedyExecutor(LiveExecutor):
    """Serves known requests greedily, and keeps what each has emitted."""

    def __init__(
        self,
        target: CausalLM,
        draft: CausalLM,
        requests: Mapping[str, LiveRequest],
        stores: tuple[CacheStore | None, CacheStore | None] = (None, None),
    ) -> None:
        # Looked-up text is proposed where a plan asks for it.
        drafter = ModelDrafter(draft, stores[1], lookup=LookupDrafter(target.vocab_size))
        super().__init__(ModelTarget(target, stores[0]), drafter)
        self._known = requests
        self._eos = target.eos_token_ids
        self._outputs: dict[str, DecodingRequest] = {}

    def open(self, request_id: str) -> int:
        """Take up one of the known requests."""
        known = self._known[request_id]
        request = DecodingRequest(
            request_id,
            known.prompt,
            known.max_tokens,
            eos_token_ids=self._eos,
            session_id=known.session_id,
        )
        self.add(request)
        self._outputs[request_id] = request
        return super().open(request_id)

    def output(self, request_id: str) -> Sequence[int]:
        """The tokens emitted for a request; none for one that was never opened."""
        request = self._outputs.get(request_id)
        return () if request is None else request.output


@dataclass(frozen=True, slots=True)
class PairEngine:
    """Two models, their tokenizer, and where sessions' caches are kept."""

    name: str
    target: CausalLM
    draft: CausalLM
    encode: Callable[[str], Sequence[int]]
    new_stores: Callable[[], tuple[CacheStore | None, CacheStore | None]] = lambda: (None, None)

    def executor(self, requests: Mapping[str, LiveRequest]) -> GreedyExecutor:
        """An executor with session stores of its own: policies do not see each other's caches."""
        return GreedyExecutor(self.target, self.draft, requests, self.new_stores())


def load_engine(engine: str = "onnx", target: str | None = None, draft: str | None = None) -> PairEngine:
    """Load a pair (default: the bundled one) for recording or the demonstration.

    Raises:
        ValueError: for an unknown engine, a folder without a model, or models that do not fit together.
    """
    from specpilot.pair import load_pair

    pair = load_pair(target, draft, engine)
    return PairEngine(engine, pair.target, pair.draft, pair.encode, pair.new_stores)
