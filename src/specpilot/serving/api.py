"""The OpenAI-compatible routes: ``/v1/models``, ``/v1/completions``, ``/v1/chat/completions``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from specpilot.control.types import StopCause
from specpilot.decoding.request import fit_prompt
from specpilot.decoding.types import SamplingParams
from specpilot.models.base import ContextLimitError
from specpilot.pair import TextTokenizer
from specpilot.serving.answers import Answer, Ask
from specpilot.serving.chat import ChatFormat
from specpilot.serving.config import ServerConfig
from specpilot.serving.errors import ApiError, bad_request, json_response
from specpilot.serving.schema import ChatBody, CompletionBody, Sampling, Speculation, StreamOptions
from specpilot.serving.service import CompletionService, Run
from specpilot.serving.shapes import DONE, ChatShape, Shape, TextShape, event

LOG = logging.getLogger("specpilot.serving")
CREATED = int(time.time())
_T = TypeVar("_T")
_LONG_TEXT = 8_192
"""Characters above which encoding leaves the event loop: a whole body of text takes part of a second."""


class Api:
    """Validates bodies into asks and shapes answers.

    Args:
        service: serves asks.
        config: limits.
        encoder: the tokenizer.
        chat: how messages become a prompt.
        vocab_size: token ids in a prompt must lie below.
        context_limit: of the target.
        start_token: what an empty prompt becomes.
    """

    def __init__(
        self,
        service: CompletionService,
        config: ServerConfig,
        encoder: TextTokenizer,
        chat: ChatFormat,
        *,
        vocab_size: int,
        context_limit: int,
        start_token: int | None,
    ) -> None:
        self._service = service
        self._config = config
        self._encoder = encoder
        self._chat = chat
        self._vocab_size = vocab_size
        self._context_limit = context_limit
        self._start_token = start_token

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1")
        router.add_api_route("/models", self.models, methods=["GET"], response_class=Response)
        router.add_api_route("/models/{model}", self.model, methods=["GET"], response_class=Response)
        router.add_api_route("/completions", self.completions, methods=["POST"], response_class=Response)
        router.add_api_route("/chat/completions", self.chat, methods=["POST"], response_class=Response)
        return router

    async def models(self) -> Response:
        """The one model that is served."""
        return json_response({"object": "list", "data": [self._model()]})

    async def model(self, model: str) -> Response:
        """One model."""
        self._check_model(model)
        return json_response(self._model())

    async def completions(self, body: CompletionBody, request: Request) -> Response:
        """Continue a prompt."""
        arrival_s = self._arrival(request)
        prompt = body.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        tokens: Sequence[int]
        if isinstance(prompt, str):
            tokens = await self._encode(prompt, "prompt")
        else:
            tokens = [self._token(index, token) for index, token in enumerate(prompt)]
        ask = self._ask(body, tokens, "max_tokens", body.max_tokens, "prompt", request)
        return await self._respond(ask, body, request, arrival_s, TextShape(self._config.model_name))

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """Continue a chat."""
        arrival_s = self._arrival(request)
        messages = [message.fields for message in body.messages]
        try:
            prompt = self._chat.prompt(messages)
        except ValueError as error:
            raise bad_request("messages", str(error)) from None
        tokens = await self._encode(prompt, "messages", templated=self._chat.templated)
        most, name = body.max_tokens, "max_tokens"
        if body.max_completion_tokens is not None:
            if most not in (None, body.max_completion_tokens):
                raise bad_request(
                    "max_tokens",
                    f"max_tokens: {most} differs from max_completion_tokens {body.max_completion_tokens}; "
                    "give one of them",
                )
            most, name = body.max_completion_tokens, "max_completion_tokens"
        ask = self._ask(body, tokens, name, most, "messages", request)
        return await self._respond(ask, body, request, arrival_s, ChatShape(self._config.model_name))

    def _arrival(self, request: Request) -> float:
        """When the request came in, on the engine's clock."""
        received_s: float | None = getattr(request.state, "received_s", None)
        return self._service.engine.now() if received_s is None else received_s

    # --- bodies to asks --------------------------------------------------------------------------

    def _ask(
        self,
        body: Sampling,
        tokens: Sequence[int],
        limit_name: str,
        limit: int | None,
        field: str,
        request: Request,
    ) -> Ask:
        if body.model is not None:
            self._check_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise bad_request("stream_options", "stream_options: it needs stream=true; leave it out")
        if limit is None:  # what fits: nobody who asked for nothing is refused for asking too much
            room = self._context_limit - max(1, len(tokens))
            wanted = max(1, min(self._config.default_max_tokens, room))
        else:
            wanted = limit
        if wanted > self._config.max_tokens_limit:
            raise bad_request(
                limit_name,
                f"{limit_name}: {wanted} is not in 1…{self._config.max_tokens_limit}; ask for fewer",
            )
        stop = () if body.stop is None else (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
        for index, text in enumerate(stop):
            if not text:
                raise bad_request("stop", f"stop[{index}]: '' is empty; leave it out to stop at no string")
        options = body.speculation or Speculation()
        return Ask(
            prompt=tuple(self._fit(tokens, wanted, field)),
            max_tokens=wanted,
            params=SamplingParams(
                temperature=body.temperature or 0.0,
                top_k=body.top_k or 0,
                top_p=1.0 if body.top_p is None else body.top_p,
                seed=body.seed,
            ),
            stop=stop,
            tenant=request.state.tenant,
            user=body.user or "",
            session_id=body.session_id,
            slo_ms=body.slo_ms,
            max_draft=0 if options.mode == "off" else options.max_draft,
            whole_words=body.whole_words is not False,
            continuation=body.continuation is not False,
            explain=options.explain,
            streamed=bool(body.stream),
        )

    def _fit(self, tokens: Sequence[int], max_tokens: int, field: str) -> list[int]:
        most = self._config.max_prompt_tokens
        if most is not None and len(tokens) > most:
            raise bad_request(
                field,
                f"{field}: {len(tokens)} tokens exceed the {most} that this server takes; shorten it",
                "context_length_exceeded",
            )
        try:
            return fit_prompt(
                tokens, max_tokens, context_limit=self._context_limit, start_token=self._start_token
            )
        except ContextLimitError:
            raise bad_request(
                field,
                f"{field}: {len(tokens)} tokens and max_tokens {max_tokens} exceed the model's context of "
                f"{self._context_limit}; shorten the prompt or ask for fewer",
                "context_length_exceeded",
            ) from None
        except ValueError as error:
            raise bad_request(field, str(error)) from None

    async def _encode(self, text: str, field: str, *, templated: bool = False) -> Sequence[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise bad_request(
                field, f"{field}: it holds a lone surrogate, which is no character; send valid Unicode"
            ) from None
        if self._config.log_prompts:
            LOG.info("%s: %r", field, text)
        if len(text) <= _LONG_TEXT:
            return self._encoder.encode(text, add_special_tokens=not templated)
        return await asyncio.to_thread(self._encoder.encode, text, add_special_tokens=not templated)

    def _token(self, index: int, token: object) -> int:
        if not isinstance(token, int) or token >= self._vocab_size:
            raise bad_request(
                "prompt", f"prompt[{index}]: {token!r} is not a token id in 0…{self._vocab_size - 1}"
            )
        return token

    def _check_model(self, name: str) -> None:
        if name != self._config.model_name:
            raise ApiError(
                404,
                f"model: {name[:80]!r} does not exist; this server has {self._config.model_name!r}",
                param="model",
                code="model_not_found",
            )

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._config.model_name,
            "object": "model",
            "created": CREATED,
            "owned_by": "specpilot",
        }

    # --- runs to responses -----------------------------------------------------------------------

    async def _respond(
        self, ask: Ask, body: Sampling, request: Request, arrival_s: float, shape: Shape
    ) -> Response:
        run = self._service.start(ask, arrival_s)
        shape.identify(run)
        if body.stream:
            options = body.stream_options or StreamOptions()
            return _EventStream(run, self._stream(run, shape, options, self._patience_s(ask)))
        answer = await self._answer(run, request, self._patience_s(ask))
        if answer is None:  # nobody reads this
            return Response(status_code=499)
        _check_answer(answer)
        return json_response(shape.whole(answer))

    def _patience_s(self, ask: Ask) -> float:
        """After how long an answer is given up."""
        return self._service.slo_ms(ask) / 1000.0 + self._config.request_timeout_s

    async def _answer(self, run: Run, request: Request, patience_s: float) -> Answer | None:
        """The answer, or None where the client left before it."""
        waiting = asyncio.ensure_future(run.answer())
        leaving = asyncio.ensure_future(_disconnect(request))
        try:
            done, _ = await asyncio.wait(
                (waiting, leaving),
                timeout=patience_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if waiting in done:
                return waiting.result()
            if not done:
                raise _timed_out(patience_s)
            return None
        finally:
            waiting.cancel()
            leaving.cancel()
            run.cancel()  # unless it is over

    async def _stream(
        self, run: Run, shape: Shape, options: StreamOptions, patience_s: float
    ) -> AsyncIterator[bytes]:
        end_s = asyncio.get_running_loop().time() + patience_s

        def chunk_event(chunk: dict[str, Any]) -> bytes:
            if options.include_usage:
                chunk["usage"] = run.usage if options.continuous_usage_stats else None
            return event(chunk)

        pieces = run.deltas()
        try:
            for chunk in shape.opening():
                yield chunk_event(chunk)
            while (piece := await _by(end_s, anext(pieces, None))) is not None:
                yield chunk_event(shape.chunk(piece))
            answer = await run.answer()  # it is there
            _check_answer(answer)
            yield chunk_event(shape.closing(answer))
            if options.include_usage:
                yield event(shape.usage(answer))
        except TimeoutError:
            yield event(_timed_out(patience_s).body)
        except ApiError as error:
            yield event(error.body)
        yield DONE


class _EventStream(StreamingResponse):
    """A run as server-sent events. However it ends, begun or not, the run does not outlive it."""

    def __init__(self, run: Run, content: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.cancel()


async def _by(end_s: float, awaited: Awaitable[_T]) -> _T:
    """The result, if it comes until then. (A time-out around a generator's yields would hit its caller.)"""
    async with asyncio.timeout_at(end_s):
        return await awaited


def _check_answer(answer: Answer) -> None:
    if answer.cause is StopCause.ERROR:
        LOG.error("a request failed: %s", answer.error)
        raise ApiError(
            500,
            "the engine failed on this request; others are unharmed, try again",
            "server_error",
            code="engine_error",
        )


def _timed_out(seconds: float) -> ApiError:
    return ApiError(
        504, f"no answer within {seconds:g} s; the engine may hang", "server_error", code="timeout"
    )


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
