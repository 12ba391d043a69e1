"""Hears and makes mDNS announcements on the LAN (RFC 6762, 6763): a hint, nothing more.

Owns zeroconf, on the cards that `cards` chooses, and the form of our announcement:
SRV port = link port; TXT {v, id, inst, cid, cn, api, win}. It must not conclude anything about
who is a member. Implements ports.Discovery; built by peer.app.

A VPN carries no multicast, so nothing is announced there. But the card that leads to a seed or to
a member is ours, too: its address stands in our member record, last, and others link to it.

Nothing on the network is ever final here: interfaces come and go (Wi-Fi, wake-up, a cable), so
they are looked at again for ever; a switch may drop multicast for its first half minute, so we
announce again for ever. What keeps us from it is in `problem`, in words.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Mapping
from typing import Final

import zeroconf
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from aivailable.peer.joining.announcement_limits import AnnouncementLimits, Limited
from aivailable.peer.joining.cards import (
    Interface,
    address_rank,
    is_ready,
    own_addresses_towards,
    usable_interfaces,
)
from aivailable.peer.ports import Endpoints, Sighting

SERVICE_TYPE: Final = "_aivailable._tcp.local."
TYPE_TXT: Final = 16
CLASS_IN: Final = 1
RECORD_TTL_S: Final = 60
"""How long others believe in us without news: a node that was killed is forgotten after it."""
ANNOUNCE_S: Final = 15.0
RESCAN_S: Final = 3.0
RESOLVE_DEADLINE_MS: Final = 3_000
SIGHTINGS_MAX: Final = 256
ADDRESSES_MAX: Final = 8
CLUSTER_NAME_MAX_BYTES: Final = 200
"""One TXT entry holds 255 bytes with its key."""
ADDRESSES_TOWARDS_MAX: Final = 4
"""Of ours that only lead to seeds and members: they must not push the LAN's out of the record."""
WAYS_LOOKED_AT_MAX: Final = 256
"""Addresses of members asked about at each rescan; each takes some microseconds."""
SEED_NAMES_S: Final = 30.0
"""How often a seed's name is looked up again: a VPN may be up later than we are."""

_WORD = re.compile(r"[a-z0-9]{0,64}\Z")

log = logging.getLogger(__name__)


def sighting_of(
    properties: Mapping[bytes, bytes | None], addresses: list[str], port: int
) -> Sighting | None:
    """What an announcement says, None when it is not in our form."""
    try:
        text = {key.decode(): (value or b"").decode() for key, value in properties.items()}
        proto, api_port = int(text["v"]), int(text.get("api", "0"))
        words = text["id"], text["inst"], text.get("cid", "")
    except (UnicodeDecodeError, KeyError, ValueError):
        return None
    if not all(_WORD.match(word) for word in words) or not (words[0] and words[1]):
        return None
    if not (0 <= api_port < 65536 and 0 < port < 65536 and 0 < proto < 65536):
        return None
    return Sighting(
        short_node=words[0],
        instance=words[1],
        cluster_prefix=words[2],
        cluster_name=text.get("cn", ""),
        window_open=text.get("win") == "1",
        api_port=api_port,
        addresses=tuple((address, port) for address in addresses[:ADDRESSES_MAX]),
        proto=proto,
    )


