"""A cluster as the CLI and the monitor reach it: over HTTP, at whichever member answers.

Owns the connection, the API's errors as exceptions, and following to another member when the
current one dies; it must not print and must not know the peer's insides. What only reads is tried
at every known address; what changes something is sent again only when it surely was not received.

* `answers`: the API's answers as values.
* `proof`: that a node is one of the key's cluster, before it is sent the key.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import aiohttp

from aivailable.client.answers import (
    AnswerUsage,
    ChatDelta,
    ClientError,
    EventCursor,
    KeyInfo,
    Recovery,
    Removal,
    SettingInfo,
    decoded,
    delta_of,
    event_of,
    json_of,
    listed,
    named,
    parsed,
    refused,
    sse_data,
    text_of,
)
from aivailable.client.proof import NotProved, ProvingConnector, prove
from aivailable.core.serving.status import (
    HERE,
    ClusterStatus,
    DrainStatus,
    EventStatus,
    FitStatus,
    PauseStatus,
    PlanStatus,
)
from aivailable.core.state.records import Deployment

__all__ = [
    "AnswerUsage",
    "ChatDelta",
    "ChatStream",
    "Client",
    "ClientError",
    "KeyInfo",
    "Recovery",
    "Removal",
]

CONNECT_TIMEOUT_S = 2.0
RECONNECT_PAUSE_S = 0.2
READ_TIMEOUT_S = 5.0
"""For one answer of the cluster API that only reads."""
CHANGE_TIMEOUT_S = 60.0
"""A change waits for the log, and `deploy` of a path for the hash of the file."""
DEPLOY_TIMEOUT_S = 1800.0
STREAM_SILENCE_MAX_S = 30.0
"""A server sends keep-alives every 5 s: a stream that is silent for this long is dead."""
WATCH_INTERVAL_S = 1.0
ADDRESSES_MAX = 64
LINE_MAX_BYTES = 4 * 1024 * 1024
PROOF_TRIES = 4
"""A connection that was proved may be taken by another request of ours, or end."""
_STALL = re.compile(rb"^aivailable_loop_longest_stall_seconds ([0-9.e+-]{1,32})$", re.MULTILINE)
_JSON_BODY = {"Content-Type": "application/json"}


class Client:
    """`urls`: members to begin with, best first ("http://127.0.0.1:8420"). Use as an async
    context manager, or call `close`. A key is sent only to nodes that show that they know it.
    `mapped`: a person named the URLs, and a port map or a proxy may stand before the nodes."""

    def __init__(
        self, urls: Sequence[str], api_key: str | None = None, *, mapped: bool = False
    ) -> None:
        if not urls:
            raise ValueError("a client needs at least one URL")
        self._urls = [url.rstrip("/") for url in urls]
        self._given = len(self._urls)
        self._current = self._urls[0]
        self._api_key = api_key
        self._mapped = mapped
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        """The member that answered last."""
        return self._current

    @property
    def urls(self) -> tuple[str, ...]:
        """Every address known: the given ones, then those learned from the cluster."""
        return tuple(self._urls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def state(self, *, consistent: bool = False) -> ClusterStatus:
        """What the answering member sees; also learns the others' addresses from it.

        `consistent`: everything committed before the call is in it; needs a majority.
        """
        query = "?consistent=1" if consistent else ""
        status = decoded(ClusterStatus, await self._read(f"/cluster/v1/state{query}"))
        self._learn(status)
        return status

    async def longest_stall_s(self) -> float | None:
        """How long the member's event loop stood still at most in the last minutes, as its
        /metrics say; None: they do not."""
        response = await self._open("GET", "/metrics", again=True, timeout_s=READ_TIMEOUT_S)
        found = _STALL.search(await text_of(response))
        return float(found[1]) if found is not None else None

    async def watch(
        self, interval_s: float = WATCH_INTERVAL_S
    ) -> AsyncGenerator[ClusterStatus, None]:
        """The status now and then every `interval_s`, from another member when the current one
        dies. Raises ClientError(unreachable) when none answers; watching again is fine."""
        while True:
            yield await self.state()
            await asyncio.sleep(interval_s)

    async def events(
        self, after: int = 0, *, follow: bool = True
    ) -> AsyncGenerator[EventStatus, None]:
        """History after a version, oldest first; `follow` goes on for ever, at another member
        when this one dies, without loss."""
        place = EventCursor(after)
        while True:
            path = f"/cluster/v1/events?after={place.resume()}"
            if not follow:
                answer = await self._read(path)
                page = [decoded(EventStatus, one) for one in listed(answer, "events")]
                fresh = [event for event in page if place.is_new(event)]
                if not fresh:
                    return
                for event in fresh:
                    yield event
                continue
            headers = {"Accept": "text/event-stream"}
            try:
                response = await self._open("GET", path, headers=headers, again=True)
                async with response:
                    async for data in sse_data(response):
                        event = event_of(parsed(data))
                        if place.is_new(event):
                            yield event
            except ClientError as error:
                if error.code != "connection_lost":
                    raise
            await asyncio.sleep(RECONNECT_PAUSE_S)
            await self.state()

    async def models(self) -> tuple[str, ...]:
        """What a chat's `model` may be."""
        return tuple(str(one["id"]) for one in listed(await self._read("/v1/models"), "data"))

    async def deploy(self, model: str, **fields: Any) -> Deployment:
        """`fields` are those of peer.service.DeployRequest (name, context, slots, replicas_min,
        replicas_max, copies, pin, where, …); None and absent mean the default."""
        answer = await self._change(
            "POST",
            "/cluster/v1/deployments",
            _deployment_asked(model, fields),
            timeout_s=DEPLOY_TIMEOUT_S,
        )
        return decoded(Deployment, answer)

    async def preview(self, model: str, **fields: Any) -> PlanStatus:
        """What `deploy` with the same arguments would come to; changes nothing."""
        path = "/cluster/v1/deployments?dry_run=1"
        return decoded(
            PlanStatus, await self._change("POST", path, _deployment_asked(model, fields))
        )

    async def fit(self, model: str, **fields: Any) -> FitStatus:
        """Where one more replica fits now. `fields`: context, slots, options, engine, priority."""
        answer = await self._change("POST", "/cluster/v1/fit", _deployment_asked(model, fields))
        return decoded(FitStatus, answer)

    async def undeploy(self, name: str) -> None:
        await self._change("DELETE", f"/cluster/v1/deployments/{quote(name, safe='')}")

    async def keys(self) -> tuple[KeyInfo, ...]:
        answer = await self._read("/cluster/v1/keys")
        return tuple(decoded(KeyInfo, one) for one in listed(answer, "keys"))

    async def create_key(self, scope: str = "user", label: str = "") -> tuple[str, KeyInfo]:
        """The key's text, which is never shown again, and its record."""
        answer = await self._change("POST", "/cluster/v1/keys", {"scope": scope, "label": label})
        info = decoded(KeyInfo, answer)
        return str(answer["key"]), info

    async def revoke_key(self, key_id: str, *, force: bool = False) -> None:
        """`force`: also the last admin key."""
        query = "?force=1" if force else ""
        await self._change("DELETE", f"/cluster/v1/keys/{quote(key_id, safe='')}{query}")

    async def window(self, duration_s: int) -> None:
        """Open the join window, or close it with 0."""
        await self._change("POST", "/cluster/v1/window", {"duration_s": duration_s})

    async def remove(
        self, node: str, keep_keys: Sequence[str] = (), revoke_keys: Sequence[str] = ()
    ) -> None:
        """Take another member out: its id, a beginning of it (4 characters), or its name. Of the
        keys that came through it the admin keys end, unless kept, and those that are named."""
        query = _query(keep_key=keep_keys, revoke_key=revoke_keys)
        await self._change("DELETE", f"/cluster/v1/members/{quote(node, safe='')}{query}")

    async def removal(
        self, node: str, keep_keys: Sequence[str] = (), revoke_keys: Sequence[str] = ()
    ) -> Removal:
        """What `remove` with the same arguments does to keys; changes nothing."""
        query = _query(keep_key=keep_keys, revoke_key=revoke_keys)
        path = f"/cluster/v1/members/{quote(node, safe='')}/keys{query}"
        return decoded(Removal, await self._read(path))

    async def drain(self, node: str, draining: bool, *, force: bool = False) -> DrainStatus:
        """Take a node out of service for maintenance, or back in; named as in `remove`. `force`:
        also the last usable one."""
        verb = "drain" if draining else "undrain"
        query = "?force=1" if force and draining else ""
        path = f"/cluster/v1/nodes/{quote(node, safe='')}/{verb}{query}"
        return decoded(DrainStatus, await self._change("POST", path))

    async def pause(self, node: str, duration_s: int) -> PauseStatus:
        """Empty a machine that its owner wants for a while; 0 ends it. Named as in `remove`;
        "" = the node that answers."""
        path = f"/cluster/v1/nodes/{quote(node or HERE, safe='')}/pause"
        answer = await self._change("POST", path, {"duration_s": duration_s}, here_only=not node)
        return decoded(PauseStatus, answer)

    async def settings(self) -> tuple[SettingInfo, ...]:
        answer = await self._read("/cluster/v1/settings")
        return tuple(decoded(SettingInfo, one) for one in listed(answer, "settings"))

    async def change_settings(self, settings: Mapping[str, int | bool]) -> tuple[SettingInfo, ...]:
        """All of them or none."""
        answer = await self._change("PATCH", "/cluster/v1/settings", dict(settings))
        return tuple(decoded(SettingInfo, one) for one in listed(answer, "settings"))

    async def leave(self) -> None:
        """The node at the first URL leaves its cluster: never sent to another."""
        await self._change("POST", "/cluster/v1/leave", here_only=True)

    async def merge(self, into: str) -> None:
        """End the cluster in the one with this id."""
        await self._change("POST", "/cluster/v1/merge", {"into": into})

    async def recover(
        self, expected: Sequence[str] | None = None, keep_keys: Sequence[str] = ()
    ) -> Recovery:
        """The node at the first URL founds its cluster anew: never sent to another. Whoever is
        `expected` is let in again (None: everybody), the others are out for good."""
        alone = ("1",) if expected is not None and not expected else ()
        query = _query(**{"with": expected or (), "alone": alone, "keep_key": keep_keys})
        answer = await self._change("POST", f"/cluster/v1/recover{query}", here_only=True)
        return decoded(Recovery, answer)

    def chat(self, model: str, messages: Sequence[Mapping[str, Any]], **params: Any) -> ChatStream:
        """Stream an answer; `params` are OpenAI's (temperature, max_tokens, seed, …)."""
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **params,
        }
        return ChatStream(self, body)

    async def open_chat(self, body: Mapping[str, Any]) -> aiohttp.ClientResponse:
        """For ChatStream: the response once its headers are here."""
        return await self._open("POST", "/v1/chat/completions", body=body, again=False)

    def _learn(self, status: ClusterStatus) -> None:
        """Members' addresses, behind the given ones, in the order of the status."""
        scheme = urlsplit(self._current).scheme
        learned = [
            _url(scheme, address, node.api_port)
            for node in status.nodes
            if node.api_port and node.state in ("here", "up")
            for address in node.addresses
        ]
        kept = [*self._urls[: self._given], self._current, *learned]
        self._urls = list(dict.fromkeys(kept))[:ADDRESSES_MAX]

    async def _read(self, path: str) -> Any:
        response = await self._open("GET", path, again=True, timeout_s=READ_TIMEOUT_S)
        return await json_of(response)

    async def _change(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = CHANGE_TIMEOUT_S,
        here_only: bool = False,
    ) -> Any:
        response = await self._open(
            method, path, body=body, again=False, timeout_s=timeout_s, here_only=here_only
        )
        return await json_of(response)

    async def _open(
        self,
        method: str,
        path: str,
        *,
        again: bool,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        here_only: bool = False,
    ) -> aiohttp.ClientResponse:
        """The first good answer of any member, the current one first. `again`: sending twice
        does no harm. Raises ClientError."""
        here = self._urls[:1]
        addresses = here if here_only else list(dict.fromkeys([self._current, *self._urls]))
        timeout = aiohttp.ClientTimeout(
            total=timeout_s,
            sock_connect=CONNECT_TIMEOUT_S,
            sock_read=STREAM_SILENCE_MAX_S if timeout_s is None else None,
        )
        problems: list[ClientError] = []
        for url in addresses:
            try:
                response = await self._sent(
                    url,
                    method,
                    path,
                    body=body,
                    headers={**_JSON_BODY, **self._headers, **(headers or {})},
                    timeout=timeout,
                )
            except ClientError as error:
                problems.append(error)
                continue
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                problems.append(ClientError(f"{url}: {error}"))
                continue
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if not again:
                    raise ClientError(
                        f"{url} did not answer ({named(error)}): whether it was done is "
                        "unknown, check status",
                        code="connection_lost",
                    ) from error
                problems.append(ClientError(f"{url}: {named(error)}"))
                continue
            if not here_only:
                self._current = url
            if response.status >= 400:
                raise await refused(response)
            return response
        code = "not_ours" if any(one.code == "not_ours" for one in problems) else "unreachable"
        raise ClientError(f"no member answers ({'; '.join(map(str, problems))})", code=code)

    async def _sent(
        self, url: str, method: str, path: str, *, body: Mapping[str, Any] | None, **sent: Any
    ) -> aiohttp.ClientResponse:
        """The answer to one request. With a key it goes only over a connection whose other end
        has shown that it knows the key. Raises ClientError when there is none such, and then
        nothing was sent; aiohttp's errors."""
        for _ in range(PROOF_TRIES):
            try:
                return await self._opened_session().request(
                    method,
                    url + path,
                    # A file-like body: aiohttp warns of long bytes, and chats can be long.
                    data=None if body is None else io.BytesIO(json.dumps(body).encode()),
                    **sent,
                )
            except NotProved:
                await prove(
                    self._opened_session(),
                    url,
                    self._api_key or "",
                    mapped=self._mapped and url in self._urls[: self._given],
                    connect_s=CONNECT_TIMEOUT_S,
                )
        raise ClientError(f"{url} keeps no connection open, so that it can be trusted with no key")

    def _opened_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=ProvingConnector(), read_bufsize=LINE_MAX_BYTES
            )
        return self._session


