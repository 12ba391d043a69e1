"""mDNS and the join channel of the simulated LAN.

Owns announcements (late, sometimes lost, stale for long: hints) and the conversation between a
stranger and a member. Built by sim.world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fixtures.virtual_time import elapse
from sim.hardware import LINK_PORT
from sim.loop import Process
from sim.network import Network

from aivailable.core.ids import node_id
from aivailable.errors import LinkError
from aivailable.peer.ports import JoinServer, Sighting
from aivailable.wire.join import JOIN, JoinAnswer, JoinOffer, JoinRequest
from aivailable.wire.limits import JOIN_DEADLINE_S

ANNOUNCE_LOSS = 0.1
HEARD_MIN_S = 0.01
HEARD_MAX_S = 0.3
REPEATS_S = (0.0, 1.0, 3.0)
"""An announcement is said again this long after its first time ..."""
AGAIN_S = 10.0
"""... and then at this pace."""
SIGHTING_TTL_S = 60.0
CONNECT_TIMEOUT_S = 1.0


class Lan:
    """Who can be heard and asked."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.discoveries: list[SimDiscovery] = []
        self.servers: dict[str, tuple[Process, JoinServer]] = {}
        """By address."""

    def living(self) -> list[SimDiscovery]:
        self.discoveries = [entry for entry in self.discoveries if entry.process.alive]
        return self.discoveries


class SimDiscovery:
    """ports.Discovery of one process."""

    def __init__(self, lan: Lan, process: Process, address: str) -> None:
        self.process = process
        self._lan = lan
        self._network = lan.network
        self._address = address
        self._own: Sighting | None = None
        self._edition = 0
        self._heard: dict[tuple[str, str], tuple[float, Sighting]] = {}
        self._changed = asyncio.Event()
        self._running = False

    async def start(self) -> None:
        self._running = True
        self._lan.discoveries.append(self)
        for other in self._lan.living():
            other.say()

    async def announce(self, sighting: Sighting) -> None:
        addresses = ((self._address, LINK_PORT),)
        self._tell(replace(sighting, addresses=addresses))

    def _tell(self, sighting: Sighting) -> None:
        self._own = sighting
        self._edition += 1
        for delay_s in REPEATS_S:
            self._later(delay_s, self._edition, again=delay_s == REPEATS_S[-1])

    def sightings(self) -> tuple[Sighting, ...]:
        now = self._network.loop.time()
        return tuple(
            sighting
            for _, (at, sighting) in sorted(self._heard.items(), key=lambda entry: entry[0])
            if now - at < SIGHTING_TTL_S
        )

    async def changed(self) -> None:
        await self._changed.wait()

    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    def reach(self, addresses: tuple[str, ...]) -> None:
        """There is one network, and one way."""

    async def stop(self) -> None:
        self._running = False

    def move(self, address: str) -> None:
        """The machine has another address: the port announces it by itself."""
        self._address = address
        if self._own is not None:
            self._tell(replace(self._own, addresses=((address, LINK_PORT),)))

    def say(self) -> None:
        """Everyone whom the packet reaches hears it a little later."""
        own = self._own
        if own is None or not self._running or not self.process.alive:
            return
        damage, rng = self._network.damage, self._network.rng
        for other in self._lan.living():
            lost = rng.random() < ANNOUNCE_LOSS or damage.loses()
            if other is self or lost or damage.is_cut(self.process.name, other.process.name):
                continue
            delay_s = rng.uniform(HEARD_MIN_S, HEARD_MAX_S)
            self._network.loop.call_later(delay_s, other.hear, own, context=other.process.context)

    def hear(self, sighting: Sighting) -> None:
        if not self.process.alive or not self._running:
            return
        key = (sighting.short_node, sighting.instance)
        before = self._heard.get(key)
        self._heard[key] = (self._network.loop.time(), sighting)
        if before is None or before[1] != sighting:
            self._network.trace.add(
                self.process.name, f"sees {sighting.short_node} in {sighting.cluster_prefix!r}"
            )
            self._changed.set()
            self._changed = asyncio.Event()

    def _later(self, delay_s: float, edition: int, *, again: bool) -> None:
        self._network.loop.call_later(
            delay_s, self._repeat, edition, again, context=self.process.context
        )

    def _repeat(self, edition: int, again: bool) -> None:
        if edition != self._edition or not self.process.alive:
            return
        self.say()
        if again:
            self._later(AGAIN_S, edition, again=True)


