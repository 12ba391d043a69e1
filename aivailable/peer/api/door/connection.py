"""One connection to the API: aiohttp's protocol behind deadlines that it has not itself.

Owns the time that a client may take for its first byte and header, for each part of a body, and
between requests; and the place that it holds. `server` tells it when a request begins and ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import StreamReader, web

from aivailable.core.ids import AccountId
from aivailable.peer.api.door.places import ApiPlace, Places
from aivailable.peer.api.door.unread import UNREAD_AFTER_S, Unread

HEADER_DEADLINE_S = 10.0
"""From the connection, or the first byte of a further request, to the end of its header."""
IDLE_MAX_S = 75.0
"""Between two requests of one connection; common clients close theirs before."""
BODY_LOOK_S = 10.0
"""How often a body under way is looked at."""
BODY_LOOK_MIN_BYTES = 10 * 1024
"""What must have come of a body from one look to the next: 1 KiB/s."""

log = logging.getLogger("aivailable.api")


def refusal(status: int, code: str, message: str) -> bytes:
    """An answer where there is no request to answer: the shape of `errors`, and the end."""
    error = {"message": message, "type": "invalid_request_error", "code": code}
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class ApiConnection(asyncio.Protocol):
    """`inner` speaks HTTP; this one forwards everything and keeps time."""

    def __init__(
        self,
        inner: asyncio.Protocol,
        place: ApiPlace,
        places: Places,
        unread: Unread,
        gone: Callable[[ApiPlace], None],
    ) -> None:
        self._inner = inner
        self._place = place
        self._places = places
        self._unread = unread
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._between = False
        """Whether it waits for the first byte of a further request."""
        self._body: StreamReader | None = None
        self._received_bytes = 0
        self._account: AccountId | None = None
        self._counted: AccountId | None = None
        """The account whose unread answer this is."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._wait(HEADER_DEADLINE_S, self._header_late)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._read_again()
        self._body = None
        self._gone(self._place)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._between:
            self._between = False
            self._wait(HEADER_DEADLINE_S, self._header_late)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()
        if self._reading is None and self._account is not None:
            self._reading = self._loop.call_later(UNREAD_AFTER_S, self._not_read)

    def resume_writing(self) -> None:
        self._read_again()
        self._inner.resume_writing()

    def begin(self, body: StreamReader) -> None:
        """A request's header is whole."""
        self._stop_waiting()
        self._between = False
        self._places.begin(self._place)
        if not body.is_eof():
            self._body = body
            self._received_bytes = 0
            self._wait(BODY_LOOK_S, self._look_at_body)

    def counts_for(self, account: AccountId) -> None:
        """Whose request it is; of whom nothing is limited is not told."""
        self._account = account

    def end(self) -> None:
        """The request's handler has ended; its answer may still be on its way."""
        self._body = None
        self._account = None
        self._places.end(self._place)
        if self._transport is not None and not self._transport.is_closing():
            self._between = True
            self._wait(IDLE_MAX_S, self._idle_long)

    def abort(self) -> None:
        """At once, whatever is still to be sent."""
        if self._transport is not None:
            self._transport.abort()

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._deadline = self._loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _header_late(self) -> None:
        self._refuse(f"the request's header did not come within {HEADER_DEADLINE_S:g} s")

    def _idle_long(self) -> None:
        """What it has not read of its last answer in all this time it will not read."""
        self.abort()

    def _look_at_body(self) -> None:
        if self._body is None or self._body.is_eof() or self._transport is None:
            return
        if self._received_bytes < BODY_LOOK_MIN_BYTES and self._transport.is_reading():
            self._refuse(
                f"the body came slower than {BODY_LOOK_MIN_BYTES / BODY_LOOK_S:g} bytes a second; "
                "send it again over a faster connection"
            )
            return
        self._received_bytes = 0
        self._wait(BODY_LOOK_S, self._look_at_body)

    def _refuse(self, message: str) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(refusal(408, "request_timeout", message))
        self._transport.close()
        # A client that does not read this either is not waited for.
        self._wait(HEADER_DEADLINE_S, self.abort)

    def _not_read(self) -> None:
        if self._account is None:
            return
        if self._unread.add(self._account):
            self._counted = self._account
            return
        log.info("%s reads too many answers not at all: one is ended", self._account)
        self.abort()

    def _read_again(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        if self._counted is not None:
            self._unread.remove(self._counted)
            self._counted = None


def connection_of(request: web.BaseRequest) -> ApiConnection | None:
    """None when it is gone, or came through no door of ours."""
    transport = request.transport
    protocol = transport.get_protocol() if transport is not None else None
    return protocol if isinstance(protocol, ApiConnection) else None
