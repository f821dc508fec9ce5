"""A loaded draft/target pair that completes prompts: the shortest way from Python to a suggestion.

>>> pair = load_pair()
>>> pair.complete("The committee recommends that", max_tokens=16).text
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import count
from numbers import Integral, Real
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from specpilot.control import BatchPlan, Controller, ControllerConfig, RequestSummary, StopCause
from specpilot.control.calls import ControllerLike
from specpilot.control.config import TREE_LOOKUP, TREE_NODES, is_number
from specpilot.control.types import RequestInfo
from specpilot.decoding.acceptance import make_rule
from specpilot.decoding.caches import CacheStore
from specpilot.decoding.clock import Clock, RealClock
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.loop import ServeLoop
from specpilot.decoding.request import CycleDetail, DecodingRequest, fit_prompt
from specpilot.decoding.seams import LoopObserver
from specpilot.decoding.text import Detokenizer
from specpilot.decoding.types import SamplingParams
from specpilot.decoding.vocabulary import TrimmedModel
from specpilot.drafters.base import Drafter
from specpilot.drafters.guarded import GuardedDrafter
from specpilot.drafters.lookup import LookupDrafter
from specpilot.drafters.memory import TenantMemory
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import CausalLM, runs_in_one_thread
from specpilot.targets.model import ModelTarget

if TYPE_CHECKING:
    from specpilot.models.tokenizer import Tokenizer

ENGINES = ("onnx", "transformers")
ROLES = ("target", "draft")
DRAFTERS = ("model", "lookup", "both")
"""A draft model, the text so far (prompt lookup), or both in one tree."""
DRAFT_TIMEOUT_MS = 2_000.0
"""A draft that has not answered by then is left alone; only a hang takes that long (or a long cold prompt
on a slow machine: then the cycle decodes plainly and the next one finds the cache warm)."""
CACHE_BYTES = 256 << 20
"""Most memory for the caches of ended requests, for each of the two models."""


class TextTokenizer(Detokenizer, Protocol):
    """Text to tokens and back."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Sequence[int]:
        """Token ids of ``text``, by default with the special tokens (BOS) that stand before a prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion.

    ``token_ids`` are all emitted tokens, an end-of-text token included; ``text`` is without it and without
    the stop string. ``target_passes`` counts every pass that was started. ``cycles`` shows each cycle token
    by token. ``reason`` says more where the policy, a budget, a deadline or an error ended it.
    """

    text: str
    token_ids: tuple[int, ...]
    stop_cause: StopCause
    target_passes: int
    cycles: tuple[CycleDetail, ...]
    e2e_ms: float = 0.0
    reason: str = ""


