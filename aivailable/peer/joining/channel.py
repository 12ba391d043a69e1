"""The join channel: how a stranger and a member talk before the stranger is a member.

Owns both ends of wire.join over TLS with SNI `join`: frames, deadlines, the proof of the key.
It must not decide who is admitted: ports.JoinServer does. `JoinListener` hands its protocol to
links (one port for everything); `TlsJoinClient` is ports.JoinClient. Built by peer.app.

With a join key (peer.joining.join_key), the order is: the server's offer says that it has a key,
the joiner's request proves the key, the server's answer proves it back. So
* the joiner shows its proof to whoever claims a key. That helps nobody: the proof names the
  certificate that this server holds (TLS has shown that it does), both nonces and the cluster,
  so it cannot be passed on to a real member, used again, or reflected as a server's proof;
* the joiner believes no seat before the server's proof: a server without the key, and one that
  claims to have none, cannot make it a member of anything, open window or not. Else an attacker
  would need only to say "no key here" to take in those who were told to trust a key;
* the server proves itself only to a joiner that did, and TLS binds the rest of both messages to
  the certificates in the proof.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from aivailable.core.ids import NodeId, short
from aivailable.errors import LinkError, SchemaError, WireError
from aivailable.peer.joining.join_key import JoinKey
from aivailable.peer.joining.visits import AdmissionRate, Seats, source_of_peer
from aivailable.peer.links.identity import Identity, fingerprint_of, node_id_of, verify
from aivailable.peer.links.trust import SNI_JOIN, Trust, peer_certificate
from aivailable.peer.ports import JoinServer, KeyCheck
from aivailable.wire import frames
from aivailable.wire.frames import Frame, FrameDecoder
from aivailable.wire.join import (
    JOIN,
    NONCE_BYTES,
    JoinAnswer,
    JoinOffer,
    JoinRequest,
    join_transcript,
    key_transcript,
)
from aivailable.wire.limits import JOIN_DEADLINE_S, JOIN_FIRST_WORD_S, JOIN_FRAME_MAX_BYTES

READ_BYTES: Final = JOIN_FRAME_MAX_BYTES
MESSAGE_SHOWN_MAX_CHARS: Final = 300
"""Of a refusal's words: they come from whoever answered, and end on a terminal."""
TOLD_MAX: Final = 64
"""Names remembered of which the log was told that they could not be proved."""

NO_KEY: Final = (
    "that cluster's node has no join key: start its nodes with the same --key, or this one without"
    " --key to come in by the join window"
)
UNPROVED: Final = (
    "it let us in but could not prove the join key, so it is not the cluster that the key is for:"
    " see who runs it"
)

T = TypeVar("T")

log = logging.getLogger(__name__)


def encode_join(message: Any) -> bytes:
    """One frame. Raises LinkError when it would be over JOIN_FRAME_MAX_BYTES."""
    data = JOIN.encode(message)
    if len(data) > JOIN_FRAME_MAX_BYTES:
        raise LinkError(f"a join message of {len(data)} bytes is over {JOIN_FRAME_MAX_BYTES}")
    return frames.encode_frame(frames.JOIN, 0, frames.LAST, data)


def fit_answer(answer: JoinAnswer, first: NodeId) -> JoinAnswer:
    """The answer with as many seats as a frame holds: `first` (the server), then the voters,
    then the rest, each in the given order. One seat is enough to learn the others from the log."""
    seats = sorted(answer.seats, key=lambda seat: (seat.node != first, not seat.voter))
    shortened = dataclasses.replace(answer, seats=tuple(seats))
    while shortened.seats and len(JOIN.encode(shortened)) > JOIN_FRAME_MAX_BYTES:
        shortened = dataclasses.replace(shortened, seats=shortened.seats[:-1])
    return shortened


def _by_this_way(answer: JoinAnswer, server: NodeId, remote: str) -> JoinAnswer:
    """The address that carried the join is tried first for the link: the server may not know it
    for its own, as one of a VPN."""
    return dataclasses.replace(
        answer,
        seats=tuple(
            dataclasses.replace(
                seat, addresses=(remote, *(one for one in seat.addresses if one != remote))
            )
            if seat.node == server
            else seat
            for seat in answer.seats
        ),
    )


