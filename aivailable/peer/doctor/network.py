"""Probes the network: interfaces, the mDNS group on each, who is heard, and the way to a node.

Owns sockets and time limits; must not judge, announce anything, or ask to be admitted. Reads at
most one join frame from a stranger, as `join` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import secrets
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import ifaddr

from aivailable.errors import SchemaError, WireError
from aivailable.peer.doctor.findings import (
    Attempt,
    Fault,
    HearingFinding,
    InterfaceFinding,
    MulticastFinding,
    NodeFinding,
    ProbeTarget,
    Stage,
)
from aivailable.peer.joining.cards import LOOPBACK, Interface, left_out, usable_interfaces
from aivailable.peer.joining.discovery import SERVICE_TYPE, MdnsDiscovery
from aivailable.peer.links.identity import node_id_of
from aivailable.peer.links.trust import SNI_JOIN, join_context, peer_certificate
from aivailable.peer.ports import Endpoints
from aivailable.wire import frames
from aivailable.wire.frames import FrameDecoder
from aivailable.wire.join import JOIN, JoinOffer
from aivailable.wire.limits import JOIN_FRAME_MAX_BYTES

NAME_LIMIT_S: Final = 2.0
CONNECT_LIMIT_S: Final = 4.0
"""Linux says "no route to host" after 3 s without an ARP answer: that is worth waiting for."""
TLS_LIMIT_S: Final = 2.5
OFFER_LIMIT_S: Final = 1.5
ADDRESSES_TRIED_MAX: Final = 4
"""For one node, all at once."""
PACKETS_READ_MAX: Final = 2_000
SOURCES_KEPT_MAX: Final = 32
INTERFACES_MAX: Final = 32
TOKEN_BYTES: Final = 12

MDNS_PORT: Final = 5353
MDNS_GROUP_V4: Final = "224.0.0.251"
MDNS_GROUP_V6: Final = "ff02::fb"
_TYPE_PTR: Final = 12
_TYPE_TXT: Final = 16
_CLASS_IN: Final = 1
_CARRIER_FOLDER: Final = Path("/sys/class/net")


# Interfaces.


def look_at_interfaces(
    only: tuple[str, ...] = (), *, carrier: Callable[[str], bool] | None = None
) -> tuple[InterfaceFinding, ...]:
    """Every interface of this machine, the used ones first. Raises OSError."""
    has_carrier = carrier or _has_carrier
    used = {one.address for one in usable_interfaces(only)}
    found: dict[str, InterfaceFinding] = {}
    for adapter in ifaddr.get_adapters():
        entries = [
            (entry.ip if isinstance(entry.ip, str) else entry.ip[0], entry.network_prefix)
            for entry in adapter.ips
        ]
        chosen = [f"{address}/{length}" for address, length in entries if address in used]
        name = adapter.name
        if chosen:
            found[name] = InterfaceFinding(name, tuple(chosen), True, "", has_carrier(name))
        else:
            shown = tuple(f"{address}/{length}" for address, length in entries)
            reason = _why_left_out(name, bool(entries), bool(only))
            found[name] = InterfaceFinding(name, shown, False, reason)
    for _, name in socket.if_nameindex():
        if name not in found:
            reason = _why_left_out(name, False, bool(only))
            found[name] = InterfaceFinding(name, (), False, reason)
    ranked = sorted(found.values(), key=lambda one: (not one.used, one.name))
    return tuple(ranked[:INTERFACES_MAX])


def own_addresses() -> frozenset[str]:
    """All of this machine, those that are of no use to others too: none of them is another's.
    Raises OSError."""
    return frozenset(
        (entry.ip if isinstance(entry.ip, str) else entry.ip[0]).partition("%")[0]
        for adapter in ifaddr.get_adapters()
        for entry in adapter.ips
    )


def _why_left_out(name: str, has_address: bool, named: bool) -> str:
    if name == LOOPBACK:
        return "this machine itself" if not named else "not among --interfaces"
    if reason := left_out(name):
        return reason
    if not has_address:
        return "no address"
    return "not among --interfaces" if named else "only a link-local IPv6 address"


def _has_carrier(name: str) -> bool:
    """False only where the kernel says so; other systems do not tell."""
    try:
        state = (_CARRIER_FOLDER / name / "operstate").read_text().strip()
    except OSError:
        return True
    return state not in ("down", "lowerlayerdown", "notpresent", "dormant")


# Multicast.


@contextlib.asynccontextmanager
async def listening(only: tuple[str, ...]) -> AsyncIterator[Callable[[], HearingFinding]]:
    """Hears mDNS without announcing anything; yields what tells what has come in so far."""
    now_s = asyncio.get_running_loop().time
    discovery = MdnsDiscovery(Endpoints(), only)
    await discovery.start()
    started_s = now_s()

    def heard_so_far() -> HearingFinding:
        listened_s = round(now_s() - started_s)
        return HearingFinding(discovery.problem, discovery.sightings(), listened_s)

    try:
        yield heard_so_far
    finally:
        await discovery.stop()


async def try_groups(only: tuple[str, ...], seconds: float) -> tuple[MulticastFinding, ...]:
    """Send to the mDNS group on each interface and listen there for `seconds`."""
    try:
        interfaces, ours = usable_interfaces(only), own_addresses()
    except OSError as error:
        return (MulticastFinding("network", "", f"{error.strerror or error}"),)
    chosen: dict[int, Interface] = {}
    for one in sorted(interfaces, key=lambda entry: ":" in entry.address):
        chosen.setdefault(one.number, one)
    return tuple(await asyncio.gather(*(_try_group(one, ours, seconds) for one in chosen.values())))


async def _try_group(one: Interface, ours: frozenset[str], seconds: float) -> MulticastFinding:
    token = f"doctor-{secrets.token_hex(TOKEN_BYTES)}"
    ear = _Ear(token.encode(), ours)
    group = MDNS_GROUP_V6 if ":" in one.address else MDNS_GROUP_V4
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_datagram_endpoint(
            lambda: ear, sock=_group_socket(one, group)
        )
    except OSError as error:
        return MulticastFinding(one.name, one.address, error.strerror or str(error))
    try:
        # Ours to hear again; then two questions that other machines' responders answer.
        for name, kind in (
            (f"{token}.local.", _TYPE_TXT),
            ("_services._dns-sd._udp.local.", _TYPE_PTR),
            (SERVICE_TYPE, _TYPE_PTR),
        ):
            transport.sendto(dns_question(name, kind), (group, MDNS_PORT))
        await asyncio.sleep(seconds)
    finally:
        transport.abort()
    return MulticastFinding(
        one.name, one.address, ear.problem, ear.own_heard, tuple(sorted(ear.sources))
    )


def _group_socket(one: Interface, group: str) -> socket.socket:
    """Bound to the mDNS port beside other programs, joined to the group on one interface."""
    six = ":" in group
    opened = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if six:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind(("::", MDNS_PORT))
            member = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", one.number)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, one.number)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
        else:
            opened.bind(("", MDNS_PORT))
            address = socket.inet_aton(one.address)
            opened.setsockopt(
                socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + address
            )
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, address)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    except OSError:
        opened.close()
        raise
    return opened


class _Ear(asyncio.DatagramProtocol):
    """Counts what comes to the group; keeps no packet."""

    def __init__(self, token: bytes, ours: frozenset[str]) -> None:
        self._token = token
        self._ours = ours
        self._read = 0
        self.own_heard = False
        self.problem = ""
        self.sources: dict[str, None] = {}

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._read += 1
        if self._read > PACKETS_READ_MAX:
            return
        source = str(addr[0]).partition("%")[0]
        if self._token in data:
            self.own_heard = True
        elif not self._is_here(source) and len(self.sources) < SOURCES_KEPT_MAX:
            self.sources[source] = None

    def error_received(self, exc: Exception) -> None:
        self.problem = getattr(exc, "strerror", None) or str(exc)

    def _is_here(self, source: str) -> bool:
        return source in self._ours or source.startswith("127.")


def dns_question(name: str, kind: int) -> bytes:
    """One mDNS question (RFC 6762 §18, RFC 1035 §4.1): id 0, no flags, one name, class IN."""
    labels = [label.encode() for label in name.rstrip(".").split(".")]
    wire_name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack(">6H", 0, 0, 1, 0, 0, 0) + wire_name + struct.pack(">2H", kind, _CLASS_IN)


# The way to one node.


async def reach(target: ProbeTarget) -> NodeFinding:
    """All of a node's addresses at once, each as far as it goes."""
    addresses = target.addresses[:ADDRESSES_TRIED_MAX]
    return NodeFinding(target, tuple(await asyncio.gather(*map(_attempt, addresses))))


