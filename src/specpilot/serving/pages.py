"""The writing page at ``/`` and the dashboard: files of the package, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_PAGES = {"/": "write.html", "/dashboard": "dashboard.html"}
_PARTS = ("write.js", "dashboard.js", "style.css")


def router() -> APIRouter:
    """The routes; every file is read once."""
    folder = resources.files("specpilot.serving").joinpath("static")
    places = _PAGES | {f"/static/{name}": name for name in _PARTS}
    made = APIRouter(include_in_schema=False)
    for path, name in places.items():
        made.add_api_route(path, _file(name, folder.joinpath(name).read_bytes()), methods=["GET"])
    return made


def _file(name: str, content: bytes) -> Callable[[], Awaitable[Response]]:
    """An endpoint that answers with one file."""
    kind = _TYPES[name.rpartition(".")[2]]

    async def answer() -> Response:
        return Response(content, headers=_HEADERS, media_type=kind)

    return answer
