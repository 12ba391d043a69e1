"""A cluster as the CLI and the monitor reach it: over HTTP, at whichever member answers.

Owns the connection, the API's errors as exceptions, and following to another member when the
current one dies; it must not print and must not know the peer's insides. What only reads is tried
at every known address; what changes something is sent again only when it surely was not received.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp

from aivailable.core.records import Deployment
from aivailable.core.status import ClusterStatus, EventStatus
from aivailable.errors import AivailableError, SchemaError
from aivailable.wire.schema import from_plain

T = TypeVar("T")

CONNECT_TIMEOUT_S = 2.0
RECONNECT_PAUSE_S = 0.2
READ_TIMEOUT_S = 5.0
"""For one answer of the cluster API that only reads."""
CHANGE_TIMEOUT_S = 60.0
"""A change waits for the log, and `deploy` of a path for the hash of the file."""
DEPLOY_TIMEOUT_S = 1800.0
STREAM_SILENCE_MAX_S = 30.0
"""A server sends keep-alives every 5 s: a stream that is silent for so long is dead."""
WATCH_INTERVAL_S = 1.0
ADDRESSES_MAX = 64
LINE_MAX_BYTES = 4 * 1024 * 1024
_JSON_BODY = {"Content-Type": "application/json"}


class ClientError(AivailableError):
    """The API refused, or nobody answered. `status` is 0 when there was no HTTP answer;
    `code` is the API's, or unreachable | connection_lost | bad_answer."""

    def __init__(self, message: str, status: int = 0, code: str = "unreachable") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class KeyInfo:
    key_id: str
    scope: str
    label: str
    created_at_ms: int = 0
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Recovery:
    """A cluster founded anew, and what was given up for it."""

    cluster_id: str
    gone: tuple[str, ...] = ()
    """Names of the members that are none any more."""
    lost_models: tuple[str, ...] = ()
    """Catalogue entries without a verified copy now."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of an answer; the last ones carry the reason of its end and the usage."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    reasoning: str = ""
    """What the model thinks before it answers, told apart from the answer."""


class Client:
    """`urls`: members to begin with, best first ("http://127.0.0.1:8420"). Use as an async
    context manager, or call `close`."""

    def __init__(self, urls: Sequence[str], api_key: str | None = None) -> None:
        if not urls:
            raise ValueError("a client needs at least one URL")
        self._urls = [url.rstrip("/") for url in urls]
        self._given = len(self._urls)
        self._current = self._urls[0]
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
        status = _decoded(ClusterStatus, await self._read(f"/cluster/v1/state{query}"))
        self._learn(status)
        return status

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
        place = _Place(after)
        while True:
            path = f"/cluster/v1/events?after={place.resume()}"
            if not follow:
                answer = await self._read(path)
                page = [_decoded(EventStatus, one) for one in _listed(answer, "events")]
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
                    async for data in _sse_data(response):
                        event = _decoded(EventStatus, _parsed(data))
                        if place.is_new(event):
                            yield event
            except ClientError as error:
                if error.code != "connection_lost":
                    raise
            await asyncio.sleep(RECONNECT_PAUSE_S)
            await self.state()

    async def models(self) -> tuple[str, ...]:
        """What a chat's `model` may be."""
        return tuple(str(one["id"]) for one in _listed(await self._read("/v1/models"), "data"))

    async def deploy(self, model: str, **fields: Any) -> Deployment:
        """`fields` are those of peer.service.DeployRequest (name, context, slots, replicas_min,
        replicas_max, copies, pin, …); None and absent mean the default."""
        body = {"model": model, **{key: one for key, one in fields.items() if one is not None}}
        answer = await self._change(
            "POST", "/cluster/v1/deployments", body, timeout_s=DEPLOY_TIMEOUT_S
        )
        return _decoded(Deployment, answer)

    async def undeploy(self, name: str) -> None:
        await self._change("DELETE", f"/cluster/v1/deployments/{quote(name, safe='')}")

    async def keys(self) -> tuple[KeyInfo, ...]:
        answer = await self._read("/cluster/v1/keys")
        return tuple(_decoded(KeyInfo, one) for one in _listed(answer, "keys"))

    async def create_key(self, scope: str = "user", label: str = "") -> tuple[str, KeyInfo]:
        """The key's text, which is never shown again, and its record."""
        answer = await self._change("POST", "/cluster/v1/keys", {"scope": scope, "label": label})
        info = _decoded(KeyInfo, answer)
        return str(answer["key"]), info

    async def revoke_key(self, key_id: str) -> None:
        await self._change("DELETE", f"/cluster/v1/keys/{quote(key_id, safe='')}")

    async def window(self, duration_s: int) -> None:
        """Open the join window, or close it with 0."""
        await self._change("POST", "/cluster/v1/window", {"duration_s": duration_s})

    async def remove(self, node: str) -> None:
        """Take another member out: its id, a beginning of it (4 characters), or its name."""
        await self._change("DELETE", f"/cluster/v1/members/{quote(node, safe='')}")

    async def leave(self) -> None:
        """The node at the first URL leaves its cluster: never sent to another."""
        await self._change("POST", "/cluster/v1/leave", here_only=True)

    async def merge(self, into: str) -> None:
        """End the cluster in the one with this id."""
        await self._change("POST", "/cluster/v1/merge", {"into": into})

    async def recover(self) -> Recovery:
        """The node at the first URL founds its cluster anew: never sent to another."""
        answer = await self._change("POST", "/cluster/v1/recover", here_only=True)
        return _decoded(Recovery, answer)

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
        return await _json(response)

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
        return await _json(response)

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
        problems: list[str] = []
        for url in addresses:
            try:
                response = await self._opened_session().request(
                    method,
                    url + path,
                    # A file-like body: aiohttp warns of long bytes, and chats can be long.
                    data=None if body is None else io.BytesIO(json.dumps(body).encode()),
                    headers={**_JSON_BODY, **self._headers, **(headers or {})},
                    timeout=timeout,
                )
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                problems.append(f"{url}: {error}")
                continue
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if not again:
                    raise ClientError(
                        f"{url} did not answer ({_named(error)}): whether it was done is "
                        "unknown, check status",
                        code="connection_lost",
                    ) from error
                problems.append(f"{url}: {_named(error)}")
                continue
            if not here_only:
                self._current = url
            if response.status >= 400:
                raise await _refused(response)
            return response
        raise ClientError(f"no member answers ({'; '.join(problems)})")

    def _opened_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(read_bufsize=LINE_MAX_BYTES)
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
            async for data in _sse_data(response):
                if data == "[DONE]":
                    return
                yield _delta(_parsed(data))
        finally:
            # Closing the connection, not just forgetting it, is what cancels the request.
            response.close()
        raise ClientError("the answer broke off", code="connection_lost")


