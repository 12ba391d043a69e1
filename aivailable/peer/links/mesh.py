"""All links of this node: one connection to each other member, whoever dialled it.

Owns the listening socket, the dialling, the checks of a hello and the choice between two
connections to one member. It must not know what the messages mean. Implements ports.Links;
built by peer.app.

Which connection stays. Both sides dial. The node with the smaller id decides for the pair: it
says hello on one connection at a time, and refuses (`busy`) the other side's call while its own
waits for an answer; its hello replaces what the larger node had. So both sides always mean the
same connection. What claims to replace a link that still looks alive (the smaller node hears a
new call; or another instance of the same node appears) is *contested*: it is let in only if the
old link stays silent for two ping intervals, else refused: `busy`, or `cloned_identity`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aivailable.core.ids import NodeId, short
from aivailable.errors import LinkError, LinkLost
from aivailable.peer.links.arrivals import SHUTDOWN_DEADLINE_S, Arrivals
from aivailable.peer.links.connection import Connection
from aivailable.peer.links.dialler import Dialler
from aivailable.peer.links.identity import Identity
from aivailable.peer.links.listening import bind
from aivailable.peer.links.streams import LinkStream
from aivailable.peer.links.trust import SNI_LINK, SNI_WEIGHTS, Trust
from aivailable.peer.ports import Contact, LinkListener
from aivailable.wire.limits import LINK_PING_S, PROTO_MAX, PROTO_MIN
from aivailable.wire.peer import LinkHello, LinkRefused

DIAL_DEADLINE_S: Final = 2.0
"""TCP, TLS and hello to one address."""
CONTEST_S: Final = 2.5 * LINK_PING_S
WORDLESS_MIN: Final = 2
TOLD_AGAIN_S: Final = 3600.0
"""Who is refused tries again every few seconds; the log is told once in this long."""
TOLD_MAX: Final = 64
STRANGER: Final = "stranger"
"""A process that dies between TLS and hello looks like a refusal once, not twice."""
ANY_HOST: Final = ("0.0.0.0", "::")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Contest:
    """A newcomer that would replace a link which looks alive."""

    old: Connection
    hello: LinkHello
    since_s: float
    timer: asyncio.TimerHandle


class TlsLinks:
    """ports.Links over TLS 1.3."""

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        *,
        port: int,
        rng: random.Random,
        version: str,
        stranger: Callable[[], asyncio.Protocol] | None = None,
        hosts: tuple[str, ...] = ANY_HOST,
    ) -> None:
        """`port` 0: any free one. `stranger` makes the protocol of a join connection."""
        self.port = port
        """The real port once started."""
        self._identity = identity
        self._trust = trust
        self._rng = rng
        self._version = version
        self._stranger = stranger
        self._hosts = hosts
        self._listener: LinkListener
        self._loop: asyncio.AbstractEventLoop
        self._arrivals: Arrivals | None = None
        self._started = False
        self._cluster_id = ""
        self._contacts: dict[NodeId, Contact] = {}
        self._links: dict[NodeId, Connection] = {}
        self._open: dict[Connection, None] = {}
        """Every connection past TLS, in order of arrival."""
        self._calling: dict[NodeId, Connection] = {}
        """Where we have said hello first and wait for the answer."""
        self._contests: dict[Connection, _Contest] = {}
        """By newcomer."""
        self._diallers: dict[NodeId, Dialler] = {}
        self._problems: dict[NodeId, str] = {}
        self._wordless: dict[NodeId, int] = {}
        """Calls in a row that ended after TLS and before any answer."""
        self._told: dict[str, float] = {}
        """When the log was told of a refusal, by whom it was."""

    # ports.Links

    async def start(self, listener: LinkListener) -> None:
        """Raises ConfigError when the port cannot be had."""
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        sockets = bind(self._hosts, self.port)
        self.port = sockets[0].getsockname()[1]
        self._arrivals = Arrivals(sockets, self._trust, self._greet, self._turned_away)
        self._tell_arrivals()
        self._arrivals.open()
        self._started = True
        self._update_diallers()

    async def stop(self) -> None:
        self._started = False
        diallers = [dialler.task for dialler in self._diallers.values()]
        handlers = [task for connection in self._open for task in connection.tasks]
        self._diallers.clear()
        for task in diallers:
            task.cancel()
        gone = [connection.gone for connection in self._open]
        for connection in [*self._open]:
            connection.close("stopped")
        if self._arrivals is not None:
            await self._arrivals.close()
        await asyncio.gather(*diallers, *handlers, return_exceptions=True)
        if gone:
            await asyncio.wait(gone, timeout=SHUTDOWN_DEADLINE_S)

    def set_contacts(self, cluster_id: str, contacts: tuple[Contact, ...]) -> None:
        """Cuts who is gone before it returns (link_down is called from here)."""
        others = {
            contact.node: contact for contact in contacts if contact.node != self._identity.node
        }
        changed = [
            node
            for node, contact in others.items()
            if node in self._contacts and contact != self._contacts[node]
        ]
        other_cluster = cluster_id != self._cluster_id
        if others == self._contacts and not other_cluster:
            return
        self._cluster_id, self._contacts = cluster_id, others
        self._trust.set_members(contact.certificate for contact in others.values())
        self._tell_arrivals()
        for connection in [*self._open]:
            if other_cluster:
                connection.refuse("other_cluster", "this node has left its cluster, or stops")
            elif connection.node not in others:
                connection.refuse("removed", "this node is not a member any more")
        self._update_diallers()
        for node in changed:
            if node not in self._links and node in self._diallers:
                self._diallers[node].nudge()

    def connected(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self._links))

    def send(self, node: NodeId, message: Any) -> bool:
        link = self._links.get(node)
        return link is not None and link.send_control(message)

    async def open_stream(self, node: NodeId, first: Any) -> LinkStream:
        link = self._links.get(node)
        if link is None:
            raise LinkLost(f"no link to {short(node)}")
        stream = link.open_stream()
        await stream.send(first)
        return stream

    async def fetch_stream(self, node: NodeId, first: Any) -> LinkStream:
        contact = self._contacts.get(node)
        if contact is None:
            raise LinkError(f"{short(node)} is not a member")
        for address in contact.addresses:
            connection = await self._call(contact, address, SNI_WEIGHTS)
            if connection is not None:
                stream = connection.open_stream()
                try:
                    await stream.send(first)
                except BaseException:
                    connection.close("the transfer did not begin")
                    raise
                return stream
        raise LinkError(self._problems.get(node) or f"no address of {short(node)} is known")

    def problems(self) -> Mapping[NodeId, str]:
        """Why members are not linked, as the last attempt saw it; for people."""
        return {node: text for node, text in self._problems.items() if node not in self._links}

    # Owner of the connections.

    def connection_made(self, connection: Connection, transport: asyncio.Transport) -> None:
        """TLS has succeeded; nothing is read before this. A stranger ends here."""
        node = self._trust.peer_node(transport)
        if node is None or node not in self._contacts or not self._started:
            connection.close("not a member")
            if not connection.dialled:
                self._turned_away()
            return
        connection.node = node
        self._open[connection] = None

    def hello_received(self, connection: Connection, hello: LinkHello) -> None:
        if connection in self._contests:
            connection.refuse("malformed", "a second hello")
            return
        refusal = self._objection(connection, hello)
        if refusal is not None:
            connection.refuse(*refusal)
        elif SNI_WEIGHTS in (hello.purpose, connection.purpose):
            self._answer(connection, hello)
        else:
            self._choose(connection, hello)

    def refused(self, connection: Connection, refusal: LinkRefused) -> None:
        node = connection.node
        self._problems[node] = f"{short(node)} refuses: {refusal.message}"
        if refusal.code != "busy":
            log.warning("%s refuses us: %s: %s", short(node), refusal.code, refusal.message)
            self._listener.refused(node, refusal.code, refusal.message)

    def control_received(self, connection: Connection, message: Any) -> None:
        self._listener.message(connection.node, message)

    def stream_opened(self, connection: Connection, first: Any, stream: LinkStream) -> None:
        task = self._loop.create_task(self._listener.serve_stream(connection.node, first, stream))
        connection.tasks[task] = None
        task.add_done_callback(functools.partial(self._served, connection, stream))

    def streams_ended(self, connection: Connection) -> None:
        if connection.purpose == SNI_WEIGHTS and connection.dialled:
            self._loop.call_soon(connection.close, "transfer ended")

    def connection_closed(self, connection: Connection, reason: str) -> None:
        self._open.pop(connection, None)
        node = connection.node
        if self._calling.get(node) is connection:
            del self._calling[node]
        contest = self._contests.pop(connection, None)
        if contest is not None:
            contest.timer.cancel()
        if self._links.get(node) is connection:
            del self._links[node]
            log.info("link to %s down: %s", short(node), reason)
            self._listener.link_down(node, reason)
            for newcomer, contested in [*self._contests.items()]:
                if contested.old is connection:
                    self._loop.call_soon(self._decide, newcomer)
            if node in self._diallers:
                self._diallers[node].nudge()

    # Hello.

    def _hello(self, purpose: str) -> LinkHello:
        return LinkHello(
            cluster_id=self._cluster_id,
            node=self._identity.node,
            instance_id=self._identity.instance_id,
            version=self._version,
            proto_min=PROTO_MIN,
            proto_max=PROTO_MAX,
            purpose=purpose,
        )

    def _objection(self, connection: Connection, hello: LinkHello) -> tuple[str, str] | None:
        if hello.node != connection.node:
            return "malformed", "the hello names another node than the certificate"
        if hello.cluster_id != self._cluster_id:
            return "other_cluster", f"this node is in cluster {short(self._cluster_id)}"
        if hello.purpose not in (SNI_LINK, SNI_WEIGHTS):
            return "malformed", f"{hello.purpose!r} is no purpose of a connection"
        if hello.proto_max < PROTO_MIN or hello.proto_min > PROTO_MAX:
            return "version", (
                f"this node speaks protocol {PROTO_MIN} to {PROTO_MAX}, the other "
                f"{hello.proto_min} to {hello.proto_max}: upgrade the older one"
            )
        return None

    def _choose(self, connection: Connection, hello: LinkHello) -> None:
        """Whether a good hello makes this connection the link (see the module's text)."""
        node = connection.node
        old = self._links.get(node)
        we_decide = self._identity.node < node
        if old is None:
            if we_decide and not connection.dialled and node in self._calling:
                connection.refuse("busy", "this node is just calling you")
            else:
                self._admit(connection, hello)
        elif old.instance_id == hello.instance_id and not (we_decide and not connection.dialled):
            self._admit(connection, hello)
        else:
            self._contests[connection] = _Contest(
                old,
                hello,
                since_s=self._loop.time(),
                timer=self._loop.call_later(CONTEST_S, self._decide, connection),
            )

    def _decide(self, newcomer: Connection) -> None:
        """The end of a contest: time is up, or the old link has gone."""
        contest = self._contests.pop(newcomer, None)
        if contest is None:
            return
        contest.timer.cancel()
        old, hello = contest.old, contest.hello
        if self._links.get(newcomer.node) is not old:
            self._choose(newcomer, hello)
        elif old.heard_at <= contest.since_s:
            self._admit(newcomer, hello)
        elif old.instance_id == hello.instance_id:
            newcomer.refuse("busy", "the link that we have is alive")
        else:
            self._tell_once(
                f"{newcomer.node} {hello.instance_id}",
                f"a second machine with the identity of {short(newcomer.node)} was refused",
            )
            newcomer.refuse(
                "cloned_identity",
                f"another running machine has the identity of {short(newcomer.node)}: if this "
                "disk was cloned, move identity.pem in its home away and start it again",
            )

    def _admit(self, connection: Connection, hello: LinkHello) -> None:
        node = connection.node
        self._answer(connection, hello)
        for other in [*self._open]:
            # What was accepted and has not said hello may be here for weights; it is let be.
            settled = other.node == node and (other.dialled or other.up)
            if settled and other is not connection and other.purpose == SNI_LINK:
                other.close("replaced by a newer connection")
        self._links[node] = connection
        self._calling.pop(node, None)
        self._problems.pop(node, None)
        self._wordless.pop(node, None)
        log.info("link to %s up (%s)", short(node), "dialled" if connection.dialled else "accepted")
        self._listener.link_up(node, hello.instance_id, hello.version)

    def _answer(self, connection: Connection, hello: LinkHello) -> None:
        if not connection.said_hello:
            connection.say_hello(self._hello(hello.purpose))
        connection.accept(hello)

    def _served(self, connection: Connection, stream: LinkStream, task: asyncio.Task[None]) -> None:
        connection.tasks.pop(task, None)
        if task.cancelled():
            stream.reset("cancelled")
            return
        error = task.exception()
        if error is None:
            stream.served()
        elif isinstance(error, LinkError):
            stream.reset("failed", str(error))
        else:
            log.error("serving a stream of %s failed", short(connection.node), exc_info=error)
            stream.reset("internal", f"{type(error).__name__} at {short(self._identity.node)}")

    # Listening and dialling.

    def _greet(self, transport: asyncio.BaseTransport) -> asyncio.Protocol | None:
        """Who handles a connection that has just passed TLS; None: nobody."""
        if not self._trust.is_join(transport):
            return Connection(self, dialled=False)
        return None if self._stranger is None else self._stranger()

    def _tell_arrivals(self) -> None:
        if self._arrivals is not None:
            self._arrivals.set_known(
                address for contact in self._contacts.values() for address, _ in contact.addresses
            )

    def _turned_away(self) -> None:
        """A connection did not pass TLS in time. The library does not tell us whose it was."""
        if self._started:
            self._tell_once(
                STRANGER,
                "a stranger at the link port was refused: it showed no member's certificate, or"
                " spoke no TLS",
            )

    def _tell_once(self, key: str, text: str) -> None:
        now_s = self._loop.time()
        if now_s - self._told.get(key, -TOLD_AGAIN_S) < TOLD_AGAIN_S:
            return
        if len(self._told) >= TOLD_MAX:
            del self._told[min(self._told, key=lambda known: self._told[known])]
        self._told[key] = now_s
        log.warning("%s", text)

    def _update_diallers(self) -> None:
        if not self._started:
            return
        for node in [*self._diallers]:
            if node not in self._contacts:
                self._diallers.pop(node).task.cancel()
        for node in self._contacts:
            if node not in self._diallers:
                self._diallers[node] = Dialler(functools.partial(self._dial, node), self._rng)

    async def _dial(self, node: NodeId) -> bool:
        """One try at every address. True when there is a link, whoever made it."""
        contact = self._contacts.get(node)
        for address in () if contact is None else contact.addresses:
            if node in self._links:
                break
            assert contact is not None
            if await self._call(contact, address, SNI_LINK) is not None:
                break
        return node in self._links

    async def _call(
        self, contact: Contact, address: tuple[str, int], purpose: str
    ) -> Connection | None:
        """One connection past both hellos, or None with the reason in `problems`."""
        node = contact.node
        connection = Connection(self, dialled=True, purpose=purpose)
        where = f"{short(node)} at {address[0]} port {address[1]}"
        try:
            async with asyncio.timeout(DIAL_DEADLINE_S):
                await self._loop.create_connection(
                    lambda: connection,
                    *address,
                    ssl=self._trust.client_context,
                    server_hostname=purpose,
                    ssl_handshake_timeout=DIAL_DEADLINE_S,
                    ssl_shutdown_timeout=SHUTDOWN_DEADLINE_S,
                )
                if connection.node != node:
                    self._problems[node] = f"another member answers for {where}"
                    return None
                if purpose == SNI_LINK:
                    if node in self._links:
                        return None
                    self._calling[node] = connection
                connection.say_hello(self._hello(purpose))
                if await connection.settled:
                    return connection
            self._not_settled(connection)
        except TimeoutError:
            self._problems[node] = f"{where} does not answer"
        except OSError as error:
            self._problems[node] = f"{where} cannot be reached: {error}"
        finally:
            if not connection.up:
                connection.close("the call failed")
        return None

    def _not_settled(self, connection: Connection) -> None:
        """In TLS 1.3 a server refuses a client's certificate only after the client is through:
        then it closes without a word."""
        node = connection.node
        if not connection.closed_by_peer or node in self._links:
            self._wordless.pop(node, None)
            return
        self._problems[node] = f"{short(node)} closed the connection without a word"
        self._wordless[node] = self._wordless.get(node, 0) + 1
        if self._wordless[node] >= WORDLESS_MIN:
            self._listener.refused(
                node, "not_member", "it closes without a word: we are not in its member list"
            )
