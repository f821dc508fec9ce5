"""The application: everything put together around one engine thread."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from specpilot import __version__
from specpilot.control import Controller, ControllerConfig
from specpilot.decoding.clock import RealClock
from specpilot.drafters.guarded import GuardedDrafter
from specpilot.drafters.lookup import LookupDrafter
from specpilot.drafters.memory import TenantMemory
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import runs_in_one_thread
from specpilot.models.sessions import CacheStore
from specpilot.pair import Pair
from specpilot.serving import pages
from specpilot.serving.admin import Admin
from specpilot.serving.answers import tenant_of
from specpilot.serving.api import Api
from specpilot.serving.chat import ChatFormat
from specpilot.serving.config import Keys, ServerConfig
from specpilot.serving.engine import Engine
from specpilot.serving.errors import ApiError
from specpilot.serving.gate import Gate
from specpilot.serving.metrics import EngineState, Metrics
from specpilot.serving.service import CompletionService
from specpilot.serving.state import SnapshotFile, keep_aside, measure_engine
from specpilot.serving.tracing import TraceFile
from specpilot.targets.model import ModelTarget
from specpilot.trace.traced import header_for

LOG = logging.getLogger("specpilot.serving")


class Server:
    """An engine, the service on it, and the ASGI application in front.

    Args:
        pair: what is served; its own controller is not used.
        config: limits.
        promises: the controller's promises.
        keys: who may call.
        chat: how a chat becomes a prompt.
    """

    def __init__(
        self,
        pair: Pair,
        config: ServerConfig | None = None,
        *,
        promises: ControllerConfig | None = None,
        keys: Keys | None = None,
        chat: ChatFormat | None = None,
    ) -> None:
        config = config or ServerConfig()
        if (config.max_prompt_tokens or 0) >= pair.target.context_limit:
            raise ValueError(
                f"max_prompt_tokens: {config.max_prompt_tokens} is not in 1…{pair.target.context_limit - 1} "
                "(the model's context, less a token of output); lower it, or leave it out"
            )
        self.pair = pair
        self.config = config
        # Admission counts one pass after the other, whatever max_batch is: counting on shared ones let more
        # in than could be served in time (a CPU is busy with one pass already).
        self.controller = Controller(promises)
        self.stores = CacheStore(config.cache_bytes), CacheStore(config.cache_bytes)
        target, tokenizer = pair.target, pair.tokenizer
        drafter = GuardedDrafter(
            self._new_drafter(),
            config.draft_timeout_ms,
            target.vocab_size,
            one_core=runs_in_one_thread(pair.draft),
            fresh=self._new_drafter,
        )
        self.metrics = Metrics()
        self._snapshot = None if config.snapshot is None else SnapshotFile(config.snapshot)
        self._trace = None if config.trace is None else TraceFile(config.trace)
        self.engine = Engine(
            self.controller,
            ModelTarget(target, self.stores[0], max_batch=config.max_batch),
            drafter,
            RealClock(),
            max_batch=config.max_batch,
            observers=(self.metrics,),
            trace=None if self._trace is None else self._trace.sink,
            trace_ids=config.trace_ids,
        )
        self.service = CompletionService(
            self.engine,
            config,
            tokenizer,
            target.eos_token_ids,
            self.stores[0].shared,
            self.metrics,
        )
        self.metrics.registry.register(
            EngineState(
                self.engine,
                {"target": self.stores[0], "draft": self.stores[1]},
                self.service.continuations,
            )
        )
        self.api = Api(
            self.service,
            config,
            tokenizer,
            chat or ChatFormat(),
            vocab_size=target.vocab_size,
            context_limit=target.context_limit,
            start_token=pair.start_token,
        )
        self.drained = True
        """Whether the engine came to rest when the server ended."""
        self.app = self._app(keys or Keys({}))

    def _new_drafter(self) -> ModelDrafter:
        """The draft model, with looked-up text beside it where the policy asks for it."""
        lookup = None
        if self.controller.config.lookup_depth:
            memory = TenantMemory(tenant_of=tenant_of)
            lookup = LookupDrafter(self.pair.target.vocab_size, memory=memory)
        return ModelDrafter(self.pair.draft, self.stores[1], lookup=lookup)

    def _app(self, keys: Keys) -> FastAPI:
        # No documentation pages: they would load scripts from elsewhere.
        app = FastAPI(
            title="specpilot",
            version=__version__,
            lifespan=self._lifespan,
            docs_url=None,
            redoc_url=None,
            openapi_url="/openapi.json",
            redirect_slashes=False,  # to wherever the Host header points
        )
        app.include_router(self.api.router(), responses=_ERRORS)
        app.include_router(Admin(self.engine, self.metrics).router(), responses=_ERRORS)
        app.include_router(pages.router())
        app.add_api_route("/health", self.health, methods=["GET"], response_class=Response)
        app.add_exception_handler(ApiError, _api_error)
        app.add_exception_handler(RequestValidationError, _validation_error)
        app.add_exception_handler(HTTPException, _http_error)
        app.add_exception_handler(Exception, _unexpected)
        app.add_middleware(
            Gate,
            keys=keys,
            max_body_bytes=self.config.max_body_bytes,
            body_timeout_s=self.config.body_timeout_s,
            on_response=self.metrics.response,
        )
        plain = app.openapi

        def openapi() -> dict[str, Any]:
            schema = plain()
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)  # it is 400 here
            return schema

        app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
        return app

    async def health(self) -> Response:
        """200 while requests are taken and cycles end, 503 with the reason otherwise."""
        if (error := self.service.unavailable()) is not None:
            raise error
        return Response("ok", media_type="text/plain")

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        known = self._snapshot is not None and self._snapshot.restore(self.controller)
        if self.config.measure and not known:
            await asyncio.to_thread(measure_engine, self.controller, self.pair.target, self.pair.draft)
        if self._trace is not None and self.config.trace is not None:
            keep_aside(self.config.trace)
            models = {"target": self.pair.target.name, "draft": self.pair.draft.name}
            self._trace.open(header_for(self.controller, "serve", **models))
        self.engine.start()
        saving = asyncio.create_task(self._save_now_and_then())
        try:
            yield
        finally:
            self.service.draining = True
            saving.cancel()
            self.drained = self.engine.stop(self.config.drain_timeout_s)
            if not self.drained:
                LOG.error("the engine hangs; the process ends without it")
            if self._snapshot is not None:
                self._snapshot.save(self.engine)
            if self._trace is not None:
                self._trace.close()

    async def _save_now_and_then(self) -> None:
        """A crash loses no more than what was learned since."""
        while self._snapshot is not None:
            await asyncio.sleep(self.config.snapshot_every_s)
            await asyncio.to_thread(self._snapshot.save, self.engine)


_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
    for status, text in (
        (400, "A field is wrong; param names it"),
        (401, "The bearer token is missing or unknown"),
        (403, "For the administrator"),
        (404, "No such model"),
        (408, "The body came too slowly"),
        (413, "The body is too large"),
        (415, "The body is not application/json"),
        (429, "The request cannot be served as promised; see Retry-After"),
        (500, "The engine failed on this request"),
        (503, "The engine hangs, the server is shutting down, or there are too many connections"),
        (504, "The engine gave no answer"),
    )
}


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _validation_error(request: Request, error: Exception) -> Response:
    """A body that pydantic refuses, in OpenAI's words: the first problem, with the field's name."""
    assert isinstance(error, RequestValidationError)
    if (unsupported := _unsupported(request)) is not None:
        return unsupported.response()
    problems = error.errors()
    # For a union pydantic lists each alternative; the one that came furthest says most.
    problem = max(problems, key=lambda one: len(one["loc"]))
    if problem["type"] == "json_invalid":
        why = problem.get("ctx", {}).get("error", "send an object with the request's fields")
        where = f" (at character {problem['loc'][-1]}: {why})"
        return ApiError(400, f"the body is not valid JSON{where}", code="invalid_json").response()
    path = [part for part in problem["loc"][1:] if isinstance(part, str | int)]
    param = _field(path)
    if problem["type"] == "extra_forbidden":
        return ApiError(
            400,
            f"{param}: this server knows no such argument; leave it out",
            param=param,
            code="unknown_parameter",
        ).response()
    if problem["type"] == "missing":
        message = f"{param or 'body'}: it is required"
        return ApiError(400, message, param=param or None, code="missing_parameter").response()
    message = f"{param or 'body'}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
    if isinstance(problem["input"], bool | int | float | str):
        message += f"; it is {json.dumps(problem['input'])[:80]}"
    return ApiError(400, message, param=param or None, code="invalid_value").response()


def _field(path: Sequence[str | int]) -> str:
    """The field of a location; the names of a union's alternatives (str, list[int], …) are left out."""
    parts = ""
    for part in path:
        if isinstance(part, int):
            parts += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int"):
            parts += f".{part}" if parts else part
    return parts


