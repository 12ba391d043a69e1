"""The API's listening sockets and what every request passes: record, key, handler, error shape.

Owns start and stop, dual-stack binding, and the middleware that turns any error into one JSON
answer and ends each request in exactly one outcome. `peer.app` builds it; the dialects add
routes. It must not know what a request means.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiohttp import web

from aivailable.core.state.records import Scope
from aivailable.errors import AivailableError, ConfigError, RequestError
from aivailable.peer.api.accounting import RequestOutcome, RequestRecord, attach, end, outcome_of
from aivailable.peer.api.auth import AuthRules, authenticate
from aivailable.peer.api.auth.live_requests import LiveRequests
from aivailable.peer.api.cluster.deployments import DeploymentsApi
from aivailable.peer.api.cluster.endpoints import ClusterApi
from aivailable.peer.api.cluster.nodes import NodesApi
from aivailable.peer.api.cluster.proof import ProofApi
from aivailable.peer.api.cluster.removal import RemovalApi
from aivailable.peer.api.cluster.settings import SettingsApi
from aivailable.peer.api.description.openapi import document
from aivailable.peer.api.description.routes import open_paths, registered
from aivailable.peer.api.door.accepting import Door
from aivailable.peer.api.door.connection import IDLE_MAX_S, connection_of
from aivailable.peer.api.door.descriptors import connections_max, limit
from aivailable.peer.api.door.places import Places
from aivailable.peer.api.errors import (
    ClientGone,
    as_request_error,
    error_response,
    from_http_exception,
)
from aivailable.peer.api.health import Health
from aivailable.peer.api.monitoring.exposition import Page
from aivailable.peer.api.monitoring.metrics import Metrics
from aivailable.peer.api.monitoring.stalls import LoopWatch
from aivailable.peer.api.openai.answers import HEADERS_WAIT_S, KEEP_ALIVE_S
from aivailable.peer.api.openai.endpoints import OpenAi
from aivailable.peer.api.shares import Shares
from aivailable.peer.api.sse import stream_of
from aivailable.peer.links.port_choice import taken
from aivailable.peer.ports import Clock
from aivailable.peer.service import Service
from aivailable.peer.tasks import Tasks
from aivailable.wire.limits import HTTP_BODY_MAX_BYTES

REQUESTS_MAX = 1024
"""Requests under way at one node, probes and admin keys apart: whoever looks after a node gets
through when it is full. `Shares` says how many of them one account may have. No more than
1 / REQUESTS_SHARE of the connections: whoever is refused must be able to hear it."""
REQUESTS_SHARE = 2
BODIES_MAX = 256
"""Requests whose body is still on its way, shared out like the requests."""
LINGER_S = 2.0
"""How long the rest of a refused body is read, so that its client hears the answer."""
PROBES = frozenset({"/healthz", "/readyz"})
STOP_GRACE_S = 3.0
"""What is under way at stop may take this long to end by itself."""
BACKLOG = 256
EVERY_ADDRESS = ("0.0.0.0", "::")
ANYBODY_WITH_A_KEY = AuthRules()
_BIND_ATTEMPTS = 8
"""An ephemeral port that is free for IPv4 can be taken for IPv6: then another is tried."""

log = logging.getLogger("aivailable.api")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def new_request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


class ApiServer:
    """The HTTP face of one node. `tls` is an `ssl.SSLContext` when given a certificate."""

    def __init__(
        self,
        service: Service,
        clock: Clock,
        *,
        hosts: tuple[str, ...] = EVERY_ADDRESS,
        port: int = 8420,
        rules: AuthRules = ANYBODY_WITH_A_KEY,
        tls: Any | None = None,
        request_id: Callable[[], str] = new_request_id,
        keep_alive_s: float = KEEP_ALIVE_S,
        headers_wait_s: float = HEADERS_WAIT_S,
    ) -> None:
        self.metrics = Metrics()
        places = connections_max(limit())
        self._places = Places(places)
        self._shares = Shares(min(REQUESTS_MAX, max(1, places // REQUESTS_SHARE)), "requests")
        self._bodies = Shares(min(BODIES_MAX, max(1, places // REQUESTS_SHARE)), "slow bodies")
        self._api_keys = service.api_keys
        self._node = service.observation.node
        self._hosts = hosts
        self._port = port
        self._rules = rules
        self._tls = tls
        self._request_id = request_id
        observation, members, changes = service.observation, service.members, service.changes
        cluster = ClusterApi(
            observation, service.api_keys, members, changes, keep_alive_s=keep_alive_s
        )
        openai = OpenAi(
            service.inference,
            observation,
            clock,
            keep_alive_s=keep_alive_s,
            headers_wait_s=headers_wait_s,
        )
        self.app = web.Application(
            client_max_size=HTTP_BODY_MAX_BYTES, middlewares=[self._middleware()]
        )
        self._tasks = Tasks("api")
        self._watch = LoopWatch(clock)
        self._live = LiveRequests(service.api_keys, observation)
        page = Page(observation, self.metrics, self._watch)
        health = Health(observation, page, lambda: document(self.routes))
        self.routes = (
            *openai.routes(),
            *cluster.routes(),
            *RemovalApi(observation, service.api_keys, members).routes(),
            *NodesApi(observation, members).routes(),
            *DeploymentsApi(service.deployments, changes).routes(),
            *ProofApi(service.api_keys).routes(),
            *SettingsApi(observation, changes).routes(),
            *health.routes(),
        )
        """Everything that is answered, in one table."""
        self._open_paths = open_paths(self.routes)
        self.app.add_routes(registered(self.routes))
        self.app.on_shutdown.append(cluster.stop)
        self._runner: web.AppRunner | None = None
        self._door: Door | None = None

    @property
    def port(self) -> int:
        """The port that is listened on: the given one, or the one that 0 became."""
        return self._port

    async def start(self) -> None:
        """Raises ConfigError when the port cannot be had."""
        sockets = _bind(self._hosts, self._port)
        self._port = sockets[0].getsockname()[1]
        # handler_cancellation: a client that is gone cancels its handler, whatever it waits for.
        self._runner = web.AppRunner(
            self.app,
            handler_cancellation=True,
            # A compressed body could grow past its limit in one step; `read_body` refuses it.
            auto_decompress=False,
            access_log=None,
            shutdown_timeout=STOP_GRACE_S,
            keepalive_timeout=IDLE_MAX_S,
            lingering_time=LINGER_S,
        )
        await self._runner.setup()
        self._tasks.spawn(self._watch.run(), "loop watch")
        self._tasks.spawn(self._live.run(), "revoked keys")
        speak = self._runner.server
        assert speak is not None, "set up above"
        self._door = Door(sockets, speak, self._places, tls=self._tls)
        self._door.open()

    async def stop(self) -> None:
        """Takes no more requests and waits STOP_GRACE_S for those under way."""
        if self._door is not None:
            await self._door.close()
            self._door = None
        if self._runner is not None:
            await self._runner.cleanup()
            await self._tasks.stop()
            self._runner = None

    def _middleware(self) -> Any:
        @web.middleware
        async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._observed(request, handler)

        return observe

    async def _observed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Exactly one outcome for each request, whichever way its handler ends."""
        now_s = asyncio.get_running_loop().time
        record = RequestRecord(self._request_id(), request.method, _route(request), now_s())
        attach(request, record)
        connection = connection_of(request)
        if connection is not None:
            connection.begin(request.content)
        self.metrics.in_flight += 1
        outcome, status = RequestOutcome.CANCELLED, 499
        try:
            response = await self._answered(request, handler, record)
            status = response.status
            outcome = outcome_of(status)
            return response
        finally:
            self.metrics.in_flight -= 1
            if connection is not None:
                connection.end()
            end(record, outcome, status, now_s(), self.metrics)

    async def _answered(
        self, request: web.Request, handler: Handler, record: RequestRecord
    ) -> web.StreamResponse:
        """The handler's answer or an error's; CancelledError when the client is gone."""
        try:
            authenticate(
                request,
                self._api_keys,
                self._node,
                rules=self._rules,
                open_paths=self._open_paths,
            )
            # Without auth a key is only a label: what it labels may go on.
            watched = record.key if self._rules.require_auth else None
            with self._place(request, record), self._live.hold(watched):
                response = await handler(request)
        except ClientGone as error:
            # What the server itself does when it notices first (handler_cancellation).
            raise asyncio.CancelledError("the client is gone") from error
        except web.HTTPException as error:
            refused = from_http_exception(error, request.method, request.path)
            response = error_response(refused, record.request_id)
        except (AivailableError, OSError) as error:
            return await self._failed(request, record, as_request_error(error))
        except Exception:
            log.exception("request %s broke", record.request_id)
            broken = RequestError(500, "internal_error", "the node failed; its log says how")
            response = error_response(broken, record.request_id)
        if not response.prepared:
            response.headers.update(record.headers())
        return response

    async def _failed(
        self, request: web.Request, record: RequestRecord, error: RequestError
    ) -> web.StreamResponse:
        """The error as an answer, or as the last event of the stream that has begun."""
        stream = stream_of(request)
        if stream is None:
            response = error_response(error, record.request_id)
            response.headers.update(record.headers())
            return response
        record.outcome = RequestOutcome.REFUSED
        try:
            return await stream.fail(error, record.request_id)
        except ClientGone as gone:
            raise asyncio.CancelledError("the client is gone") from gone

    @contextlib.contextmanager
    def _place(self, request: web.Request, record: RequestRecord) -> Iterator[None]:
        """Its place among what is under way. Entering it raises RequestError 503 or 429."""
        if request.path in PROBES or (record.key is not None and record.key.scope is Scope.ADMIN):
            yield
            return
        connection = connection_of(request)
        if connection is not None:
            connection.counts_for(record.account)
        with self._shares.hold(record.account), contextlib.ExitStack() as arriving:
            if not request.content.is_eof():
                arriving.enter_context(self._bodies.hold(record.account))
                request.content.on_eof(arriving.close)
            yield


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


