"""Server-sent events (WHATWG HTML, "Server-sent events"): the frames, and nothing of their sense.

Writing waits for the socket (back-pressure). A client that is gone raises ClientGone or cancels
the handler; both end the request as cancelled in `server`. So does a client that reads nothing for
UNREAD_MAX_S: its answer holds a slot that others may wait for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from aivailable.errors import RequestError
from aivailable.peer.api.errors import ClientGone, error_body
from aivailable.wire.schema import to_json

UNREAD_MAX_S = 60.0
"""How long a client may take nothing while the buffers on its way are full."""

LAST_WORD_MAX_S = 0.5
"""How long the last event of a stream that we end may wait for its client."""

log = logging.getLogger("aivailable.api")


class SseWriter:
    """One event stream to one client."""

    def __init__(self, request: web.Request, headers: Mapping[str, str]) -> None:
        self._request = request
        self._response = web.StreamResponse(
            headers={
                **headers,
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                # Tells nginx and its kin not to hold events back.
                "X-Accel-Buffering": "no",
            }
        )

    async def open(self) -> None:
        """Send the status line and headers."""
        self._request[_STREAM] = self
        try:
            await self._response.prepare(self._request)
        except ConnectionError as error:
            raise ClientGone from error

    async def data(self, value: Any) -> None:
        """One unnamed event with JSON data."""
        await self._write(b"data: %b\n\n" % to_json(value))

    async def event(self, event_id: int, kind: str, value: Any) -> None:
        """One named event that a client can resume after."""
        head = f"id: {event_id}\nevent: {kind}\ndata: ".encode()
        await self._write(b"%b%b\n\n" % (head, to_json(value)))

    async def raw(self, text: str) -> None:
        """One unnamed event that is not JSON: OpenAI's [DONE]."""
        await self._write(f"data: {text}\n\n".encode())

    async def comment(self, text: str) -> None:
        """Something to keep proxies and clients from giving up; clients ignore it."""
        await self._write(f": {text}\n\n".encode())

    async def end(self) -> web.StreamResponse:
        try:
            await self._response.write_eof()
        except ConnectionError as error:
            raise ClientGone from error
        return self._response

    async def fail(self, error: RequestError, request_id: str) -> web.StreamResponse:
        """Ends a stream from outside of its handler: after the first byte there is no status left
        to set, so an event says it. Who reads nothing is cut off soon."""
        try:
            async with asyncio.timeout(LAST_WORD_MAX_S):
                await self.data(error_body(error, request_id))
                return await self.end()
        except TimeoutError as late:
            self._cut_off()
            raise ClientGone from late

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(UNREAD_MAX_S):
                await self._response.write(data)
        except TimeoutError as error:
            log.info("a client has read nothing for %.0f s: its answer is ended", UNREAD_MAX_S)
            self._cut_off()
            raise ClientGone from error
        except ConnectionError as error:
            raise ClientGone from error

    def _cut_off(self) -> None:
        """What waits to be sent would keep the connection open for ever."""
        if self._request.transport is not None:
            self._request.transport.abort()


_STREAM = web.RequestKey("stream", SseWriter)


def stream_of(request: web.Request) -> SseWriter | None:
    """The event stream that has begun to answer a request."""
    return request.get(_STREAM)
