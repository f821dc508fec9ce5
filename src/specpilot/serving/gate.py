"""What stands before the application: bearer tokens, the size of a body and the time it may take."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specpilot.serving.config import ADMIN_VARIABLE, Keys
from specpilot.serving.errors import ApiError, overloaded

_LINGER_S = 0.5
"""A client that was turned away and sends nothing for so long is done."""
_FOR_OPERATORS = ("/health", "/metrics")
"""Answered however many connections there are."""


class Gate:
    """ASGI middleware.

    Args:
        app: what is behind it; finds the tenant in ``scope["state"]["tenant"]``.
        keys: who may call ``/v1`` and ``/admin``.
        max_body_bytes: larger bodies get 413, without being read.
        body_timeout_s: slower ones get 408.
        on_response: told the status of each response.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        max_body_bytes: int,
        body_timeout_s: float,
        on_response: Callable[[int], None] = lambda status: None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._on_response = on_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._on_response(message["status"])
            await send(message)

        try:
            self._check_room(scope)
            scope.setdefault("state", {})["tenant"] = self._tenant(scope)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                receive = _replay(await self._body(scope, receive), receive)
            elif scope["method"] == "HEAD":  # uvicorn leaves the body out
                scope = {**scope, "method": "GET"}
        except ApiError as error:
            await self._turn_away(error, receive, counted)
            return
        except _Gone:
            return
        try:
            await self._app(scope, receive, counted)
        except asyncio.CancelledError:
            if started:
                raise
            # uvicorn's time for the requests in flight is over: who still waits gets a definite answer.
            late = overloaded("the server is shutting down; try elsewhere", 1000.0, "shutting_down", 503)
            await late.response()(scope, receive, counted)

    def _check_room(self, scope: Scope) -> None:
        if scope.get("state", {}).get("crowded") and scope["path"] not in _FOR_OPERATORS:
            raise overloaded(
                "there are too many connections; retry later", 1000.0, "too_many_connections", 503
            )

    async def _turn_away(self, error: ApiError, receive: Receive, send: Send) -> None:
        """Answer, then read on for a while: a client that is still sending would see a reset, not the answer.

        The connection cannot be used again.
        """
        response = error.response()
        headers = [*response.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        if error.status != 408:  # that one has had its time
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._body_timeout_s):
                    await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _tenant(self, scope: Scope) -> str:
        path: str = scope["path"]
        if path.startswith("/admin"):
            self._check_admin(scope)
            return ""
        if not path.startswith("/v1") or not self._keys.required:
            return ""
        token = _bearer(scope["headers"])
        tenant = None if token is None else self._keys.tenant(token)
        if tenant is None:
            raise ApiError(
                401,
                "the bearer token is missing or unknown; send Authorization: Bearer …",
                "authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return tenant

    def _check_admin(self, scope: Scope) -> None:
        token = _bearer(scope["headers"])
        if token is not None and self._keys.is_admin(token):
            return
        if not self._keys.has_admin and not self._keys.required and _from_here(scope):
            return
        raise ApiError(
            403,
            f"this is for the administrator: send the token in {ADMIN_VARIABLE}, or call from this machine "
            "where no tokens are set",
            "permission_error",
            code="admin_only",
        )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {self._body_timeout_s:g} s", code="body_timeout"
            ) from None

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body exceeds {self._max_body_bytes} bytes; shorten the prompt", code="body_too_large"
        )


class _Gone(Exception):  # noqa: N818 - not an error
    """The client left before its request was complete."""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body once and then listens for the disconnect."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _discard(receive: Receive) -> None:
    """Read what is left of a body, until its client pauses."""
    more = True
    while more:
        async with asyncio.timeout(_LINGER_S):
            message = await receive()
        more = message["type"] != "http.disconnect" and message.get("more_body", False)


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The one token; several headers are as good as none, since others might go by another one."""
    found = [value for name, value in headers if name == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _, token = found[0].decode("utf-8", "surrogateescape").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _from_here(scope: Scope) -> bool:
    """Whether a client on this machine calls this machine.

    By its own name, that is: a browser that another site's page has led here by that site's name (DNS
    rebinding) says so in the Host header.
    """
    client = scope.get("client")
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if client is None or len(hosts) != 1:
        return False
    name = hosts[0].rpartition("]")[0][1:] if hosts[0].startswith("[") else hosts[0].partition(":")[0]
    return _loopback(client[0]) and (name.lower() == "localhost" or _loopback(name))


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