class MdnsDiscovery:
    """ports.Discovery over zeroconf."""

    def __init__(
        self,
        endpoints: Endpoints,
        interfaces: tuple[str, ...] = (),
        seeds: tuple[str, ...] = (),
    ) -> None:
        """`endpoints`: read when something is announced. `interfaces`: our addresses to use, e.g.
        ("127.0.0.1",); empty = the LAN's. `seeds`: names or addresses that we are to reach."""
        self.problem = "not started"
        """Why nothing is heard or announced at the moment, "" when all is well."""
        self._endpoints = endpoints
        self._only = interfaces
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._interfaces: tuple[Interface, ...] = ()
        self._seeds = seeds
        self._seed_addresses: tuple[str, ...] = seeds
        self._member_addresses: tuple[str, ...] = ()
        self._towards: tuple[str, ...] = ()
        """Our addresses that lead to those two, as of the last look."""
        self._own: Sighting | None = None
        self._info: AsyncServiceInfo | None = None
        self._broadcasts: asyncio.Future[None] | None = None
        """Our latest announcement, which zeroconf sends several times."""
        self._heard: dict[str, Sighting] = {}
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._changing = asyncio.Lock()
        self._watches: tuple[asyncio.Task[None], ...] = ()

    async def start(self) -> None:
        await self._rescan()
        loop = asyncio.get_running_loop()
        self._watches = (
            loop.create_task(self._keep_watching()),
            loop.create_task(self._keep_looking_up()),
        )

    async def stop(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        async with self._changing:
            await self._close(goodbye=True)
        self.problem = "stopped"

    async def announce(self, sighting: Sighting) -> None:
        async with self._changing:
            self._own = sighting
            try:
                await self._publish()
            except (OSError, zeroconf.Error) as error:
                # The next rescan opens everything again and publishes then.
                await self._close(goodbye=False)
                self._say(f"our announcement failed ({error}): trying again")

    def sightings(self) -> tuple[Sighting, ...]:
        ours = None if self._own is None else self._own.instance
        return tuple(
            sorted(
                (heard for heard in self._heard.values() if heard.instance != ours),
                key=lambda heard: (heard.short_node, heard.instance),
            )
        )

    async def changed(self) -> None:
        """For one waiter. What came before it waits is not lost."""
        await self._news.wait()
        self._news.clear()

    def addresses(self) -> tuple[str, ...]:
        lan = self._lan_addresses()
        towards = tuple(one for one in self._towards if one not in lan)[:ADDRESSES_TOWARDS_MAX]
        return (*lan[: ADDRESSES_MAX - len(towards)], *towards)

    def reach(self, addresses: tuple[str, ...]) -> None:
        if addresses != self._member_addresses:
            self._member_addresses = addresses
            self._look_at_ways()

    def _lan_addresses(self) -> tuple[str, ...]:
        return tuple(interface.address for interface in self._interfaces)

    # Interfaces.

    def _look_at_ways(self) -> None:
        """Which of ours the kernel would use towards seeds and members, as of now."""
        asked = (*self._seed_addresses, *self._member_addresses)[:WAYS_LOOKED_AT_MAX]
        towards = own_addresses_towards(asked)
        if towards != self._towards:
            log.info("addresses towards seeds and members: %s", ", ".join(towards) or "none")
        self._towards = towards

    async def _keep_looking_up(self) -> None:
        """Names of seeds: what they stand for may change, or be known late."""
        known: dict[str, tuple[str, ...]] = {}
        while self._seeds:
            for seed in self._seeds:
                try:
                    entries = await asyncio.get_running_loop().getaddrinfo(seed, None)
                except (OSError, UnicodeError) as error:
                    log.info("the seed %s cannot be looked up now: %s", seed, error)
                    continue  # What it stood for still counts.
                known[seed] = tuple(dict.fromkeys(str(entry[4][0]) for entry in entries))
            self._seed_addresses = tuple(one for addresses in known.values() for one in addresses)
            self._look_at_ways()
            await asyncio.sleep(SEED_NAMES_S)

    async def _keep_watching(self) -> None:
        loop = asyncio.get_running_loop()
        announce_at_s = loop.time() + ANNOUNCE_S
        while True:
            await asyncio.sleep(RESCAN_S)
            await self._rescan()
            if self._zeroconf is not None:
                self._read_again(self._zeroconf.zeroconf)
            if loop.time() >= announce_at_s:
                announce_at_s = loop.time() + ANNOUNCE_S
                if self._zeroconf is not None and self._info is not None:
                    mdns = self._zeroconf.zeroconf
                    mdns.async_send(mdns.generate_service_broadcast(self._info, None))

    async def _rescan(self) -> None:
        """Open, or open again, when the interfaces are not those in use."""
        async with self._changing:
            self._look_at_ways()
            try:
                usable = usable_interfaces(self._only)
                interfaces = tuple(one for one in usable if is_ready(one.address))
                if self._zeroconf is not None and interfaces == self._interfaces:
                    return
                await self._close(goodbye=False)
                self._interfaces = interfaces
                if interfaces:
                    await self._open()
                    self._say("")
                else:
                    self._say("no network interface has an address: waiting for one")
            except (OSError, zeroconf.Error) as error:
                await self._close(goodbye=False)
                self._say(f"mDNS does not work on this machine ({error}): trying again")
        self._news.set()

    def _say(self, problem: str) -> None:
        if problem != self.problem and problem:
            log.warning("discovery: %s", problem)
        self.problem = problem

    async def _open(self) -> None:
        choice = _multicast_choice(self._interfaces)
        families = {ipaddress.ip_address(address).version for address in choice}
        version = {
            frozenset({4}): IPVersion.V4Only,
            frozenset({6}): IPVersion.V6Only,
        }.get(frozenset(families), IPVersion.All)
        self._zeroconf = AsyncZeroconf(interfaces=choice, ip_version=version)
        await self._zeroconf.zeroconf.async_wait_for_start()
        self._stand_before(self._zeroconf.zeroconf)
        self._browser = AsyncServiceBrowser(
            self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._on_change]
        )
        await self._publish()

    @staticmethod
    def _stand_before(mdns: Zeroconf) -> None:
        """Whatever its sockets receive is judged first."""
        limits = AnnouncementLimits(SERVICE_TYPE, asyncio.get_running_loop().time)
        for reader in mdns.engine.readers:
            transport = reader.transport
            transport.set_protocol(Limited(transport.get_protocol(), limits))

    async def _close(self, *, goodbye: bool) -> None:
        opened, self._zeroconf = self._zeroconf, None
        browser, self._browser = self._browser, None
        info, self._info = self._info, None
        self._stop_broadcasts()
        for task in [*self._resolving.values()]:
            task.cancel()
        # A new browser would never say that these have gone; who is there is heard again at once.
        self._heard.clear()
        if opened is None:
            return
        if browser is not None:
            await browser.async_cancel()
        if goodbye and info is not None:
            await (await opened.async_unregister_service(info))
        await opened.async_close()

    # Our announcement.

    async def _publish(self) -> None:
        if self._zeroconf is None or self._own is None:
            return
        info = self._announcement(self._own)
        # Names hold the instance, so they are unique and need no probing; the broadcasts that
        # follow go on by themselves. Those of our last announcement must not: who hears them
        # after the new one believes them.
        self._stop_broadcasts()
        if self._info is not None and self._info.name == info.name:
            broadcasts = await self._zeroconf.async_update_service(info)
        else:
            if self._info is not None:
                await self._zeroconf.async_unregister_service(self._info)
            broadcasts = await self._zeroconf.async_register_service(
                info, cooperating_responders=True
            )
        self._broadcasts = asyncio.ensure_future(broadcasts)
        self._info = info

    def _stop_broadcasts(self) -> None:
        if self._broadcasts is not None:
            self._broadcasts.cancel()
            self._broadcasts = None

    def _announcement(self, own: Sighting) -> AsyncServiceInfo:
        label = f"{own.short_node}-{own.instance}"
        name = own.cluster_name.encode()[:CLUSTER_NAME_MAX_BYTES].decode(errors="ignore")
        return AsyncServiceInfo(
            SERVICE_TYPE,
            f"{label}.{SERVICE_TYPE}",
            port=self._endpoints.link_port,
            properties={
                "v": str(own.proto),
                "id": own.short_node,
                "inst": own.instance,
                "cid": own.cluster_prefix,
                "cn": name,
                "api": str(own.api_port),
                "win": "1" if own.window_open else "0",
            },
            server=f"{label}.local.",
            host_ttl=RECORD_TTL_S,
            other_ttl=RECORD_TTL_S,
            parsed_addresses=list(self._lan_addresses()[:ADDRESSES_MAX]),
        )

    # What others announce.

    def _on_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed:
            if self._heard.pop(name, None) is not None:
                self._news.set()
            return
        info = AsyncServiceInfo(service_type, name)
        if info.load_from_cache(zeroconf):
            self._hear(zeroconf, name, info)
        elif name not in self._resolving and len(self._resolving) < SIGHTINGS_MAX:
            task = asyncio.get_running_loop().create_task(self._resolve(zeroconf, name, info))
            self._resolving[name] = task
            task.add_done_callback(lambda _: self._resolving.pop(name, None))

    async def _resolve(self, mdns: Zeroconf, name: str, info: AsyncServiceInfo) -> None:
        """The announcement came in parts: ask for the rest."""
        if await info.async_request(mdns, RESOLVE_DEADLINE_MS):
            self._hear(mdns, name, info)

    def _read_again(self, mdns: Zeroconf) -> None:
        """The browser is silent about a text that comes again while its cache still holds it, as
        when a window closes and opens."""
        for name in [*self._heard]:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            if info.load_from_cache(mdns):
                self._hear(mdns, name, info)

    def _hear(self, mdns: Zeroconf, name: str, info: AsyncServiceInfo) -> None:
        addresses = sorted(info.parsed_scoped_addresses(IPVersion.All), key=address_rank)
        properties = _latest_text(mdns, name) or info.properties
        sighting = sighting_of(properties, addresses, info.port or 0)
        full = name not in self._heard and len(self._heard) >= SIGHTINGS_MAX
        if sighting is None or full or self._heard.get(name) == sighting:
            return
        self._heard[name] = sighting
        self._news.set()


def _latest_text(mdns: Zeroconf, name: str) -> Mapping[bytes, bytes | None]:
    """Of several texts in the cache the one that came last: it lives longest."""
    texts = mdns.cache.get_all_by_details(name, TYPE_TXT, CLASS_IN)
    latest = max(texts, key=lambda record: record.get_expiration_time(100), default=None)
    text = getattr(latest, "text", None)
    if not isinstance(text, bytes):
        return {}
    return AsyncServiceInfo(SERVICE_TYPE, name, properties=text).properties


def _multicast_choice(interfaces: tuple[Interface, ...]) -> list[str]:
    """One address for each interface, IPv4 where it has one: that is enough to be heard."""
    chosen: dict[int, str] = {}
    for interface in sorted(interfaces, key=lambda entry: ":" in entry.address):
        chosen.setdefault(interface.number, interface.address)
    return list(chosen.values())
