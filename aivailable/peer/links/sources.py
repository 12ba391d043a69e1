"""Whom a limit per source counts: an IPv4 address, or the /64 that an IPv6 host has for itself."""

from __future__ import annotations

import ipaddress
from typing import Final

IPV6_HOST_PREFIX_BITS: Final = 64


def source_of(address: str) -> str:
    """The one who is counted for `address`. What is no address counts as itself."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        if not parsed.is_link_local:
            return str(ipaddress.ip_network((parsed, IPV6_HOST_PREFIX_BITS), strict=False))
    return str(parsed)


def is_here(address: str) -> bool:
    """Whether it comes from this machine by its loopback interface."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
