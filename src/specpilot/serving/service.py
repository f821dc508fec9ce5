"""From a validated ask to its answer: the continuation cache first, then the engine.

Lives on the server's event loop. The engine's thread reports through ``call_soon_threadsafe``; nothing else
crosses over.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

from specpilot.control.types import Admission, StopCause
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.text import Detokenizer
from specpilot.serving.answers import Answer, Ask, account_of, answer_of, cut_again, usage_block
from specpilot.serving.config import ServerConfig
from specpilot.serving.continuation import ContinuationCache
from specpilot.serving.engine import Engine, Job
from specpilot.serving.errors import ApiError, overloaded
from specpilot.serving.metrics import Metrics
from specpilot.serving.words import has_word, whole_words


class Run:
    """One request under way: its text as it comes, then its answer.

    ``answer`` of a cancelled run need not be awaited: its end is accounted for all the same.
    """

    def __init__(self, request_id: str, ask: Ask, cancel: Callable[[], None]) -> None:
        self.request_id = request_id
        self._ask = ask
        self._cancel = cancel
        self._sent = ""
        self._changed = asyncio.Event()
        self._text = ""
        self._tokens = 0
        self._answer: Answer | None = None

    @property
    def usage(self) -> dict[str, int]:
        """Tokens so far, as OpenAI writes them; those of a last word that is held back are counted."""
        answer = self._answer
        return usage_block(
            len(self._ask.prompt), self._tokens if answer is None else answer.completion_tokens
        )

    def update(self, text: str, tokens: int) -> None:
        """More is verified: this text, so many tokens."""
        self._text = text
        self._tokens = tokens
        self._changed.set()

    def end(self, answer: Answer) -> None:
        """The request is over."""
        self._answer = answer
        self._changed.set()

    async def deltas(self) -> AsyncIterator[str]:
        """Pieces of visible text until the end; a last word that is not all there yet is held back."""
        while self._answer is None:
            await self._changed.wait()
            self._changed.clear()
            if self._answer is None:
                piece = self._advance(whole_words(self._text) if self._ask.whole_words else self._text)
                if piece:
                    yield piece
        piece = self._advance(self._answer.text)
        if piece:
            yield piece

    async def answer(self) -> Answer:
        """The answer, when there is one."""
        while self._answer is None:
            await self._changed.wait()
            self._changed.clear()
        return self._answer

    def cancel(self) -> None:
        """The client has left, or waits no longer; nothing happens where the request is over."""
        if self._answer is None:
            self._cancel()

    def _advance(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        piece = text[len(self._sent) :]
        self._sent = text
        return piece


class CompletionService:
    """Serves asks from the continuation cache and the engine.

    Args:
        engine: runs requests.
        config: limits.
        detokenizer: gives text.
        eos_token_ids: what ends an output.
        shared: how many tokens of a prompt the target's session caches hold (session, prompt).
        metrics: counts what the engine does not see.
    """

    def __init__(
        self,
        engine: Engine,
        config: ServerConfig,
        detokenizer: Detokenizer,
        eos_token_ids: frozenset[int],
        shared: Callable[[str, Sequence[int]], int],
        metrics: Metrics,
    ) -> None:
        self.engine = engine
        self.config = config
        self.continuations = ContinuationCache(config.continuation_tokens)
        self.draining = False
        self._detokenizer = detokenizer
        self._eos = eos_token_ids
        self._shared = shared
        self._metrics = metrics
        self._numbers = count(1)
        self._in_flight: Counter[str] = Counter()  # by tenant

    def start(self, ask: Ask, arrival_s: float) -> Run:
        """Take a request up.

        Args:
            ask: what is wanted.
            arrival_s: when it arrived, on the engine's clock; its latency counts from there.

        Raises:
            ApiError: 429 if it cannot be served as promised; 503 while the engine hangs or the server shuts
                down.
        """
        if self.draining:
            self._metrics.turned_away("shutting_down")
            raise ApiError(
                503, "the server is shutting down; try again elsewhere", "server_error", code="shutting_down"
            )
        request = DecodingRequest(
            str(next(self._numbers)),
            ask.prompt,
            ask.max_tokens,
            params=ask.params,
            eos_token_ids=self._eos,
            stop=ask.stop,
            detokenizer=self._detokenizer,
            session_id=ask.session_key,
        )
        carried = 0
        if ask.continuation and ask.repeatable:
            rest = self.continuations.get(ask.scope, ask.prompt)
            if rest is not None:
                carried = request.emit(rest.tokens)
                cause = request.ended or cut_again(rest.cause)
                worth = has_word(request.text) if ask.whole_words else bool(request.text)
                if request.ended is not None or (rest.lasting and worth):
                    self._metrics.continuation("hit", carried)
                    return self._from_cache(ask, request, cause, arrival_s)
            self._metrics.continuation("carried" if carried else "miss", carried)
        return self._submit(ask, request, carried, arrival_s)

    def slo_ms(self, ask: Ask) -> float:
        """The latency promised to a request: its own, or the server's."""
        return ask.slo_ms or self.engine.controller.config.slo_p95_ms

    def _from_cache(self, ask: Ask, request: DecodingRequest, cause: StopCause, arrival_s: float) -> Run:
        request.end(cause)
        cause = request.ended or cause
        run = Run(request.request_id, ask, lambda: None)
        e2e_ms = (self.engine.now() - arrival_s) * 1000.0
        account = account_of(ask, request, cause, carried=request.emitted, cached=True, e2e_ms=e2e_ms)
        run.end(answer_of(ask, request, cause, account))
        return run

    def unavailable(self) -> ApiError | None:
        """Why the engine can take nothing now, if so. What is known without a target pass is still served."""
        running_s = self.engine.cycle_s
        if running_s > self.config.hang_timeout_s:
            return overloaded(
                f"the engine hangs: a cycle has been running for {running_s:.1f} s; requests are taken again "
                "when it comes back, restart the server if it does not",
                self.config.hang_timeout_s * 1000.0,
                "engine_hung",
                503,
            )
        if self.draining or not self.engine.alive:
            return overloaded("the server takes no requests", 1000.0, "unavailable", 503)
        return None

    def _check_engine(self, ask: Ask) -> None:
        """Refuse what would only wait for a call that does not come back."""
        if (error := self.unavailable()) is not None:
            self._metrics.turned_away(error.body["error"]["code"] or "unavailable")
            raise error
        promised_ms = self.engine.controller.config.slo_p95_ms
        running_ms = self.engine.cycle_s * 1000.0
        if running_ms > max(promised_ms, ask.slo_ms or 0.0):
            # Far beyond what the cost model foresaw, and no cycle that keeps the promise takes as long.
            self._metrics.turned_away("cycle_overdue")
            raise overloaded(
                "the request cannot meet its deadline; the cycle before it has been running for "
                f"{running_ms:.0f} ms",
                running_ms,
                "deadline",
            )

    def _submit(self, ask: Ask, request: DecodingRequest, carried: int, arrival_s: float) -> Run:
        self._check_engine(ask)
        self._check_room(ask.tenant)
        request_id = request.request_id
        info = replace(
            request.info(arrival_s=arrival_s, slo_ms=self._engine_slo_ms(ask)),
            prompt_tokens=len(request.context),
            max_tokens=ask.max_tokens - request.emitted,
            cached_tokens=self._cached(ask),
            max_draft=ask.max_draft,
            tenant=ask.tenant,
        )
        run = Run(request_id, ask, lambda: self.engine.cancel(request_id))
        listener = _Bridge(self, ask, run, carried, asyncio.get_running_loop())
        admission = self.engine.submit(request, info, listener)
        if not admission.admitted:
            raise self._refusal(ask, admission)
        self._in_flight[ask.tenant] += 1
        return run

    def _check_room(self, tenant: str) -> None:
        own = self.config.max_tenant_outstanding
        for most, taken, reason, whose in (
            (self.config.max_outstanding, self.engine.outstanding, "too_many_requests", ""),
            (own, self._in_flight[tenant], "too_many_tenant_requests", " of yours"),
        ):
            if most is not None and taken >= most:
                self._metrics.turned_away(reason)
                raise overloaded(
                    f"{most} requests{whose} are in flight, which is the most; retry later", 250.0, reason
                )

    def _engine_slo_ms(self, ask: Ask) -> float:
        """When the engine must be done: the answer has a way to go yet."""
        slo_ms = self.slo_ms(ask)
        return slo_ms - min(self.config.answer_ms, 0.1 * slo_ms)

    def _cached(self, ask: Ask) -> int:
        if ask.session_key is None:
            return 0
        return min(self._shared(ask.session_key, ask.prompt), len(ask.prompt) - 1)

    def _refusal(self, ask: Ask, admission: Admission) -> ApiError:
        if admission.reason.startswith("budget"):
            return ApiError(400, f"prompt: {admission.reason}", param="prompt", code="budget")
        # Half an SLO is when about half the queue that stood in the way is gone.
        return overloaded(
            f"the request cannot meet its deadline; {admission.reason}", self.slo_ms(ask) / 2.0, "deadline"
        )

    def finished(self, ask: Ask, run: Run, job: Job, carried: int) -> None:
        """A request in the engine is over: keep what is verified, answer."""
        self._in_flight -= Counter((ask.tenant,))  # drops what falls to 0
        request, summary = job.request, job.summary
        if summary is None:  # the engine sets it before it tells
            return
        if ask.repeatable and ask.continuation:
            self.continuations.put(ask.scope, ask.prompt, request.output, summary.cause, limited=ask.limited)
        account = account_of(
            ask, request, summary.cause, carried=carried, cached=False, e2e_ms=summary.e2e_ms, job=job
        )
        run.end(answer_of(ask, request, summary.cause, account))


@dataclass(frozen=True, slots=True)
class _Bridge:
    """From the engine's thread to the event loop."""

    service: CompletionService
    ask: Ask
    run: Run
    carried: int
    loop: asyncio.AbstractEventLoop

    def progressed(self, text: str, tokens: int) -> None:
        if self.ask.streamed:  # nobody else looks at it before the end
            self._call(self.run.update, text, tokens)

    def ended(self, job: Job) -> None:
        self._call(self.service.finished, self.ask, self.run, job, self.carried)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the event loop is closed: nobody waits any more
            return