async def _attempt(address: tuple[str, int]) -> Attempt:
    try:
        resolved = await asyncio.wait_for(_resolve(*address), NAME_LIMIT_S)
    except TimeoutError:
        return Attempt(address, Stage.NAME, Fault.UNRESOLVED, "no answer from the name server")
    except OSError as error:
        return Attempt(address, Stage.NAME, Fault.UNRESOLVED, error.strerror or str(error))
    family, place = resolved
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        fault, detail = await _connect(opened, place)
        if fault is not Fault.NONE:
            return Attempt(address, Stage.CONNECT, fault, detail)
        return await _talk(address, opened)
    finally:
        opened.close()


async def _connect(opened: socket.socket, place: tuple[Any, ...]) -> tuple[Fault, str]:
    loop = asyncio.get_running_loop()
    try:
        await asyncio.wait_for(loop.sock_connect(opened, place), CONNECT_LIMIT_S)
    except TimeoutError:
        return Fault.TIMED_OUT, f"nothing in {CONNECT_LIMIT_S:g} s"
    except ConnectionRefusedError as error:
        return Fault.REFUSED, error.strerror or str(error)
    except OSError as error:
        timed_out = error.errno == errno.ETIMEDOUT
        detail = error.strerror or str(error)
        return Fault.TIMED_OUT if timed_out else Fault.UNREACHABLE, detail
    return Fault.NONE, ""


