"""`/cluster/v1/nodes/NODE/…`: taking a node out of service for maintenance, and back in.

Owns finding the member that a person means by a name or the beginning of an id. Needs an admin
key.
"""

from __future__ import annotations

from aiohttp import web

from aivailable.core.ids import NodeId
from aivailable.core.serving.status import HERE, ClusterStatus, DrainStatus, PauseStatus
from aivailable.core.state.node_names import choices, meant
from aivailable.errors import RequestError
from aivailable.peer.api.accounting import record_of
from aivailable.peer.api.bodies.reading import read_body
from aivailable.peer.api.description.fields import Fields, Integer, Object, String
from aivailable.peer.api.description.routes import Access, Answer, Body, Route
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.control.pausing import PAUSE_MAX_S
from aivailable.peer.service import Members, Observation

PAUSE: Fields = {"duration_s": Integer(0, PAUSE_MAX_S, required=True, text="0 ends it")}
DRAIN_QUERY: Fields = {
    "force": String(words=("1", "true"), text="also when no other node could take over")
}


class NodesApi:
    """The handlers."""

    def __init__(self, observation: Observation, members: Members) -> None:
        self._observation = observation
        self._members = members

    def routes(self) -> list[Route]:
        prefix = "/cluster/v1/nodes/{node}"
        return [
            Route(
                "POST",
                f"{prefix}/drain",
                self.drain,
                "Place nothing new there, and move what runs",
                (Answer(DrainStatus, "what moves and what stays"),),
                access=Access.ADMIN,
                query=DRAIN_QUERY,
                errors=(404, 409),
            ),
            Route(
                "POST",
                f"{prefix}/undrain",
                self.undrain,
                "Serve again",
                (Answer(DrainStatus, "the node"),),
                access=Access.ADMIN,
                errors=(404, 409),
            ),
            Route(
                "POST",
                f"{prefix}/pause",
                self.pause,
                "Empty it for duration_s, 0 ends that; '_here' is the node that answers",
                (Answer(PauseStatus, "what ends there"),),
                access=Access.ADMIN,
                body=Body("Pause", Object(PAUSE)),
                errors=(404, 409),
            ),
        ]

    async def drain(self, request: web.Request) -> web.Response:
        """`?force=1`: also when no other node could take over."""
        return await self._set(request, True, force=asked(request, "force"))

    async def undrain(self, request: web.Request) -> web.Response:
        return await self._set(request, False, force=False)

    async def pause(self, request: web.Request) -> web.Response:
        """`duration_s`: for how long; 0 ends it. `_here` is the node that answers."""
        duration_s = (await read_body(request)).declared(PAUSE).integer("duration_s")
        if duration_s is None:
            raise ParameterError(
                "duration_s", "'duration_s' is required; 0 ends it", code="missing_parameter"
            )
        wanted = request.match_info["node"]
        status = self._observation.status()
        node = status.here if wanted == HERE else find_member(status, wanted)
        return json_answer(await self._members.pause(node, duration_s))

    async def _set(self, request: web.Request, draining: bool, *, force: bool) -> web.Response:
        record = record_of(request)
        node = find_member(self._observation.status(), request.match_info["node"])
        done = await self._members.drain(node, draining, force=force, actor=record.actor)
        return json_answer(done)


def asked(request: web.Request, name: str) -> bool:
    """Whether a yes-or-no query parameter is set."""
    return request.query.get(name) in ("1", "true")


def several(request: web.Request, name: str) -> tuple[str, ...]:
    """The values of a query parameter that may be repeated, in order, each once."""
    return tuple(dict.fromkeys(text for text in request.query.getall(name, ()) if text))


def find_member(status: ClusterStatus, wanted: str) -> NodeId:
    """The member with this name, id, or beginning of an id (4 characters).

    Raises RequestError: 404 `unknown_node` names who there is, 409 `ambiguous_node` who fits.
    """
    shown = {node.node: node.name for node in status.nodes}
    found = meant(shown, wanted)
    if len(found) == 1:
        return found[0]
    if found:
        names = choices(shown, found)
        raise RequestError(409, "ambiguous_node", f"{wanted!r} can be {names}; name one of them")
    names = choices(shown, shown)
    raise RequestError(404, "unknown_node", f"{wanted!r} is not a member; members are {names}")
