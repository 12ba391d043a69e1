"""What the API answers, as values: records, pieces of a chat, errors.

Owns the decoding of bodies and of server-sent events, and the API's refusals as exceptions; opens
no connection.

Not to be confused with `peer.api.openai.answers`, which writes answers.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from aivailable.core.serving.status import EventStatus
from aivailable.errors import AivailableError, SchemaError
from aivailable.wire.schema import from_plain

T = TypeVar("T")


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
    node: str = ""
    """The member that brought it."""
    via: str = ""
    """The node that proposed it."""
    by: str = ""
    """The key that asked for it."""
    ends: bool = False
    """In a list of what came through a member: it ends with that one."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What becomes of the keys that came through a member when it is removed."""

    node: str
    keys: tuple[KeyInfo, ...] = ()
    problem: str = ""
    """Why it is refused like this."""


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One of the cluster's settings; values are whole numbers, or with `unit` "" true or false."""

    key: str
    value: Any
    default: Any
    unit: str
    least: int = 0
    most: int = 0
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Recovery:
    """A cluster founded anew, and what was given up for it."""

    cluster_id: str
    gone: tuple[str, ...] = ()
    """Names of the members that are none any more."""
    awaited: tuple[str, ...] = ()
    """Of them, those that are let in again."""
    ended_keys: tuple[str, ...] = ()
    lost_models: tuple[str, ...] = ()
    """Catalogue entries without a verified copy now."""


@dataclass(frozen=True, slots=True)
class AnswerUsage:
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of an answer; the last ones carry the reason of its end and the usage."""

    text: str = ""
    finish_reason: str | None = None
    usage: AnswerUsage | None = None
    reasoning: str = ""
    """What the model thinks before it answers, told apart from the answer."""


class EventCursor:
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


def delta_of(chunk: Any) -> ChatDelta:
    """One chunk of the stream. Raises ClientError when it is an error event."""
    if not isinstance(chunk, dict):
        raise ClientError("not a chat chunk", code="bad_answer")
    if "error" in chunk:
        raise _api_error(chunk, 200)
    try:
        usage = chunk.get("usage")
        used = (
            AnswerUsage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
            if usage
            else None
        )
        for choice in chunk["choices"]:
            delta = choice["delta"]
            text = str(delta.get("content") or "")
            reasoning = str(delta.get("reasoning_content") or "")
            return ChatDelta(text, choice.get("finish_reason"), used, reasoning)
    except (KeyError, TypeError, ValueError) as error:
        raise ClientError(f"not a chat chunk: {error}", code="bad_answer") from error
    return ChatDelta(usage=used)


def event_of(plain: Any) -> EventStatus:
    """One of the followed events. Raises ClientError when the stream says why it ends."""
    if isinstance(plain, dict) and "error" in plain:
        raise _api_error(plain, 200)
    return decoded(EventStatus, plain)


async def sse_data(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
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
            f"the connection broke: {named(error)}", code="connection_lost"
        ) from error


async def json_of(response: aiohttp.ClientResponse) -> Any:
    try:
        return json.loads(await text_of(response))
    except ValueError as error:
        raise ClientError(f"the answer is not JSON: {error}", code="bad_answer") from error


async def text_of(response: aiohttp.ClientResponse) -> bytes:
    """The whole answer. Raises ClientError."""
    try:
        async with response:
            return await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ClientError(
            f"the answer broke off: {named(error)}", code="connection_lost"
        ) from error


async def refused(response: aiohttp.ClientResponse) -> ClientError:
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


def parsed(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise ClientError(f"not JSON in the stream: {error}", code="bad_answer") from error


def decoded(kind: type[T], plain: Any) -> T:
    try:
        return from_plain(kind, plain)
    except SchemaError as error:
        raise ClientError(f"unexpected answer: {error}", code="bad_answer") from error


def listed(answer: Any, key: str) -> Iterable[Any]:
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise ClientError(f"unexpected answer: no list of {key}", code="bad_answer")
    return found


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
