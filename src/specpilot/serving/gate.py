"""What stands before the application: bearer tokens, the size of a body and the time it may take."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specpilot.serving.config import ADMIN_VARIABLE, Keys
from specpilot.serving.errors import ApiError


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

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._on_response(message["status"])
            await send(message)

        try:
            scope.setdefault("state", {})["tenant"] = self._tenant(scope)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                parts = await self._body(scope, receive)
                if len(parts) > 1:  # its client took its time: that is not the server's
                    scope["state"].pop("received_s", None)
                receive = _replay(b"".join(parts), receive)
        except ApiError as error:
            # What is left of the body is not read: the connection cannot be used again.
            error.headers.setdefault("Connection", "close")
            await error.response()(scope, receive, counted)
            return
        except _Gone:
            return
        await self._app(scope, receive, counted)

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
        if not self._keys.has_admin and not self._keys.required and _loopback(scope):
            return
        raise ApiError(
            403,
            f"this is for the administrator: send the token in {ADMIN_VARIABLE}, or call from this machine "
            "where no tokens are set",
            "permission_error",
            code="admin_only",
        )

    async def _body(self, scope: Scope, receive: Receive) -> list[bytes]:
        """The body in the parts in which it came."""
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
                        return parts
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


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.decode("utf-8", "surrogateescape").partition(" ")
            return token.strip() if scheme.lower() == "bearer" and token.strip() else None
    return None


def _loopback(scope: Scope) -> bool:
    client = scope.get("client")
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
