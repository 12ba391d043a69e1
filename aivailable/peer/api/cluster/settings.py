"""`/cluster/v1/settings`: what holds for the whole cluster.

Owns rendering and the words of a refusal; keys, units and ranges are `core.state.settings`'.
Changes need an admin key.

Not to be confused with `core.state.settings`, the table that this reads.
"""

from __future__ import annotations

from aiohttp import web

from aivailable.core.state.commands import PutSettings
from aivailable.core.state.records import ClusterSettings
from aivailable.core.state.settings import SETTINGS, changed
from aivailable.errors import RequestError
from aivailable.peer.api.accounting import record_of
from aivailable.peer.api.bodies.reading import read_body
from aivailable.peer.api.description.answer_types import SettingsPage
from aivailable.peer.api.description.fields import Flag, Integer, Object
from aivailable.peer.api.description.routes import Access, Answer, Body, Route
from aivailable.peer.api.documents import json_answer
from aivailable.peer.service import Changes, Observation

CHANGES = Object(
    {
        one.key: Integer(one.least, one.most, text=f"{one.unit}: {one.meaning}")
        if one.unit
        else Flag(text=one.meaning)
        for one in SETTINGS
    },
    closed=True,
)


class SettingsApi:
    """The handlers."""

    def __init__(self, observation: Observation, changes: Changes) -> None:
        self._observation = observation
        self._changes = changes

    def routes(self) -> list[Route]:
        path = "/cluster/v1/settings"
        page = (Answer(SettingsPage, "all settings"),)
        return [
            Route("GET", path, self.show, "The cluster's settings with units and ranges", page),
            Route(
                "PATCH",
                path,
                self.change,
                "Change the keys of the body, all of them or none",
                page,
                access=Access.ADMIN,
                body=Body("Settings", CHANGES),
                errors=(409,),
            ),
        ]

    async def show(self, _: web.Request) -> web.Response:
        return json_answer(_page(self._observation.settings()))

    async def change(self, request: web.Request) -> web.Response:
        """The keys of the body are changed, all of them or none."""
        record = record_of(request)
        wishes = (await read_body(request)).plain()
        try:
            settings = changed(self._observation.settings(), wishes)
        except ValueError as error:
            raise RequestError(400, "invalid_setting", str(error)) from error
        await self._changes.propose(
            PutSettings(settings), actor=record.actor, reason=f"api {record.request_id}"
        )
        return json_answer(_page(settings))


def _page(settings: ClusterSettings) -> SettingsPage:
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
