"""Liveness, readiness, metrics, the API's own description, and a word for who opens `/`.

Called by load balancers, Prometheus and people; it must not change anything.
"""

from __future__ import annotations

from aiohttp import web

from aivailable import __version__
from aivailable.core.ids import short
from aivailable.peer.api.metrics import Metrics
from aivailable.peer.api.openapi import document
from aivailable.peer.service import Observation

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health:
    def __init__(self, observation: Observation, metrics: Metrics) -> None:
        self._observation = observation
        self._metrics = metrics

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.root),
            web.get("/healthz", self.alive),
            web.get("/readyz", self.ready),
            web.get("/metrics", self.metrics),
            web.get("/openapi.json", self.openapi),
        ]

    async def root(self, _: web.Request) -> web.Response:
        text = (
            f"AIvailable {__version__}, node {short(self._observation.node)}: the GPU machines of "
            "this LAN as one LLM service.\n"
            "OpenAI API: /v1   cluster: /cluster/v1/state   all routes: /openapi.json\n"
        )
        return web.Response(text=text)

    async def alive(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def ready(self, _: web.Request) -> web.Response:
        ready, reason = self._observation.ready()
        return web.json_response({"ready": ready, "reason": reason}, status=200 if ready else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        page = self._metrics.text(self._observation.status())
        return web.Response(body=page.encode(), headers={"Content-Type": METRICS_CONTENT_TYPE})

    async def openapi(self, _: web.Request) -> web.Response:
        return web.json_response(document())