class Pair:
    """A target, a draft model that shares its vocabulary, and the controller that runs them.

    The controller lives as long as the pair and learns from every completion. Its promises hold here as in
    a server: by default two target passes per request on average and 250 ms, so an output may end with
    ``budget`` or ``deadline``. For output that is only bounded by ``max_tokens`` give
    ``ControllerConfig(pass_budget=max_tokens, slo_p95_ms=3_600_000.0)``: every pass emits a token.

    Args:
        target: has the last word on every token.
        draft: proposes.
        tokenizer: the one that both share.
        config: the controller's promises and constants.
        stores: where the target's and the draft's caches are kept between requests of a session.
        start_token: what an empty prompt becomes (BOS); default: an end-of-text token.
        draft_timeout_ms: after this a draft counts as hung.
        drafter: ``"model"``; ``"lookup"``: the draft model is not used, the text so far proposes; ``"both"``:
            one token tree holds what both propose, and where a repetition is likely enough the model is not
            asked (unless ``config`` says otherwise with up to 64 nodes).
        clock: what time it is; default: the machine's.

    Raises:
        ValueError: if the vocabularies differ, or for an unknown drafter.
    """

    def __init__(
        self,
        target: CausalLM,
        draft: CausalLM,
        tokenizer: TextTokenizer,
        *,
        config: ControllerConfig | None = None,
        stores: tuple[CacheStore | None, CacheStore | None] = (None, None),
        start_token: int | None = None,
        draft_timeout_ms: float | None = DRAFT_TIMEOUT_MS,
        drafter: str = "model",
        clock: Clock | None = None,
    ) -> None:
        if drafter not in DRAFTERS:
            raise ValueError(
                f"drafter: {drafter!r} is not one of {', '.join(DRAFTERS)}; model is the default"
            )
        if target.vocab_size != draft.vocab_size:
            raise ValueError(
                f"draft: {draft.name} has a vocabulary of {draft.vocab_size} tokens, not the "
                f"{target.vocab_size} of {target.name}; a draft model must share its target's tokenizer"
            )
        self.target = target
        self.draft = draft
        self.tokenizer = tokenizer
        if drafter == "both":
            config = with_lookup(config or ControllerConfig())
        self.controller: ControllerLike = Controller(config)
        self.start_token = min(target.eos_token_ids, default=None) if start_token is None else start_token
        self._drafter = drafter
        lookup = None
        if drafter != "model":
            lookup = LookupDrafter(target.vocab_size, memory=TenantMemory())
        proposes: Drafter = ModelDrafter(draft, stores[1], lookup=lookup)
        if drafter == "lookup" and lookup is not None:
            proposes = lookup
        self._executor = LiveExecutor(
            ModelTarget(target, stores[0]),
            GuardedDrafter(proposes, draft_timeout_ms, target.vocab_size, one_core=runs_in_one_thread(draft)),
            keep_details=True,
        )
        self._clock = clock or RealClock()
        self._numbers = count(1)
        self._lock = Lock()

    def complete(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 24,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        session_id: str | None = None,
        truncate: bool = False,
        max_draft: int | None = None,
        slo_ms: float | None = None,
    ) -> Completion:
        """Continue ``prompt`` (text or token ids). Threads take turns.

        Args:
            prompt: what to continue; an empty one starts a text.
            max_tokens: most output tokens.
            temperature: 0 is greedy.
            top_k: draw from the k likeliest tokens only; 0: off.
            top_p: draw from the likeliest tokens of this mass only; 1: off.
            seed: with a temperature: the same prompt and seed give the same text, whatever was drafted.
            stop: strings that end the output.
            session_id: completions of one session reuse each other's KV caches.
            truncate: cut a prompt that does not fit on the left, instead of refusing it.
            max_draft: most tokens drafted in a cycle; 0: plain target decoding.
            slo_ms: this request's own deadline.

        Raises:
            ContextLimitError: for a prompt that does not fit (a ValueError).
            ValueError: for any other bad argument; the message says what to do.
        """
        counts = {"max_tokens": max_tokens, "top_k": top_k, "seed": seed, "max_draft": max_draft}
        for name, whole in counts.items():
            if not (is_number(whole, Integral) or (whole is None and name in ("seed", "max_draft"))):
                raise ValueError(f"{name}: {whole!r} is not a whole number; give one")
        for name, number in {"temperature": temperature, "top_p": top_p, "slo_ms": slo_ms}.items():
            if not (is_number(number, Real) or (number is None and name == "slo_ms")):
                raise ValueError(f"{name}: {number!r} is not a number; give one")
        stops = (stop,) if isinstance(stop, str) else stop
        if not isinstance(stops, Sequence) or not all(isinstance(text, str) for text in stops):
            raise ValueError(f"stop: {stop!r} is not a string or a list of strings; leave it out for none")
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        for index, token in enumerate(tokens):
            if not isinstance(token, Integral) or not 0 <= token < self.target.vocab_size:
                raise ValueError(
                    f"prompt[{index}]: {token!r} is not a token id in 0…{self.target.vocab_size - 1}; encode "
                    "text with this pair's tokenizer"
                )
        params = SamplingParams(temperature, top_k, top_p, seed)
        if max_tokens < 1:
            raise ValueError(f"max_tokens: {max_tokens} is not ≥ 1; ask for at least one token")
        request = DecodingRequest(
            f"complete-{next(self._numbers)}",
            fit_prompt(
                tokens,
                max_tokens,
                context_limit=self.target.context_limit,
                start_token=self.start_token,
                truncate=truncate,
            ),
            max_tokens,
            params=params,
            eos_token_ids=self.target.eos_token_ids,
            stop=stops,
            detokenizer=self.tokenizer,
            session_id=session_id,
            rule=make_rule(params, sampled=self._drafter != "lookup"),
        )
        info = replace(request.info(slo_ms=slo_ms), max_draft=max_draft)
        if self._drafter == "lookup":
            info = replace(info, drafter="lookup")
        with self._lock:
            return self._run(request, info)

    @staticmethod
    def new_stores(max_bytes: int = CACHE_BYTES) -> tuple[CacheStore, CacheStore]:
        """Fresh session stores for a target's and a draft's caches, ``max_bytes`` each."""
        from specpilot.models.sessions import CacheStore as BoundedStore

        return BoundedStore(max_bytes), BoundedStore(max_bytes)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        return list(self.tokenizer.encode(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids``."""
        return self.tokenizer.decode(token_ids)

    def _run(self, request: DecodingRequest, info: RequestInfo) -> Completion:
        watch = _Watch()
        loop = ServeLoop(self.controller, self._executor, self._clock, observer=watch)
        self._executor.add(request)
        try:
            admission = loop.submit(info)
            while loop.step():
                pass
        finally:
            # Also where the caller interrupts: nothing may stay in flight.
            loop.cancel(request.request_id)
            self._executor.close(request.request_id, StopCause.ERROR)
        summary = watch.summary
        return Completion(
            text=request.text,
            token_ids=tuple(request.output),
            stop_cause=StopCause.POLICY if summary is None else summary.cause,
            target_passes=0 if summary is None else summary.target_passes,
            cycles=tuple(request.details),
            e2e_ms=0.0 if summary is None else summary.e2e_ms,
            reason=request.error or admission.reason or watch.reason,
        )


class _Watch(LoopObserver):
    """Remembers how the one request of its loop ended."""

    def __init__(self) -> None:
        self.summary: RequestSummary | None = None
        self.reason = ""

    def planned(self, plan: BatchPlan, now: float) -> None:
        for stop in plan.stops:
            self.reason = str(stop.reason)

    def finished(self, info: RequestInfo, summary: RequestSummary, now: float) -> None:
        self.summary = summary


def load_pair(
    target: str | Path | None = None,
    draft: str | Path | None = None,
    engine: str = "onnx",
    *,
    config: ControllerConfig | None = None,
    threads: int = 1,
    cache_bytes: int = CACHE_BYTES,
    draft_timeout_ms: float | None = DRAFT_TIMEOUT_MS,
    drafter: str = "model",
) -> Pair:
    """Load a target and a draft model (default: the bundled pair).

    Args:
        target: a Hugging Face folder, or with ``engine="transformers"`` a hub id.
        draft: likewise; it must share the target's tokenizer.
        engine: ``"onnx"`` (no torch) or ``"transformers"``.
        config: the controller's promises and constants; see :class:`Pair`.
        threads: ONNX Runtime's threads for a pass; 1 gives the steadiest times.
        cache_bytes: most memory per model for the caches that sessions reuse.
        draft_timeout_ms: after this a draft counts as hung.
        drafter: who proposes; see :class:`Pair`.

    Raises:
        ValueError: for an unknown engine or drafter, a folder without a model, or vocabularies that differ.
        ModuleNotFoundError: if the engine is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: {engine!r} is not one of {', '.join(ENGINES)}; onnx is the default")
    from specpilot.models.tokenizer import check_same_vocabulary

    places = [place(given, role) for given, role in zip((target, draft), ROLES, strict=True)]
    tokenizers = [_tokenizer(place, engine, role) for place, role in zip(places, ROLES, strict=True)]
    check_same_vocabulary(*tokenizers)
    models = [_model(place, engine, threads) for place in places]
    if models[0].vocab_size != models[1].vocab_size:
        size = min(model.vocab_size for model in models)
        if size < tokenizers[0].vocab_size:
            raise ValueError(
                f"draft: a model of the pair has {size} rows for the {tokenizers[0].vocab_size} tokens "
                "of its tokenizer; take one that has them all"
            )
        models = [TrimmedModel(model, size) for model in models]
    return Pair(
        models[0],
        models[1],
        tokenizers[0],
        config=config,
        stores=Pair.new_stores(cache_bytes),
        draft_timeout_ms=draft_timeout_ms,
        drafter=drafter,
    )


def with_lookup(config: ControllerConfig) -> ControllerConfig:
    """``config`` with room for looked-up text in its trees, where it does not say how much."""
    nodes = config.max_nodes or TREE_NODES
    return replace(config, max_nodes=nodes, lookup_depth=config.lookup_depth or min(TREE_LOOKUP, nodes))


def place(given: str | Path | None, role: str) -> str:
    """Where a model of the pair lies: as given, or the bundled one of that role."""
    if given is not None:
        return str(given)
    return str(resources.files("specpilot").joinpath("bundled", role))


def _tokenizer(place: str, engine: str, role: str) -> Tokenizer:
    from specpilot.models.tokenizer import Tokenizer

    if engine == "transformers" and not Path(place).exists():
        from transformers.utils import cached_file

        log = logging.getLogger("huggingface_hub")
        level = log.level
        log.setLevel(logging.ERROR)  # its retries: what they come to is said once, below
        try:
            return Tokenizer(cached_file(place, "tokenizer.json"))
        except OSError as error:
            why = str(error).partition("\n")[0]
            raise ValueError(
                f"{role}: {place!r} is no local folder and not to be had from the hub ({why}); name a "
                "folder, or check the id and the connection"
            ) from None
        finally:
            log.setLevel(level)
    if not Path(place).exists():
        raise ValueError(
            f"{role}: {place}: there is no such folder; name one, or a hub id with engine transformers"
        )
    return Tokenizer(place)


def _model(place: str, engine: str, threads: int) -> CausalLM:
    if engine == "onnx":
        from specpilot.models.onnx import OnnxCausalLM

        return OnnxCausalLM(place, threads)
    from specpilot.models.transformers import TransformersCausalLM

    return TransformersCausalLM(place)
