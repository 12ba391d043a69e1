"""Whose address a request comes from, and whether that is this machine itself.

Owns what forwarding headers mean. Pure: it reads headers and addresses, and refuses nothing.

Rules:
  * a header that only proxies send, from anybody, says that the client may be elsewhere: such a
    request never counts as this machine's own;
  * what such a header says is believed only of an address that the operator lists as a proxy's.
    Then the client is the rightmost hop that is no listed proxy: whatever stands left of it is
    the client's own word;
  * a listed proxy speaks for others. Where it does not say for whom, nobody is known, and the
    request is not this machine's own either. So a proxy that adds no header is safe once listed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from multidict import CIMultiDict, CIMultiDictProxy

from aivailable.core.ids import AccountId, NodeId, short

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers = CIMultiDict[str] | CIMultiDictProxy[str]

ACCOUNT_IPV6_BITS = 64
"""Addresses of one network are one account."""
HOPS_MAX = 32
"""A longer chain of proxies is nobody's."""
_FORWARDING_PREFIX = "x-forwarded"
_FORWARDING = frozenset(
    {
        "cdn-loop",
        "cf-connecting-ip",
        "cf-connecting-ipv6",
        "cf-ray",
        "client-ip",
        "fastly-client-ip",
        "fly-client-ip",
        "forwarded",
        "proxy-client-ip",
        "true-client-ip",
        "via",
        "wl-proxy-client-ip",
        "x-appengine-user-ip",
        "x-azure-clientip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-envoy-external-address",
        "x-original-forwarded-for",
        "x-original-host",
        "x-originating-ip",
        "x-proxyuser-ip",
        "x-real-ip",
        "x-remote-addr",
        "x-remote-ip",
    }
)
"""Proxies, load balancers and CDNs send these; clients have no reason to."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one request comes from, as far as anybody can tell."""

    address: Address | None
    local: bool
    """From this machine, by nobody's word but the kernel's or a listed proxy's."""

    def account(self, node: NodeId) -> AccountId:
        """Whom a client without a key is counted for. Who comes through a proxy on this machine
        is not counted with this machine's own people."""
        if self.address is None or not self.address.is_loopback or self.local:
            return account_of(self.address, node)
        return f"address:{self.address}"


def source_of(remote: str, headers: Headers, trusted: Sequence[Network]) -> Source:
    """`remote` is the other end of the connection; `trusted` are the addresses of proxies."""
    peer = address_of(remote)
    if peer is None:
        return Source(None, local=False)
    if not _within(peer, trusted):
        return Source(peer, local=peer.is_loopback and not _is_forwarded(headers))
    client = _client(headers, trusted)
    if client is None:
        return Source(peer, local=False)
    own = peer.is_loopback and client.is_loopback and not _within(client, trusted)
    return Source(client, local=own)


def address_of(text: str) -> Address | None:
    """The address that a text spells, IPv4 where it is one in IPv6's clothes."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def account_of(address: Address | None, node: NodeId) -> AccountId:
    """Of IPv6 the network counts: a machine has 2^64 addresses in it. Loopback is this node,
    whose people are not those of another node's loopback."""
    if address is None or address.is_loopback:
        return f"local:{short(node)}"
    if isinstance(address, ipaddress.IPv6Address) and not address.is_link_local:
        network = ipaddress.ip_network((address, ACCOUNT_IPV6_BITS), strict=False)
        return f"address:{network}"
    return f"address:{address}"


def _is_forwarded(headers: Headers) -> bool:
    names = (name.lower() for name in headers)
    return any(name in _FORWARDING or name.startswith(_FORWARDING_PREFIX) for name in names)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _client(headers: Headers, trusted: Sequence[Network]) -> Address | None:
    """Whom the listed proxies speak for. None when they do not say, or say two things: a client
    can add the one header that its proxy does not write."""
    told = [
        _rightmost(hops, trusted)
        for hops in (_hops(headers, "X-Forwarded-For"), _forwarded_for(headers))
        if hops
    ]
    return told[0] if told and all(one == told[0] for one in told) else None


def _rightmost(hops: Sequence[str], trusted: Sequence[Network]) -> Address | None:
    """The rightmost hop that is no listed proxy, else the first of all."""
    if len(hops) > HOPS_MAX:
        return None
    address = None
    for hop in reversed(hops):
        address = address_of(_without_port(hop))
        if address is None or not _within(address, trusted):
            return address
    return address


def _hops(headers: Headers, name: str) -> list[str]:
    """The items of a header; lines of one name are one list."""
    lines = headers.getall(name, [])
    return [item.strip() for line in lines for item in line.split(",")]


def _forwarded_for(headers: Headers) -> list[str]:
    """`for=` of each element of Forwarded (RFC 7239); "" where an element has none."""
    return [_named_for(element) for element in _hops(headers, "Forwarded")]


def _named_for(element: str) -> str:
    for pair in element.split(";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            return value.strip().strip('"')
    return ""


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
