"""`/cluster/v1/*`: the cluster as it is, and the few ways to change it over HTTP.

Owns parsing and rendering; every change is a command that `Service.propose` (or its richer
siblings) commits. Changes need an admin key. Used by `client`, and so by CLI and monitor.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from aivailable.core.commands import RevokeKey, SetWindow
from aivailable.core.records import ApiKey, Event, Scope
from aivailable.errors import AivailableError, RequestError
from aivailable.peer.api.accounting import Outcome, call_of
from aivailable.peer.api.auth import require_admin
from aivailable.peer.api.cluster_deployments import DeploymentsApi
from aivailable.peer.api.cluster_nodes import NodesApi
from aivailable.peer.api.cluster_settings import SettingsApi
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.errors import ClientGone, ParameterError
from aivailable.peer.api.parameters import Parameters, read_body
from aivailable.peer.api.sse import SseWriter
from aivailable.peer.service import Service
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

log = logging.getLogger("aivailable.api")


class ClusterApi:
    """The handlers. `keep_alive_s` is an argument for the tests."""

    def __init__(self, service: Service, *, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._service = service
        self._nodes = NodesApi(service)
        self._deployments = DeploymentsApi(service)
        self._settings = SettingsApi(service)
        self._keep_alive_s = keep_alive_s
        self._followers: dict[asyncio.Task[Any], None] = {}

    def routes(self) -> list[web.RouteDef]:
        prefix = "/cluster/v1"
        return [
            web.get(f"{prefix}/state", self.state),
            web.get(f"{prefix}/nodes", self.nodes),
            *self._nodes.routes(),
            web.get(f"{prefix}/members", self.members),
            web.delete(f"{prefix}/members/{{node}}", self.remove),
            web.get(f"{prefix}/deployments", self.deployments),
            *self._deployments.routes(),
            *self._settings.routes(),
            web.get(f"{prefix}/models", self.models),
            web.get(f"{prefix}/keys", self.keys),
            web.post(f"{prefix}/keys", self.create_key),
            web.delete(f"{prefix}/keys/{{key_id}}", self.revoke_key),
            web.get(f"{prefix}/events", self.events),
            web.post(f"{prefix}/window", self.window),
            web.post(f"{prefix}/leave", self.leave),
            web.post(f"{prefix}/recover", self.recover),
            web.post(f"{prefix}/merge", self.merge),
        ]

    async def stop(self, _: web.Application) -> None:
        """Ends the event streams, which no client would end for us."""
        for task in tuple(self._followers):
            task.cancel()

    async def state(self, request: web.Request) -> web.Response:
        """`?consistent=1`: not before everything committed until now is applied here."""
        if request.query.get("consistent") in ("1", "true"):
            await self._service.barrier()
        return json_answer(self._service.status())

    async def nodes(self, _: web.Request) -> web.Response:
        status = self._service.status()
        return json_answer({"version": status.version, "nodes": status.nodes})

    async def members(self, _: web.Request) -> web.Response:
        """The same nodes without their devices, and who waits at the door."""
        status = self._service.status()
        members = to_plain(status.nodes)
        for member in members:
            del member["devices"]
        return json_answer(
            {
                "version": status.version,
                "cluster_id": status.cluster_id,
                "leader": status.leader,
                "voters": list(status.voters),
                "members": members,
                "waiting": status.waiting,
            }
        )

    async def deployments(self, _: web.Request) -> web.Response:
        status = self._service.status()
        return json_answer(
            {
                "version": status.version,
                "deployments": status.deployments,
                "replicas": status.replicas,
            }
        )

    async def models(self, _: web.Request) -> web.Response:
        status = self._service.status()
        return json_answer({"version": status.version, "models": status.models})

    async def keys(self, request: web.Request) -> web.Response:
        require_admin(request)
        shown = [_shown_key(one) for one in sorted(self._service.keys(), key=_age)]
        return json_answer({"keys": shown})

    async def create_key(self, request: web.Request) -> web.Response:
        call = require_admin(request)
        body = await read_body(request)
        scope = body.text("scope") or Scope.USER.value
        if scope not in (Scope.USER.value, Scope.ADMIN.value):
            raise ParameterError("scope", "'scope' must be 'user' or 'admin'")
        label = body.text("label", chars_max=LABEL_MAX_CHARS) or ""
        if not label.isprintable():
            raise ParameterError("label", "'label' must be printable")
        text, key = await self._service.mint_key(scope, label, actor=call.actor)
        return json_answer(
            {"key": text, **_shown_key(key)}, status=201, headers={"Cache-Control": "no-store"}
        )

    async def revoke_key(self, request: web.Request) -> web.Response:
        call = require_admin(request)
        key_id = request.match_info["key_id"]
        await self._service.propose(
            RevokeKey(key_id), actor=call.actor, reason=f"api {call.request_id}"
        )
        return json_answer({"revoked": key_id})

    async def window(self, request: web.Request) -> web.Response:
        call = require_admin(request)
        duration_s = (await read_body(request)).integer("duration_s", 0, WINDOW_MAX_S)
        if duration_s is None:
            raise ParameterError(
                "duration_s", "'duration_s' is required; 0 closes", code="missing_parameter"
            )
        await self._service.propose(
            SetWindow(duration_s), actor=call.actor, reason=f"api {call.request_id}"
        )
        return json_answer({"duration_s": duration_s})

    async def remove(self, request: web.Request) -> web.Response:
        """Take a member out by its id, a beginning of it, or its name."""
        call = require_admin(request)
        wanted = request.match_info["node"]
        found = [
            node.node
            for node in self._service.status().nodes
            if node.name == wanted or (len(wanted) >= 4 and node.node.startswith(wanted))
        ]
        if len(found) != 1:
            many = "is ambiguous" if found else "is no member"
            raise ParameterError("node", f"{wanted!r} {many}; see `aivailable members`")
        await self._service.remove(found[0], actor=call.actor)
        return json_answer({"removed": found[0]})

    async def leave(self, request: web.Request) -> web.Response:
        require_admin(request)
        await self._service.leave()
        return json_answer({"left": self._service.node})

    async def recover(self, request: web.Request) -> web.Response:
        """Found the cluster anew from this node's copy; says what was given up."""
        call = require_admin(request)
        result = await self._service.recover(actor=call.actor)
        cluster = result.state.cluster
        return json_answer(
            {
                "cluster_id": "" if cluster is None else cluster.cluster_id,
                "gone": list(result.gone),
                "lost_models": list(result.lost_models),
            }
        )

    async def merge(self, request: web.Request) -> web.Response:
        """End this cluster in the one named by `into`."""
        call = require_admin(request)
        into = (await read_body(request)).required_text("into", chars_max=CLUSTER_ID_MAX_CHARS)
        await self._service.merge(into, actor=call.actor)
        return json_answer({"into": into})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """History after a version: what there is as JSON, or followed as server-sent events."""
        query = Parameters(_numbers(request))
        after = query.integer("after", 0) or 0
        if "text/event-stream" in request.headers.get("Accept", ""):
            return await self._follow(request, after)
        limit = query.integer("limit", 1, EVENTS_LIMIT_MAX) or EVENTS_LIMIT_DEFAULT
        found = _page(self._service.events(after), limit)
        return json_answer(
            {
                "version": found[-1].version if found else max(after, 0),
                "events": found,
            }
        )

    async def _follow(self, request: web.Request, after: int) -> web.StreamResponse:
        call = call_of(request)
        task = asyncio.current_task()
        if task is None or len(self._followers) >= EVENT_STREAMS_MAX:
            raise RequestError(
                503, "too_many_followers", "too many follow the events of this node",
                retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        # A stream without an end of its own is done when its reader has had enough.
        call.outcome = Outcome.DONE
        self._followers[task] = None
        sse = SseWriter(request, call.headers())
        try:
            await sse.open()
            await sse.comment("connected")
            await self._send_events(sse, after)
        except ClientGone:
            raise
        except (AivailableError, OSError) as error:
            # The node has left its cluster, say. The reader asks again and is told.
            log.info("request %s: the events end here: %s", call.request_id, error)
        except Exception:
            call.outcome = Outcome.FAILED
            log.exception("request %s broke in mid-stream", call.request_id)
        finally:
            del self._followers[task]
        return await sse.end()

    async def _send_events(self, sse: SseWriter, after: int) -> None:
        applied = sent = after
        while True:
            for event in self._service.events(sent):
                await sse.event(event.version, event.kind, event)
                sent = event.version
            try:
                async with asyncio.timeout(self._keep_alive_s):
                    applied = await self._service.changed(max(applied, sent))
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


def _shown_key(key: ApiKey) -> dict[str, Any]:
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
