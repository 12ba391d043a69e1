"""`/cluster/v1/*`: the cluster as it is, and the few ways to change it over HTTP.

Owns parsing and rendering of what is asked about the cluster as a whole; `cluster_nodes`,
`cluster_deployments` and `cluster_settings` have the rest. Every change is a command that `Changes`
or `Members` commits, and needs an admin key.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from aivailable.core.serving.status import ClusterStatus
from aivailable.core.state.commands import RevokeKey, SetWindow
from aivailable.core.state.records import ApiKey, Event, Scope
from aivailable.errors import AivailableError, RequestError
from aivailable.peer.api.accounting import RequestOutcome, record_of
from aivailable.peer.api.cluster.nodes import asked, find_member
from aivailable.peer.api.description.answer_types import (
    DeploymentsPage,
    EventsPage,
    KeyMade,
    KeyRevoked,
    KeyShown,
    KeysPage,
    Left,
    MembersPage,
    MergeStarted,
    ModelsPage,
    NodesPage,
    RecoveredCluster,
    Removed,
    WindowSet,
)
from aivailable.peer.api.description.fields import Fields, Integer, Object, String
from aivailable.peer.api.description.routes import SSE, Access, Answer, Body, Route
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.errors import ClientGone, ParameterError
from aivailable.peer.api.parameters import RequestParameters, read_body
from aivailable.peer.api.sse import SseWriter
from aivailable.peer.service import ApiKeys, Changes, Members, Observation
from aivailable.wire.schema import to_plain

KEEP_ALIVE_S = 5.0
EVENT_STREAMS_MAX = 64
"""Followers of /events at one node; a further one is told to come later."""
EVENTS_LIMIT_DEFAULT = 1000
EVENTS_LIMIT_MAX = 10_000
LABEL_MAX_CHARS = 64
WINDOW_MAX_S = 24 * 3600
RETRY_AFTER_S = 10
CLUSTER_ID_MAX_CHARS = 64
SCOPES = (Scope.USER.value, Scope.ADMIN.value)
KEY: Fields = {
    "scope": String(words=SCOPES, default=Scope.USER.value),
    "label": String(LABEL_MAX_CHARS, text="printable; whose key it is"),
}
WINDOW: Fields = {"duration_s": Integer(0, WINDOW_MAX_S, required=True, text="0 closes it")}
MERGE: Fields = {"into": String(CLUSTER_ID_MAX_CHARS, required=True, text="a cluster's id")}
STATE_QUERY: Fields = {
    "consistent": String(
        words=("1", "true"), text="not before everything committed until now is applied here"
    )
}
EVENTS_QUERY: Fields = {
    "after": Integer(0, default=0, text="only events of later versions"),
    "limit": Integer(1, EVENTS_LIMIT_MAX, default=EVENTS_LIMIT_DEFAULT, text="of a JSON answer"),
}

log = logging.getLogger("aivailable.api")


class ClusterApi:
    """The handlers. `keep_alive_s` is an argument for the tests."""

    def __init__(
        self,
        observation: Observation,
        api_keys: ApiKeys,
        members: Members,
        changes: Changes,
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._observation = observation
        self._api_keys = api_keys
        self._members = members
        self._changes = changes
        self._keep_alive_s = keep_alive_s
        self._followers: dict[asyncio.Task[Any], None] = {}

    def routes(self) -> list[Route]:
        return [*self._observing(), *self._key_routes(), *self._member_routes()]

    def _observing(self) -> list[Route]:
        prefix = "/cluster/v1"
        return [
            Route(
                "GET",
                f"{prefix}/state",
                self.state,
                "The whole status document",
                (Answer(ClusterStatus, "as this node sees the cluster"),),
                query=STATE_QUERY,
            ),
            Route(
                "GET",
                f"{prefix}/nodes",
                self.nodes,
                "Nodes with their devices",
                (Answer(NodesPage, "all members"),),
            ),
            Route(
                "GET",
                f"{prefix}/members",
                self.members,
                "Members, voters, and who waits for admission",
                (Answer(MembersPage, "all members"),),
            ),
            Route(
                "GET",
                f"{prefix}/deployments",
                self.deployments,
                "Deployments and their replicas",
                (Answer(DeploymentsPage, "all of them"),),
            ),
            Route(
                "GET",
                f"{prefix}/models",
                self.models,
                "The catalogue of model files",
                (Answer(ModelsPage, "all of them"),),
            ),
            Route(
                "GET",
                f"{prefix}/events",
                self.events,
                "History after ?after=VERSION: JSON, or followed as server-sent events",
                (
                    Answer(EventsPage, "what there is"),
                    Answer(Event, "for who accepts it: what comes, too", media=SSE),
                ),
                query=EVENTS_QUERY,
                errors=(400,),
            ),
        ]

    def _key_routes(self) -> list[Route]:
        path = "/cluster/v1/keys"
        return [
            Route(
                "GET",
                path,
                self.keys,
                "API keys without their texts",
                (Answer(KeysPage, "all of them"),),
                access=Access.ADMIN,
            ),
            Route(
                "POST",
                path,
                self.create_key,
                "Mint an API key",
                (Answer(KeyMade, "its text is shown only here", status=201),),
                access=Access.ADMIN,
                body=Body("KeyRequest", Object(KEY)),
                errors=(409,),
            ),
            Route(
                "DELETE",
                f"{path}/{{key_id}}",
                self.revoke_key,
                "Revoke an API key",
                (Answer(KeyRevoked, "it counts no longer"),),
                access=Access.ADMIN,
                errors=(409,),
            ),
        ]

    def _member_routes(self) -> list[Route]:
        prefix = "/cluster/v1"
        return [
            Route(
                "DELETE",
                f"{prefix}/members/{{node}}",
                self.remove,
                "Take a member out for good",
                (Answer(Removed, "it is a member no longer"),),
                access=Access.ADMIN,
                errors=(404, 409),
            ),
            Route(
                "POST",
                f"{prefix}/window",
                self.window,
                "Open the join window for duration_s, 0 closes it",
                (Answer(WindowSet, "it is open for this long"),),
                access=Access.ADMIN,
                body=Body("WindowRequest", Object(WINDOW)),
                errors=(409,),
            ),
            Route(
                "POST",
                f"{prefix}/leave",
                self.leave,
                "This node leaves the cluster and stops",
                (Answer(Left, "it has left"),),
                access=Access.ADMIN,
                errors=(409,),
            ),
            Route(
                "POST",
                f"{prefix}/recover",
                self.recover,
                "Found the cluster anew from this node's copy",
                (Answer(RecoveredCluster, "the new cluster"),),
                access=Access.ADMIN,
                errors=(409,),
            ),
            Route(
                "POST",
                f"{prefix}/merge",
                self.merge,
                "End this cluster in the one named by into",
                (Answer(MergeStarted, "it is committed"),),
                access=Access.ADMIN,
                body=Body("MergeRequest", Object(MERGE)),
                errors=(404, 409),
            ),
        ]

    async def stop(self, _: web.Application) -> None:
        """Ends the event streams, which no client would end for us."""
        for task in tuple(self._followers):
            task.cancel()

    async def state(self, request: web.Request) -> web.Response:
        """`?consistent=1`: not before everything committed until now is applied here."""
        if asked(request, "consistent"):
            await self._observation.barrier()
        return json_answer(self._observation.status())

    async def nodes(self, _: web.Request) -> web.Response:
        status = self._observation.status()
        page: NodesPage = {"version": status.version, "nodes": to_plain(status.nodes)}
        return json_answer(page)

    async def members(self, _: web.Request) -> web.Response:
        """The same nodes without their devices, and who waits to be admitted."""
        status = self._observation.status()
        members = to_plain(status.nodes)
        for member in members:
            del member["devices"]
        page: MembersPage = {
            "version": status.version,
            "cluster_id": status.cluster_id,
            "leader": status.leader,
            "voters": list(status.voters),
            "members": members,
            "waiting": to_plain(status.waiting),
        }
        return json_answer(page)

    async def deployments(self, _: web.Request) -> web.Response:
        status = self._observation.status()
        page: DeploymentsPage = {
            "version": status.version,
            "deployments": to_plain(status.deployments),
            "replicas": to_plain(status.replicas),
        }
        return json_answer(page)

    async def models(self, _: web.Request) -> web.Response:
        status = self._observation.status()
        page: ModelsPage = {"version": status.version, "models": to_plain(status.models)}
        return json_answer(page)

    async def keys(self, _: web.Request) -> web.Response:
        page: KeysPage = {
            "keys": [_shown_key(one) for one in sorted(self._api_keys.keys(), key=_age)]
        }
        return json_answer(page)

    async def create_key(self, request: web.Request) -> web.Response:
        record = record_of(request)
        body = (await read_body(request)).declared(KEY)
        scope = body.text("scope") or Scope.USER.value
        if scope not in SCOPES:
            raise ParameterError("scope", "'scope' must be 'user' or 'admin'")
        label = body.text("label") or ""
        if not label.isprintable():
            raise ParameterError("label", "'label' must be printable")
        text, key = await self._api_keys.mint_key(scope, label, actor=record.actor)
        made: KeyMade = {"key": text, **_shown_key(key)}
        return json_answer(made, status=201, headers={"Cache-Control": "no-store"})

    async def revoke_key(self, request: web.Request) -> web.Response:
        record = record_of(request)
        key_id = request.match_info["key_id"]
        await self._changes.propose(
            RevokeKey(key_id), actor=record.actor, reason=f"api {record.request_id}"
        )
        revoked: KeyRevoked = {"revoked": key_id}
        return json_answer(revoked)

    async def window(self, request: web.Request) -> web.Response:
        record = record_of(request)
        duration_s = (await read_body(request)).declared(WINDOW).integer("duration_s")
        if duration_s is None:
            raise ParameterError(
                "duration_s", "'duration_s' is required; 0 closes", code="missing_parameter"
            )
        await self._changes.propose(
            SetWindow(duration_s), actor=record.actor, reason=f"api {record.request_id}"
        )
        window: WindowSet = {"duration_s": duration_s}
        return json_answer(window)

    async def remove(self, request: web.Request) -> web.Response:
        """Take a member out by its id, a beginning of it, or its name."""
        record = record_of(request)
        found = find_member(self._observation.status(), request.match_info["node"])
        await self._members.remove(found, actor=record.actor)
        removed: Removed = {"removed": found}
        return json_answer(removed)

    async def leave(self, _: web.Request) -> web.Response:
        await self._members.leave()
        left: Left = {"left": self._observation.node}
        return json_answer(left)

    async def recover(self, request: web.Request) -> web.Response:
        """Found the cluster anew from this node's copy; says what was given up."""
        record = record_of(request)
        result = await self._members.recover(actor=record.actor)
        cluster = result.state.cluster
        founded: RecoveredCluster = {
            "cluster_id": "" if cluster is None else cluster.cluster_id,
            "gone": list(result.gone),
            "lost_models": list(result.lost_models),
        }
        return json_answer(founded)

    async def merge(self, request: web.Request) -> web.Response:
        """End this cluster in the one named by `into`."""
        record = record_of(request)
        into = (await read_body(request)).declared(MERGE).required_text("into")
        await self._members.merge(into, actor=record.actor)
        merging: MergeStarted = {"into": into}
        return json_answer(merging)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """History after a version: what there is as JSON, or followed as server-sent events."""
        query = RequestParameters(_numbers(request), fields=EVENTS_QUERY)
        after = query.integer("after") or 0
        if "text/event-stream" in request.headers.get("Accept", ""):
            return await self._follow(request, after)
        limit = query.integer("limit") or EVENTS_LIMIT_DEFAULT
        found = _page(self._observation.events(after), limit)
        page: EventsPage = {
            "version": found[-1].version if found else max(after, 0),
            "events": to_plain(found),
        }
        return json_answer(page)

    async def _follow(self, request: web.Request, after: int) -> web.StreamResponse:
        record = record_of(request)
        task = asyncio.current_task()
        if task is None or len(self._followers) >= EVENT_STREAMS_MAX:
            raise RequestError(
                503, "too_many_followers", "too many follow the events of this node",
                retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        # A stream without an end of its own is done when its reader has had enough.
        record.outcome = RequestOutcome.DONE
        self._followers[task] = None
        sse = SseWriter(request, record.headers())
        try:
            await sse.open()
            await sse.comment("connected")
            await self._send_events(sse, after)
        except ClientGone:
            raise
        except (AivailableError, OSError) as error:
            # The node has left its cluster, say. The reader asks again and is told.
            log.info("request %s: the events end here: %s", record.request_id, error)
        except Exception:
            record.outcome = RequestOutcome.FAILED
            log.exception("request %s broke in mid-stream", record.request_id)
        finally:
            del self._followers[task]
        return await sse.end()

    async def _send_events(self, sse: SseWriter, after: int) -> None:
        applied = sent = after
        while True:
            for event in self._observation.events(sent):
                await sse.event(event.version, event.kind, to_plain(event))
                sent = event.version
            try:
                async with asyncio.timeout(self._keep_alive_s):
                    applied = await self._observation.changed(max(applied, sent))
            except TimeoutError:
                await sse.comment("keep-alive")


def _numbers(request: web.Request) -> dict[str, Any]:
    """Query parameters; what a reconnecting browser says it has seen counts as `after`."""
    values: dict[str, Any] = {}
    last_seen = request.headers.get("Last-Event-ID")
    if last_seen is not None:
        values["after"] = last_seen
    values.update(request.query)
    return {key: int(text) if _is_number(text) else text for key, text in values.items()}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _page(events: tuple[Event, ...], limit: int) -> tuple[Event, ...]:
    """The oldest `limit` events, and the rest of the last one's version, so that going on
    after that version misses nothing."""
    end = limit
    while 0 < end < len(events) and events[end].version == events[end - 1].version:
        end += 1
    return events[:end]


def _shown_key(key: ApiKey) -> KeyShown:
    """A key's record without its hash."""
    return {
        "key_id": key.key_id,
        "scope": key.scope.value,
        "label": key.label,
        "created_at_ms": key.created_at_ms,
        "revoked": key.revoked,
    }


def _age(key: ApiKey) -> tuple[int, str]:
    return key.created_at_ms, key.key_id