class ChatStream:
    """An answer as it is made: iterate it; `request_id`, `ingress`, `host`, `replica` and
    `attempts` are known from the first piece on. `aclose` cancels it in the cluster."""

    def __init__(self, client: Client, body: Mapping[str, Any]) -> None:
        self.request_id = ""
        self.ingress = ""
        self.host = ""
        self.replica = ""
        self.attempts = 0
        self._client = client
        self._body = body
        self._response: aiohttp.ClientResponse | None = None
        self._deltas = self._read()

    def __aiter__(self) -> AsyncIterator[ChatDelta]:
        return self._deltas

    async def aclose(self) -> None:
        if self._response is not None:
            self._response.close()
        await self._deltas.aclose()

    async def _read(self) -> AsyncGenerator[ChatDelta, None]:
        response = await self._client.open_chat(self._body)
        self._response = response
        headers = response.headers
        self.request_id = headers.get("X-AIvailable-Request", "")
        self.ingress = headers.get("X-AIvailable-Ingress", "")
        self.host = headers.get("X-AIvailable-Host", "")
        self.replica = headers.get("X-AIvailable-Replica", "")
        attempts = headers.get("X-AIvailable-Attempts", "")
        self.attempts = int(attempts) if attempts.isdigit() else 0
        try:
            async for data in sse_data(response):
                if data == "[DONE]":
                    return
                yield delta_of(parsed(data))
        finally:
            # Closing the connection, not just forgetting it, is what cancels the request.
            response.close()
        raise ClientError("the answer broke off", code="connection_lost")


def _deployment_asked(model: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model, **{key: one for key, one in fields.items() if one is not None}}


def _query(**values: Sequence[str]) -> str:
    """Parameters that may be repeated; "" when there are none."""
    text = urlencode([(name, one) for name in values for one in values[name]])
    return f"?{text}" if text else ""


def _url(scheme: str, address: str, port: int) -> str:
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"