def _bind(hosts: tuple[str, ...], port: int) -> list[socket.socket]:
    """One socket per address, all on one port. Raises ConfigError."""
    attempts = _BIND_ATTEMPTS if port == 0 and len(hosts) > 1 else 1
    for attempt in range(attempts):
        try:
            return _bind_once(hosts, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or attempt + 1 == attempts:
                raise _bind_refused(error, hosts, port) from error
    raise ConfigError("no address to listen on was given")


def _bind_once(hosts: tuple[str, ...], port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                one = socket.socket(family, socket.SOCK_STREAM)
                undo.callback(one.close)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind((host, port))
                # Two programs may share a bound port until one listens: this finds out now.
                one.listen(BACKLOG)
            except OSError as error:
                # A machine without IPv6 (or IPv4) serves on what it has.
                absent = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                if absent and hosts == EVERY_ADDRESS:
                    continue
                raise
            one.setblocking(False)
            port = one.getsockname()[1]
            sockets.append(one)
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "no network address to listen on")
        undo.pop_all()
    return sockets


def _bind_refused(error: OSError, hosts: tuple[str, ...], port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return taken(port)
    if error.errno == errno.EACCES:
        return ConfigError(
            f"port {port} needs privileges that this user lacks; choose one from 1024 with --port N"
        )
    return ConfigError(f"cannot listen on {', '.join(hosts)} port {port}: {error.strerror}")
