"""Which of this machine's network cards are ours to use, and why the others are left out.

Owns the choice of cards, and what the kernel says of them: bridges, routes, readiness. It sends
nothing. Read by `discovery`, by `up` and by the doctor.

Three rules, in this order: what `--interfaces` names is used; a bridge is judged by what it
carries; of the rest the name tells what belongs to containers, virtual machines and VPNs. Besides,
a card that leads to a seed or to a member is used for links, whatever it is (`discovery`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import ifaddr

LOOPBACK: Final = "lo"
NAMED_BRIDGE: Final = "br-"
"""Docker names its networks so; so do OpenWrt (br-lan) and OpenStack (br-ex)."""
VIRTUAL_INTERFACES: Final = (
    *("docker", "veth", "virbr", "vmnet", "vboxnet", "lxcbr", "lxdbr", "podman", "cni"),
    *("flannel", "cali", "tun", "tap", "wg", "tailscale", "zt", "utun", "ppp", "ipsec", "nordlynx"),
)
"""Containers, virtual machines and tunnels: their addresses mean nothing to the LAN."""
LOWER_CARDS_MAX: Final = 4
"""Cards below one another, as a bridge on a VLAN on a bond on a card."""
NAMES_SHOWN_MAX: Final = 4
"""For one reason, in the line of `up`: a machine may have a card for each container."""
PROBE_PORT: Final = 9
"""Nothing is sent there; the kernel wants a port to tell the way."""
SYS_NET: Final = Path("/sys/class/net")
PROC_NET: Final = Path("/proc/net")
_ROUTE_V6_UNREACHABLE: Final = "ffffffff"
"""The metric of the kernel's own entry that means "no default route"."""

log = logging.getLogger(__name__)


class Interface(NamedTuple):
    """One usable address of this machine."""

    name: str
    number: int
    """The kernel's."""
    address: str


def usable_interfaces(only: tuple[str, ...] = ()) -> tuple[Interface, ...]:
    """Our addresses, best first: IPv4, then IPv6, self-assigned ones last. `only` names
    addresses or interfaces to take, whatever they are (the demo's loopback). Raises OSError."""
    found = []
    for adapter in ifaddr.get_adapters():
        addresses = [
            entry.ip if isinstance(entry.ip, str) else entry.ip[0] for entry in adapter.ips
        ]
        if only:
            wanted = [one for one in addresses if one in only or adapter.name in only]
        elif left_out(adapter.name):
            continue
        else:
            wanted = [one for one in addresses if is_of_use(one)]
        found += [Interface(adapter.name, adapter.index or 0, address) for address in wanted]
    return tuple(sorted(found, key=_rank))


def left_out(name: str) -> str:
    """Why a card does not count unless it is named; "" = it counts."""
    if name == LOOPBACK:
        return "this machine itself"
    if name.startswith(NAMED_BRIDGE) or (SYS_NET / name / "bridge").is_dir():
        return "" if _carries_a_lan(name) else "a bridge with neither default route nor real card"
    if name.startswith(VIRTUAL_INTERFACES):
        return "container, virtual machine or VPN"
    return ""


def is_of_use(address: str) -> bool:
    """Whether others can reach it: an IPv6 link-local address says nothing without the
    listener's own interface number."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return not (parsed.is_loopback or (parsed.version == 6 and parsed.is_link_local))


def is_ready(address: str) -> bool:
    """Whether the kernel lets us send from there: not while it still checks an IPv6 address for a
    double, nor when the address has just gone. zeroconf would leave it out without a word."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            log.debug("%s is not ready: %s", address, error)
            return False
    return True


def own_addresses_towards(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those of ours that the kernel would send from to one of these, each once, in their order.
    No packet is sent. What is no IP address, or has no way, gives nothing."""
    found: dict[str, None] = {}
    for address in addresses:
        with contextlib.suppress(ValueError, OSError):
            ipaddress.ip_address(address)  # Never a name: it would be looked up, and we would wait.
            with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
                probe.connect((address, PROBE_PORT))
                own = str(probe.getsockname()[0])
            if is_of_use(own) and not ipaddress.ip_address(own).is_unspecified:
                found[own] = None
    return tuple(found)


def told(only: tuple[str, ...], used: tuple[str, ...]) -> str:
    """One line for people: the cards whose addresses are used, and why the others are not.
    Raises OSError."""
    taken, reasons = [], dict[str, list[str]]()
    for adapter in ifaddr.get_adapters():
        addresses = [
            entry.ip if isinstance(entry.ip, str) else entry.ip[0] for entry in adapter.ips
        ]
        ours = [address for address in addresses if address in used]
        if ours:
            taken.append(f"{adapter.name} ({', '.join(ours)})")
        elif adapter.name != LOOPBACK:
            reason = "not among --interfaces" if only else left_out(adapter.name)
            reasons.setdefault(reason or "no address of use", []).append(adapter.name)
    line = f"network cards in use: {', '.join(taken) or 'none yet'}"
    for reason, names in sorted(reasons.items()):
        more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
        line += f"; left out: {', '.join(names[:NAMES_SHOWN_MAX])}{more} ({reason})"
    return line


# What a bridge carries.


def _carries_a_lan(name: str) -> bool:
    """A default route goes through it, or a real card is plugged into it. Where the
    system does not tell, neither."""
    if name in _default_route_cards():
        return True
    with contextlib.suppress(OSError):
        return any(_is_real(port.name) for port in (SYS_NET / name / "brif").iterdir())
    return False


def _is_real(name: str, deeper: int = LOWER_CARDS_MAX) -> bool:
    """A card that a device drives, or a VLAN or bond on one."""
    card = SYS_NET / name
    if (card / "device").exists():
        return True
    lower = [one.name.removeprefix("lower_") for one in card.glob("lower_*")]
    return deeper > 0 and any(_is_real(one, deeper - 1) for one in lower)


def _default_route_cards() -> set[str]:
    """Of IPv4 and IPv6, as Linux lists them; empty elsewhere."""
    cards = set()
    for fields in _rows("route"):
        # Iface Destination Gateway Flags RefCnt Use Metric Mask …
        if len(fields) > 7 and fields[1] == fields[7] == "0" * 8:
            cards.add(fields[0])
    for fields in _rows("ipv6_route"):
        # Destination Length Source Length NextHop Metric RefCnt Use Flags Iface
        if (
            len(fields) > 9
            and fields[:2] == ["0" * 32, "00"]
            and fields[5] != _ROUTE_V6_UNREACHABLE
        ):
            cards.add(fields[9])
    return cards - {LOOPBACK}


def _rows(table: str) -> list[list[str]]:
    try:
        return [line.split() for line in (PROC_NET / table).read_text().splitlines()]
    except OSError:
        return []


# Order.


def address_rank(address: str) -> tuple[bool, int, str]:
    parsed = ipaddress.ip_address(address)
    return parsed.is_link_local, parsed.version, address


def _rank(interface: Interface) -> tuple[tuple[bool, int], int, str]:
    return address_rank(interface.address)[:2], interface.number, interface.address


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