class SimJoinClient:
    """ports.JoinClient of one process; messages are encoded, as on the wire."""

    def __init__(self, lan: Lan, process: Process, certificate: bytes) -> None:
        self._lan = lan
        self._network = lan.network
        self._process = process
        self._certificate = certificate

    async def look(self, address: tuple[str, int]) -> JoinOffer:
        target, server = await self._connect(address)
        return await self._offer(target, server)

    async def join(self, address: tuple[str, int], request: JoinRequest) -> JoinAnswer:
        target, server = await self._connect(address)
        offer = await self._offer(target, server)
        signed = replace(request, certificate=self._certificate, signature=b"signed " + offer.nonce)
        said = JOIN.decode(JOIN.encode(signed))
        assert isinstance(said, JoinRequest)
        answer = await self._ask(
            target, lambda: server.admit(said, node_id(self._certificate)), "admit"
        )
        assert isinstance(answer, JoinAnswer)
        self._network.trace.add(self._process.name, f"join answer {answer.code or 'admitted'}")
        return answer

    async def _connect(self, address: tuple[str, int]) -> tuple[Process, JoinServer]:
        await elapse(self._network.damage.latency_s())
        found = self._lan.servers.get(address[0])
        if found is None or not found[0].alive:
            raise LinkError(f"{address[0]} refuses connections")
        if not self._network.damage.connects(self._process.name, found[0].name):
            await elapse(CONNECT_TIMEOUT_S)
            raise LinkError(f"{address[0]} does not answer")
        return found

    async def _offer(self, target: Process, server: JoinServer) -> JoinOffer:
        nonce = self._network.rng.randbytes(32)

        async def make() -> JoinOffer | None:
            return server.offer(nonce)

        offer = await self._ask(target, make, "offer")
        if offer is None:
            raise LinkError("the other side says nothing yet")
        assert isinstance(offer, JoinOffer)
        return offer

    async def _ask(self, target: Process, call: Callable[[], Any], what: str) -> Any:
        """Run `call` on behalf of `target`; its answer comes back unless something dies."""
        loop = self._network.loop
        reply: asyncio.Future[Any] = loop.create_future()
        reply.add_done_callback(_heard)

        def done(task: asyncio.Task[Any]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None and target.alive:
                self._network.problems.append(f"{target!r} raised in {what}: {error!r}")
            if not reply.done():
                if task.cancelled() or error is not None:
                    reply.set_exception(LinkError(f"{what}: the connection broke"))
                else:
                    reply.set_result(task.result())

        def begin() -> None:
            task = loop.create_task(call(), name=f"{target!r} answers {what}")
            task.add_done_callback(done)

        loop.call_later(self._network.damage.latency_s(), begin, context=target.context)
        try:
            async with asyncio.timeout(JOIN_DEADLINE_S):
                answer = await reply
        except TimeoutError as error:
            raise LinkError(f"{what}: no answer in {JOIN_DEADLINE_S:g} s") from error
        await elapse(self._network.damage.latency_s())
        if not target.alive or not self._network.damage.connects(self._process.name, target.name):
            raise LinkError(f"{what}: the connection broke")
        return answer


def _heard(reply: asyncio.Future[Any]) -> None:
    """The asker may have died meanwhile; a reply that nobody waits for is no failure."""
    if not reply.cancelled():
        reply.exception()
