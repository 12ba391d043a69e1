"""`/cluster/v1/settings`: what holds for the whole cluster.

Owns rendering and the words of a refusal; keys, units and ranges are `core.settings`'. Changes
need an admin key. Its routes are part of `cluster.ClusterApi`.
"""

from __future__ import annotations

from aiohttp import web

from aivailable.core.commands import PutSettings
from aivailable.core.records import ClusterSettings
from aivailable.core.settings import SETTINGS, changed
from aivailable.errors import RequestError
from aivailable.peer.api.auth import require_admin
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.parameters import read_body
from aivailable.peer.service import Service


class SettingsApi:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[web.RouteDef]:
        path = "/cluster/v1/settings"
        return [web.get(path, self.show), web.patch(path, self.change)]

    async def show(self, _: web.Request) -> web.Response:
        return json_answer(_page(self._service.settings()))

    async def change(self, request: web.Request) -> web.Response:
        """The keys of the body are changed, all of them or none."""
        call = require_admin(request)
        wishes = (await read_body(request)).plain()
        try:
            settings = changed(self._service.settings(), wishes)
        except ValueError as error:
            raise RequestError(400, "invalid_setting", str(error)) from error
        await self._service.propose(
            PutSettings(settings), actor=call.actor, reason=f"api {call.request_id}"
        )
        return json_answer(_page(settings))


def _page(settings: ClusterSettings) -> dict[str, object]:
    defaults = ClusterSettings()
    return {
        "settings": [
            {
                "key": one.key,
                "value": getattr(settings, one.key),
                "default": getattr(defaults, one.key),
                "unit": one.unit,
                "least": one.least,
                "most": one.most,
                "meaning": one.meaning,
            }
            for one in SETTINGS
        ]
    }
