"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: what is wrong and what to do.
        kind: OpenAI's ``type``.
        param: the field that is wrong.
        code: OpenAI's ``code``.
        headers: e.g. Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        """As an HTTP response."""
        return json_response(self.body, self.status, self.headers)


def bad_request(param: str | None, message: str, code: str | None = None) -> ApiError:
    """400: a field is wrong; the message begins with its name."""
    return ApiError(400, message, param=param, code=code)


def overloaded(message: str, retry_after_ms: float, code: str, status: int = 429) -> ApiError:
    """429 (or 503), with the time after which another try makes sense."""
    wait_ms = max(1.0, retry_after_ms)
    headers = {"Retry-After": str(math.ceil(wait_ms / 1000.0)), "Retry-After-Ms": f"{wait_ms:.0f}"}
    return ApiError(status, message, "overloaded_error", code=code, headers=headers)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: text from a client may hold lone surrogates, which UTF-8 cannot carry."""
    content = json.dumps(body, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Response(content, status, headers, media_type="application/json")
