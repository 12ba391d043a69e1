"""Liveness, readiness, metrics, the API's own description, and a word for who opens `/`.

For load balancers, Prometheus and people. It must not change anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from aivailable import __version__
from aivailable.core.ids import short
from aivailable.peer.api.description.answer_types import Alive, Readiness
from aivailable.peer.api.description.routes import PLAIN_TEXT, Access, Answer, Route
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.monitoring.exposition import Page
from aivailable.peer.service import Observation


class Health:
    def __init__(
        self, observation: Observation, page: Page, describe: Callable[[], Mapping[str, Any]]
    ) -> None:
        """`describe` makes `/openapi.json`; it is asked once."""
        self._observation = observation
        self._page = page
        self._describe = describe
        self._described: str | None = None

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/",
                self.root,
                "What this is, in two lines",
                (Answer(None, "text", media=PLAIN_TEXT),),
                access=Access.OPEN,
            ),
            Route(
                "GET",
                "/healthz",
                self.alive,
                "200 while the process lives",
                (Answer(Alive, "it lives"),),
                access=Access.OPEN,
            ),
            Route(
                "GET",
                "/readyz",
                self.ready,
                "200 when this node can take requests, 503 with the reason otherwise",
                (
                    Answer(Readiness, "it takes requests"),
                    Answer(Readiness, "it does not", status=503),
                ),
                access=Access.OPEN,
            ),
            Route(
                "GET",
                "/metrics",
                self.metrics,
                "Counters and gauges of this node, for Prometheus",
                (
                    Answer(None, "Prometheus text", media=PLAIN_TEXT),
                    Answer(None, "for who accepts it", media="application/openmetrics-text"),
                ),
            ),
            Route(
                "GET",
                "/openapi.json",
                self.openapi,
                "This document",
                (Answer(dict[str, Any], "OpenAPI 3.1"),),
                access=Access.OPEN,
            ),
        ]

    async def root(self, _: web.Request) -> web.Response:
        text = (
            f"AIvailable {__version__}, node {short(self._observation.node)}: the GPU machines of "
            "this LAN as one LLM service.\n"
            "OpenAI API: /v1   cluster: /cluster/v1/state   all routes: /openapi.json\n"
        )
        return web.Response(text=text)

    async def alive(self, _: web.Request) -> web.Response:
        alive: Alive = {"status": "alive"}
        return json_answer(alive)

    async def ready(self, _: web.Request) -> web.Response:
        ready, reason = self._observation.ready()
        found: Readiness = {"ready": ready, "reason": reason}
        return json_answer(found, status=200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._page.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def openapi(self, _: web.Request) -> web.Response:
        if self._described is None:
            self._described = json.dumps(self._describe())
        return web.Response(text=self._described, content_type="application/json")