def _unsupported(request: Request) -> ApiError | None:
    """Why a body could not be read, where its headers say it."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        problem = f"Content-Encoding: {encoding[:80]!r} is not supported; send the body as it is"
    else:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json" or kind.endswith("+json"):
            return None
        problem = f"Content-Type: {kind[:80]!r} is not application/json; say that it is"
    return ApiError(415, problem, code="unsupported_media_type")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, code = str(error.detail), None
    what = f"{request.method} {request.url.path[:80]}"
    if error.status_code == 404:
        message, code = f"there is no {what}; see /openapi.json", "unknown_url"
    elif error.status_code == 405:
        # Starlette names the methods of one route; another of the same path may take others (/admin/mode).
        known = {*(error.headers or {}).get("Allow", "").split(", ")}
        known |= {method.upper() for method in request.app.openapi()["paths"].get(request.url.path, ())}
        allowed = ", ".join(sorted(known - {""}))
        message, code = f"{what} is not allowed, {allowed} is", "method_not_allowed"
        return ApiError(405, message, headers={"Allow": allowed}, code=code).response()
    elif error.status_code == 400:  # FastAPI's only one: the body could not be parsed, for whatever reason
        if (unsupported := _unsupported(request)) is not None:
            return unsupported.response()
        message = "the body cannot be read; send JSON in UTF-8, not deeply nested, with numbers of usual size"
        code = "invalid_json"
    return ApiError(error.status_code, message, headers=error.headers, code=code).response()


async def _unexpected(request: Request, error: Exception) -> Response:
    return ApiError(500, "the server failed on this request; see its log", "server_error").response()