class JoinListener:
    """The server's side. Silent until `open`."""

    def __init__(
        self,
        identity: Identity,
        *,
        key: JoinKey | None = None,
        token_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.identity = identity
        self.key = key
        self.token_bytes = token_bytes
        self.server: JoinServer | None = None
        self.seats = Seats()
        self.rate = AdmissionRate(time.monotonic)
        self._told: dict[NodeId, None] = {}

    def open(self, server: JoinServer) -> None:
        self.server = server

    def protocol(self) -> asyncio.Protocol:
        """For one connection that asked for the join channel (links' `stranger`)."""
        return _Visit(self)

    def tell_once(self, node: NodeId) -> None:
        """Of one who tries again and again to pass for `node`."""
        if node not in self._told:
            if len(self._told) >= TOLD_MAX:
                del self._told[next(iter(self._told))]
            self._told[node] = None
            log.warning("a stranger that names itself %s could not prove it", short(node))

    async def close(self) -> None:
        """Ends all visits; the port itself belongs to links."""
        self.server = None
        visits = [*self.seats.visits]
        for visit in visits:
            visit.end()
        tasks = [visit.task for visit in visits if isinstance(visit, _Visit)]
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


class _Visit(asyncio.Protocol):
    """One stranger: offer → request → answer. The request comes within JOIN_FIRST_WORD_S, then the
    answer within JOIN_DEADLINE_S."""

    def __init__(self, listener: JoinListener) -> None:
        self._listener = listener
        self._decoder = FrameDecoder(JOIN_FRAME_MAX_BYTES)
        self._transport: asyncio.Transport | None = None
        self._offer: JoinOffer | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.source = ""
        self.task: asyncio.Task[None] | None = None

    @property
    def silent(self) -> bool:
        return self.task is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.source = source_of_peer(transport.get_extra_info("peername"))
        server = self._listener.server
        offer = None
        if server is not None:
            offer = server.offer(self._listener.token_bytes(NONCE_BYTES))
        if offer is None or not self._listener.seats.take(self):
            transport.abort()
            return
        self._offer = dataclasses.replace(offer, keyed=self._listener.key is not None)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(JOIN_FIRST_WORD_S, self.end)
        transport.write(encode_join(self._offer))

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                if self.task is not None:
                    raise SchemaError("more than one request")
                request = _decode(frame, JoinRequest)
                loop = asyncio.get_running_loop()
                if self._deadline is not None:
                    self._deadline.cancel()
                self._deadline = loop.call_later(JOIN_DEADLINE_S, self.end)
                self.task = loop.create_task(self._answer(request))
        except WireError as error:
            self._say(JoinAnswer("malformed", f"this is not a join request: {error}"))

    def connection_lost(self, _exc: Exception | None) -> None:
        self._listener.seats.leave(self)
        if self._deadline is not None:
            self._deadline.cancel()
        # An admission that is under way goes on: the log decides, and the joiner asks again.

    def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def _answer(self, request: JoinRequest) -> None:
        try:
            answer = await self._judge(request)
        except SchemaError as error:
            answer = JoinAnswer("malformed", str(error))
        self._say(fit_answer(answer, self._listener.identity.node))

    async def _judge(self, request: JoinRequest) -> JoinAnswer:
        server, offer = self._listener.server, self._offer
        if server is None or offer is None:
            return JoinAnswer("busy", "this node is stopping: ask another one")
        node = node_id_of(request.certificate)
        if not all(text.isprintable() for text in (request.name, *request.addresses)):
            raise SchemaError("control characters in the name or an address")
        prints = self._listener.identity.fingerprint, fingerprint_of(request.certificate)
        transcript = join_transcript(offer.nonce, *prints, offer.cluster_id)
        if not verify(request.certificate, request.signature, transcript):
            self._listener.tell_once(node)
            return JoinAnswer("bad_proof", "the signature does not prove the certificate's key")
        key, proof = self._listener.key, request.key_proof
        if not proof:
            return await self._admit(server, request, node, KeyCheck.NONE)
        if key is None:
            return JoinAnswer("no_key", NO_KEY)
        if len(request.client_nonce) != NONCE_BYTES:
            raise SchemaError("a proof of the key without a nonce")
        shown = key_transcript(offer.nonce, request.client_nonce, *prints, offer.cluster_id)
        if not key.is_client_proof(proof, shown):
            return await self._admit(server, request, node, KeyCheck.WRONG)
        answer = await self._admit(server, request, node, KeyCheck.PROVED)
        return dataclasses.replace(answer, key_proof=key.server_proof(shown))

    async def _admit(
        self, server: JoinServer, request: JoinRequest, node: NodeId, key: KeyCheck
    ) -> JoinAnswer:
        """As the server says, unless too many came in lately."""
        rate = self._listener.rate
        wait_s = rate.take(self.source)
        if wait_s:
            return JoinAnswer(
                "too_many", f"too many nodes joined lately: the next one can in {wait_s} s"
            )
        admitted = False
        try:
            answer = await server.admit(request, node, key)
            admitted = answer.code == ""
            return answer
        finally:
            if not admitted:
                rate.give_back(self.source)

    def _say(self, answer: JoinAnswer) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(encode_join(answer))
        self._transport.close()


class TlsJoinClient:
    """ports.JoinClient."""

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        *,
        key: JoinKey | None = None,
        token_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._identity = identity
        self._trust = trust
        self._key = key
        self._token_bytes = token_bytes

    async def look(self, address: tuple[str, int]) -> JoinOffer:
        async with self._visit(address) as visit:
            return visit.offer

    async def join(self, address: tuple[str, int], request: JoinRequest) -> JoinAnswer:
        """Fills in certificate, signature and proof. The answer may be a refusal (`code`): also
        our own of a server that does not prove the key that we have. The key plays no part when
        `request.to` names the one node that is meant: its certificate says more. It does for a
        merge: whoever claims the other cluster's id could be that node."""
        key = None if request.to and request.merge is None else self._key
        async with self._visit(address) as visit:
            offer = visit.offer
            if request.to not in ("", offer.node):
                raise LinkError(f"{_at(address)} is {short(offer.node)}, not whom we asked")
            if key is not None and not offer.keyed:
                return JoinAnswer("no_key", NO_KEY)
            prints = fingerprint_of(visit.certificate), self._identity.fingerprint
            signed = dataclasses.replace(
                request,
                certificate=self._identity.certificate,
                signature=self._identity.sign(
                    join_transcript(offer.nonce, *prints, offer.cluster_id)
                ),
            )
            shown = b""
            if key is not None:
                nonce = self._token_bytes(NONCE_BYTES)
                shown = key_transcript(offer.nonce, nonce, *prints, offer.cluster_id)
                signed = dataclasses.replace(
                    signed, client_nonce=nonce, key_proof=key.client_proof(shown)
                )
            visit.writer.write(encode_join(signed))
            answer = _decode(await visit.next_frame(), JoinAnswer)
            remote = visit.writer.get_extra_info("peername")[0]
        if answer.code:
            return JoinAnswer(_printable(answer.code), _printable(answer.message))
        if answer.cluster_id != offer.cluster_id:
            raise LinkError(f"{_at(address)} admitted us to another cluster than it offered")
        if key is not None and not key.is_server_proof(answer.key_proof, shown):
            log.warning("%s let us in without the join key: not believed", _at(address))
            return JoinAnswer("bad_proof", UNPROVED)
        return _by_this_way(answer, offer.node, remote)

    @asynccontextmanager
    async def _visit(self, address: tuple[str, int]) -> AsyncIterator[_Call]:
        """Connected, and the offer read and checked. Every failure is a LinkError."""
        writer: asyncio.StreamWriter | None = None
        try:
            async with (
                asyncio.timeout(JOIN_DEADLINE_S),
                asyncio.timeout(JOIN_FIRST_WORD_S) as first,
            ):
                reader, writer = await asyncio.open_connection(
                    *address,
                    ssl=self._trust.join_client_context,
                    server_hostname=SNI_JOIN,
                    limit=READ_BYTES,
                )
                call = _Call(reader, writer)
                await call.greet()
                first.reschedule(None)
                yield call
        except TimeoutError as error:
            raise LinkError(f"{_at(address)} did not answer in time") from error
        except OSError as error:
            raise LinkError(f"{_at(address)} cannot be reached: {error}") from error
        except WireError as error:
            raise LinkError(f"{_at(address)} does not speak our language: {error}") from error
        finally:
            if writer is not None:
                writer.transport.abort()


class _Call:
    """The client's end of one visit."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._decoder = FrameDecoder(JOIN_FRAME_MAX_BYTES)
        self.writer = writer
        self.certificate = b""
        self.offer: JoinOffer

    async def greet(self) -> None:
        """Read the offer; the server's certificate must be the named node's."""
        self.certificate = peer_certificate(self.writer.transport) or b""
        self.offer = _decode(await self.next_frame(), JoinOffer)
        if node_id_of(self.certificate) != self.offer.node:
            raise SchemaError("it names itself another node than its certificate")
        if len(self.offer.nonce) != NONCE_BYTES:
            raise SchemaError(f"its nonce has not {NONCE_BYTES} bytes")

    async def next_frame(self) -> Frame:
        while True:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise ConnectionResetError("it closed the connection without an answer")
            for frame in self._decoder.feed(data):
                return frame


def _decode(frame: Frame, kind: type[T]) -> T:
    """The one message that may come now. Raises SchemaError."""
    message = JOIN.decode(frame.payload) if frame.kind == frames.JOIN else None
    if not isinstance(message, kind):
        raise SchemaError(f"expected {kind.__name__}")
    return message


def _at(address: tuple[str, int]) -> str:
    return f"{address[0]} port {address[1]}"


def _printable(text: str) -> str:
    """A stranger's words, fit for a terminal and a log."""
    return "".join(char for char in text[:MESSAGE_SHOWN_MAX_CHARS] if char.isprintable())