class _Place:
    """Where a reader of events is. One version can have several events: after a break between
    them the version is asked for again, and those that had come are passed over."""

    def __init__(self, after: int) -> None:
        self._version = after
        self._taken = 0
        """How many events of `_version` were given out."""
        self._skip = 0

    def resume(self) -> int:
        """The `after` to ask for now."""
        self._skip = self._taken
        return self._version - 1 if self._taken else self._version

    def is_new(self, event: EventStatus) -> bool:
        if event.version == self._version and self._skip:
            self._skip -= 1
            return False
        self._taken = self._taken + 1 if event.version == self._version else 1
        self._version = event.version
        return True


def _delta(chunk: Any) -> ChatDelta:
    """One chunk of the stream. Raises ClientError when it is an error event."""
    if not isinstance(chunk, dict):
        raise ClientError("not a chat chunk", code="bad_answer")
    if "error" in chunk:
        raise _api_error(chunk, 200)
    try:
        usage = chunk.get("usage")
        used = (
            Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"])) if usage else None
        )
        for choice in chunk["choices"]:
            delta = choice["delta"]
            text = str(delta.get("content") or "")
            reasoning = str(delta.get("reasoning_content") or "")
            return ChatDelta(text, choice.get("finish_reason"), used, reasoning)
    except (KeyError, TypeError, ValueError) as error:
        raise ClientError(f"not a chat chunk: {error}", code="bad_answer") from error
    return ChatDelta(usage=used)


async def _sse_data(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The data of each server-sent event; comments and names are passed over."""
    lines: list[str] = []
    try:
        async for raw in response.content:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if line.startswith("data:"):
                lines.append(line[5:].removeprefix(" "))
            elif line == "" and lines:
                yield "\n".join(lines)
                lines.clear()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise ClientError(
            f"the connection broke: {_named(error)}", code="connection_lost"
        ) from error


async def _json(response: aiohttp.ClientResponse) -> Any:
    try:
        async with response:
            return json.loads(await response.read())
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ClientError(
            f"the answer broke off: {_named(error)}", code="connection_lost"
        ) from error
    except ValueError as error:
        raise ClientError(f"the answer is not JSON: {error}", code="bad_answer") from error


async def _refused(response: aiohttp.ClientResponse) -> ClientError:
    try:
        async with response:
            return _api_error(json.loads(await response.read()), response.status)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return ClientError(
            f"{response.url.host} answered {response.status}", response.status, "http_error"
        )


def _api_error(body: Any, status: int) -> ClientError:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ClientError(f"the API answered {status}", status, "http_error")
    return ClientError(
        str(error.get("message", "refused")), status, str(error.get("code", "error"))
    )


def _parsed(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise ClientError(f"not JSON in the stream: {error}", code="bad_answer") from error


def _decoded(kind: type[T], plain: Any) -> T:
    try:
        return from_plain(kind, plain)
    except SchemaError as error:
        raise ClientError(f"unexpected answer: {error}", code="bad_answer") from error


def _listed(answer: Any, key: str) -> Iterable[Any]:
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise ClientError(f"unexpected answer: no list of {key}", code="bad_answer")
    return found


def _url(scheme: str, address: str, port: int) -> str:
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
