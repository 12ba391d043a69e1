"""One table of what this API answers: the router and `/openapi.json` are both made from it.

Owns the shape of an entry and how entries become aiohttp routes, with the check of the scope in
front of the handler. The entries stand beside their handlers. It must not know what a route does.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from aivailable.peer.api.auth import require_admin
from aivailable.peer.api.description.fields import Fields, Object

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

JSON = "application/json"
SSE = "text/event-stream"
PLAIN_TEXT = "text/plain"
GENERATION_ERRORS = (404, 409, 502, 504)
"""What a request for a model can meet on its way: no such model, a host that is lost for good, its
deadline."""


class Access(enum.StrEnum):
    """Who may ask."""

    OPEN = "open"
    """Everyone: nothing of the cluster's content is in the answer."""
    USER = "user"
    """Any API key, or this machine."""
    ADMIN = "admin"
    """An admin key."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One way in which a route answers when all is well. `kind` is a dataclass, a TypedDict, or
    None for text; of an event stream it is what the data of each event is."""

    kind: Any
    text: str
    status: int = 200
    media: str = JSON


@dataclass(frozen=True, slots=True)
class Body:
    """The JSON object that a route reads. `name` is what the document calls it."""

    name: str
    shape: Object


@dataclass(frozen=True, slots=True)
class Route:
    """`path` is aiohttp's template. `errors` are the statuses that this route has beside those of
    every route of its kind (see `openapi`)."""

    method: str
    path: str
    handler: Handler
    summary: str
    answers: tuple[Answer, ...]
    access: Access = Access.USER
    body: Body | None = None
    query: Fields = field(default_factory=dict)
    errors: tuple[int, ...] = ()


def registered(routes: Iterable[Route]) -> list[web.RouteDef]:
    """For the router. A route for admins asks for the scope before its handler runs."""
    return [_definition(route) for route in routes]


def open_paths(routes: Iterable[Route]) -> frozenset[str]:
    """Paths that are answered without asking who it is."""
    return frozenset(route.path for route in routes if route.access is Access.OPEN)


def _definition(route: Route) -> web.RouteDef:
    return _MAKERS[route.method](route.path, _guarded(route))


_MAKERS: Mapping[str, Callable[[str, Handler], web.RouteDef]] = {
    # This one answers HEAD, too.
    "GET": web.get,
    "POST": web.post,
    "PATCH": web.patch,
    "DELETE": web.delete,
}


def _guarded(route: Route) -> Handler:
    if route.access is not Access.ADMIN:
        return route.handler

    async def guarded(request: web.Request) -> web.StreamResponse:
        require_admin(request)
        return await route.handler(request)

    return guarded
