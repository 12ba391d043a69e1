"""ports.Links over the simulated cable: dialling, contact checks, control messages, streams.

Owns the rule that both ends must list each other under one cluster id, as the real handshake
proves by certificates. It reads no peer: it calls the listener only. Built by sim.world.
"""

from __future__ import annotations

import zlib
from typing import Any

from sim.hardware import LINK_PORT
from sim.loop import Process
from sim.network import Connection, Network, SimStream

from aivailable.core.ids import NodeId, short
from aivailable.errors import LinkError, LinkLost
from aivailable.peer.ports import Contact, LinkListener, MessageStream
from aivailable.wire.peer import PEER

REDIAL_MIN_S = 0.2
REDIAL_MAX_S = 0.6
REFUSED_REDIAL_S = 2.0
CONNECT_TIMEOUT_S = 1.0
CLONED = "another running machine has the identity of {}"


class Switchboard:
    """Which process answers at which address. One entry per living process."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.by_address: dict[str, SimLinks] = {}

    def at(self, address: str) -> SimLinks | None:
        found = self.by_address.get(address)
        return found if found is not None and found.process.alive else None


class SimLinks:
    """ports.Links of one process."""

    def __init__(
        self,
        board: Switchboard,
        process: Process,
        node: NodeId,
        address: str,
        instance_id: str,
        version: str,
    ) -> None:
        self.board = board
        self.process = process
        self.node = node
        self.address = address
        self.instance_id = instance_id
        self.version = version
        self.port = LINK_PORT
        self.cluster_id = ""
        self.contacts: dict[NodeId, Contact] = {}
        self.listener: LinkListener | None = None
        self._links: dict[NodeId, Connection] = {}
        self._not_before: dict[NodeId, float] = {}
        self._network = board.network

    async def start(self, listener: LinkListener) -> None:
        self.listener = listener
        self.board.by_address[self.address] = self
        self._redial()

    async def stop(self) -> None:
        if self.board.by_address.get(self.address) is self:
            del self.board.by_address[self.address]
        self.listener = None
        for connection in tuple(self._links.values()):
            connection.break_now("stopped")

    def set_contacts(self, cluster_id: str, contacts: tuple[Contact, ...]) -> None:
        if not self.process.alive:
            return
        if cluster_id != self.cluster_id:
            for connection in tuple(self._links.values()):
                connection.break_now("other cluster")
        self.cluster_id = cluster_id
        self.contacts = {contact.node: contact for contact in contacts if contact.node != self.node}
        for node, connection in tuple(self._links.items()):
            if node not in self.contacts:
                connection.break_now("removed")
        self._dial_missing()

    def move(self, address: str) -> None:
        """The machine has another address from now on; it listens on all that it has."""
        if self.board.by_address.get(self.address) is self:
            del self.board.by_address[self.address]
        self.address = address
        if self.listener is not None:
            self.board.by_address[address] = self
        self._network.address_gone(self.process)

    def connected(self) -> tuple[NodeId, ...]:
        return tuple(sorted(node for node in self._links if self._alive(node)))

    def sound(self) -> int:
        """Links that carry: not those whose other end has moved away, unnoticed so far."""
        return sum(not self._links[node].severed for node in self.connected())

    def send(self, node: NodeId, message: Any) -> bool:
        connection = self._links.get(node)
        if connection is None or connection.broken or not self.process.alive:
            return False
        data = PEER.encode(message)
        what = f"{type(message).__name__} {zlib.crc32(data):08x}"
        target = self._network_end(connection)
        if self._network.damage.loses():
            self._network.trace.add(self.process.name, f"lost {what} to {target.process.name}")
            return True
        connection.pipe_from(self.process).post(lambda: target._message(self, data, what))
        return True

    async def open_stream(self, node: NodeId, first: Any) -> MessageStream:
        connection = self._links.get(node)
        if connection is None or connection.broken or not self.process.alive:
            raise LinkLost(f"no link to {short(node)}")
        return await self._stream(connection, first)

    async def fetch_stream(self, node: NodeId, first: Any) -> MessageStream:
        contact = self.contacts.get(node)
        target = None if contact is None else self._reach(contact)
        if target is None or self.node not in target.contacts or not self.process.alive:
            raise LinkError(f"{short(node)} cannot be reached")
        connection = Connection(self._network, self.process, target.process)
        connection.acceptor_links = target
        connection.opener_links = self
        return await self._stream(connection, first)

    async def _stream(self, connection: Connection, first: Any) -> MessageStream:
        target = self._network_end(connection)
        near, far = SimStream.pair(connection)
        if connection.opener is not self.process:
            near, far = far, near
        data = PEER.encode(first)
        connection.pipe_from(self.process).post(
            lambda: target._serve(self, PEER.decode(data), far, connection)
        )
        return near

    # Dialling.

    def _redial(self) -> None:
        if not self.process.alive or self.listener is None:
            return
        self._dial_missing()
        delay_s = self._network.rng.uniform(REDIAL_MIN_S, REDIAL_MAX_S)
        self._network.loop.call_later(delay_s, self._redial, context=self.process.context)

    def _dial_missing(self) -> None:
        if self.listener is None:
            return
        now = self._network.loop.time()
        for node in sorted(self.contacts):
            if not self._alive(node) and now >= self._not_before.get(node, 0.0):
                target = self._reach(self.contacts[node])
                if target is not None and not self._network.damage.loses():
                    self._not_before[node] = now + REDIAL_MIN_S
                    self._network.loop.call_later(
                        self._network.damage.latency_s(),
                        self._knock,
                        target,
                        context=target.process.context,
                    )

    def _reach(self, contact: Contact) -> SimLinks | None:
        """Who answers at the contact's addresses, if it is who the contact says."""
        for address, _port in contact.addresses:
            found = self.board.at(address)
            if (
                found is not None
                and found.node == contact.node
                and self._network.damage.connects(self.process.name, found.process.name)
            ):
                return found
        return None

    def _knock(self, target: SimLinks) -> None:
        """The handshake, on the acceptor's side. Both must list each other."""
        if not target.process.alive or not self.process.alive:
            return
        if target.listener is None or self.listener is None:
            return
        if target._hears_another(self.node, self.process):
            self._refused(target, "cloned_identity", CLONED.format(short(self.node)))
            return
        target._make_way(self.node, self.process)
        if self._alive(target.node) or target._alive(self.node):
            return
        if target.cluster_id != self.cluster_id:
            self._refused(target, "other_cluster", "it belongs to another cluster")
        elif self.node not in target.contacts:
            self._refused(target, "not_member", "it does not know us")
        else:
            connection = Connection(self._network, self.process, target.process)
            connection.acceptor_links = target
            connection.opener_links = self
            target._up(self, connection)
            connection.back.post(lambda: self._up(target, connection))

    def _refused(self, target: SimLinks, code: str, message: str) -> None:
        self._not_before[target.node] = self._network.loop.time() + REFUSED_REDIAL_S
        self._network.loop.call_later(
            self._network.damage.latency_s(),
            self._told_refused,
            target.node,
            code,
            message,
            context=self.process.context,
        )

    def _told_refused(self, node: NodeId, code: str, message: str) -> None:
        if self.listener is not None and self.process.alive and node in self.contacts:
            self._network.trace.add(self.process.name, f"refused by {short(node)}: {code}")
            self.listener.refused(node, code, message)

    def _hears_another(self, node: NodeId, process: Process) -> bool:
        """Whether another living machine is heard under the identity of `node`."""
        old = self._links.get(node)
        if old is None or old.broken or old.severed:
            return False
        other = old.other(self.process)
        silent = self._network.damage.is_cut(other.name, self.process.name)
        return other is not process and other.alive and not silent

    def _make_way(self, node: NodeId, process: Process) -> None:
        """A link to an earlier life of the node ends now, before a new one begins."""
        old = self._links.get(node)
        if old is not None and (old.broken or old.other(self.process) is not process):
            old.break_now("replaced")
            self._down(node, old, "replaced")

    def _up(self, other: SimLinks, connection: Connection) -> None:
        self._make_way(other.node, other.process)
        if self.listener is None or other.node not in self.contacts or self._alive(other.node):
            connection.break_now("not wanted")
            return
        self._links[other.node] = connection
        connection.on_break(self.process, lambda reason: self._down(other.node, connection, reason))
        self._network.trace.add(self.process.name, f"link up {other.process!r}")
        self.listener.link_up(other.node, other.instance_id, other.version)

    def _down(self, node: NodeId, connection: Connection, reason: str) -> None:
        if self._links.get(node) is not connection:
            return
        del self._links[node]
        self._network.trace.add(self.process.name, f"link down {short(node)}: {reason}")
        if self.listener is not None and self.process.alive:
            self.listener.link_down(node, reason)

    # Arrivals.

    def _message(self, source: SimLinks, data: bytes, what: str) -> None:
        if self.listener is None or not self.process.alive:
            return
        self._network.trace.add(self.process.name, f"got {what} from {source.process.name}")
        message = PEER.decode(data)
        if message is not None:
            self.listener.message(source.node, message)

    def _serve(
        self, source: SimLinks, first: Any, stream: SimStream, connection: Connection
    ) -> None:
        if self.listener is None or not self.process.alive:
            stream.reset("stopping")
            return
        task = self._network.loop.create_task(
            self._served(source, first, stream, self.listener),
            name=f"{self.process!r} serves {type(first).__name__}",
        )

        def cancel(reason: str) -> None:
            task.cancel(reason)

        connection.on_break(self.process, cancel)

    async def _served(
        self, source: SimLinks, first: Any, stream: SimStream, listener: LinkListener
    ) -> None:
        try:
            await listener.serve_stream(source.node, first, stream)
        except LinkError:
            stream.reset("failed")
        finally:
            stream.served()

    def _alive(self, node: NodeId) -> bool:
        connection = self._links.get(node)
        return connection is not None and not connection.broken

    def _network_end(self, connection: Connection) -> SimLinks:
        near = connection.opener_links
        found = connection.acceptor_links if near is self else near
        assert isinstance(found, SimLinks)
        return found
