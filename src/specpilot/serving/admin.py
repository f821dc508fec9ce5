"""For operators: ``/metrics``, and ``/admin/mode`` to switch the policy while it runs."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from specpilot.serving.engine import Engine
from specpilot.serving.errors import json_response
from specpilot.serving.metrics import Metrics
from specpilot.serving.schema import ModeBody


class Admin:
    """The routes.

    Args:
        engine: whose controller is switched.
        metrics: what is scraped.
    """

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter()
        router.add_api_route("/metrics", self.metrics, methods=["GET"], response_class=Response)
        router.add_api_route("/admin/mode", self.mode, methods=["GET"], response_class=Response)
        router.add_api_route("/admin/mode", self.set_mode, methods=["PUT"], response_class=Response)
        return router

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(self._metrics.scrape(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def mode(self) -> Response:
        """Who chooses the draft length."""
        return json_response({"mode": self._engine.controller.mode.value})

    async def set_mode(self, body: ModeBody) -> Response:
        """Switch it; the next cycle follows."""
        self._engine.set_mode(body.mode)
        return await self.mode()