async def _talk(address: tuple[str, int], opened: socket.socket) -> Attempt:
    """TLS as a stranger, then the offer. Nothing is asked for."""
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(
                sock=opened, ssl=join_context(), server_hostname=SNI_JOIN,
                limit=JOIN_FRAME_MAX_BYTES,
            ),
            TLS_LIMIT_S,
        )  # fmt: skip
    except TimeoutError:
        return Attempt(address, Stage.TLS, Fault.TIMED_OUT, f"nothing in {TLS_LIMIT_S:g} s")
    except OSError as error:
        return Attempt(address, Stage.TLS, *_tls_fault(error))
    try:
        return await asyncio.wait_for(_offer(address, reader, writer), OFFER_LIMIT_S)
    except TimeoutError:
        return Attempt(address, Stage.OFFER, Fault.TIMED_OUT, f"nothing in {OFFER_LIMIT_S:g} s")
    except OSError as error:
        return Attempt(address, Stage.OFFER, Fault.CLOSED, error.strerror or str(error))
    except WireError as error:
        return Attempt(address, Stage.OFFER, Fault.FOREIGN, str(error))
    finally:
        writer.transport.abort()


def _tls_fault(error: OSError) -> tuple[Fault, str]:
    """`reason` is what ssl.SSLError adds to OSError: OpenSSL's own word."""
    reason = getattr(error, "reason", None)
    if not isinstance(reason, str):
        return Fault.CLOSED, error.strerror or str(error) or type(error).__name__
    words = reason.lower().replace("_", " ")
    foreign = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH")
    if any(sign in reason for sign in foreign):
        return Fault.NOT_TLS, words
    if "EOF" in reason:
        return Fault.CLOSED, words
    return Fault.TLS_REFUSED, words


async def _offer(
    address: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Attempt:
    """Raises OSError, WireError."""
    node = node_id_of(peer_certificate(writer.transport) or b"")
    decoder = FrameDecoder(JOIN_FRAME_MAX_BYTES)
    while data := await reader.read(JOIN_FRAME_MAX_BYTES):
        for frame in decoder.feed(data):
            message = JOIN.decode(frame.payload) if frame.kind == frames.JOIN else None
            if not isinstance(message, JoinOffer):
                raise SchemaError("its first word is no offer")
            if message.node != node or not message.cluster_id.isalnum():
                raise SchemaError("its offer does not fit its certificate")
            return Attempt(address, Stage.DONE, offer=message)
    return Attempt(address, Stage.OFFER, Fault.CLOSED, "it closed the connection")


async def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """IPv4 first. On a daemon thread: a name server that hangs must not hold up our end.
    Raises OSError."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Sequence[Any]] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not answer.done():
            set_it()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            outcome = functools.partial(answer.set_result, found)
        except (OSError, UnicodeError) as error:
            fault = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
            outcome = functools.partial(answer.set_exception, fault)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, outcome)

    if _is_literal(host):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    else:
        threading.Thread(target=ask, daemon=True, name="doctor-name").start()
        found = list(await answer)
    best = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return best[0], best[4]


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
