"""What Host and Origin say of the web page behind a request.

Owns the two kinds; what follows from them is decided in `rules`. Pure.

A browser lets any page send requests to this machine. Two headers tell on it: Origin names the
page, and Host is the name by which the browser found us. A page that points its own name at us
(DNS rebinding) has an Origin that fits, but it cannot have a Host that is ours. A GET of another
site's page may come without an Origin (an image, a link): it cannot read the answer, and so no GET
here may change anything. `Sec-Fetch-*` is never asked: programs send it, too.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence

from aivailable.peer.api.auth.source import address_of

_PORTS = {"http": "80", "https": "443"}
_OWN_NAMES = frozenset({"localhost", "host.docker.internal"})
_OWN_DOMAIN = ".localhost"
"""A resolver never leaves this machine for these. Names of the LAN (`pc1`, `pc1.local`) are not
here: anybody on a LAN answers for names by mDNS."""


class HostKind(enum.StrEnum):
    """By which name the client found us."""

    OWN = "own"
    """One that means this machine wherever it is asked for, or one that the operator lists."""
    ADDRESS = "address"
    """An IP address: no page can rebind one, but a proxy can have been asked for it."""
    NAME = "name"
    """Any other, or several at once: whoever gives names here may have chosen it."""


class OriginKind(enum.StrEnum):
    """Which web page sent the request."""

    NONE = "none"
    """No page, or a GET that hides it."""
    SAME = "same"
    """One of our own."""
    LISTED = "listed"
    """One that the operator lists."""
    FOREIGN = "foreign"
    """Any other; `null` and `file://`, which many pages share, too."""


def host_kind(sent: Sequence[str], listed: Collection[str]) -> HostKind:
    """`sent` are the values of the header Host. None at all is an old program: every browser and
    every proxy sends one."""
    if not sent:
        return HostKind.OWN
    name, port = _split(sent[0])
    if len(sent) > 1 or (port and not port.isdecimal()):
        return HostKind.NAME
    if name in _OWN_NAMES or name.endswith(_OWN_DOMAIN) or _is_listed(name, listed):
        return HostKind.OWN
    address = address_of(name)
    if address is None:
        return HostKind.NAME
    return HostKind.OWN if address.is_loopback else HostKind.ADDRESS


def origin_kind(
    origins: Sequence[str], hosts: Sequence[str], listed: Collection[str]
) -> OriginKind:
    """`origins` and `hosts` are the values of the two headers."""
    if not origins:
        return OriginKind.NONE
    if len(origins) > 1:
        return OriginKind.FOREIGN
    origin = origins[0].strip().lower()
    if origin in listed:
        return OriginKind.LISTED
    scheme, _, place = origin.partition("://")
    if scheme not in _PORTS or len(hosts) != 1:
        return OriginKind.FOREIGN
    default = _PORTS[scheme]
    page, ours = _split(place), _split(hosts[0])
    same = (page[0], page[1] or default) == (ours[0], ours[1] or default)
    return OriginKind.SAME if same else OriginKind.FOREIGN


def _split(place: str) -> tuple[str, str]:
    """The name in lower case without its last dot, and the port or ""."""
    place = place.strip().lower()
    if place.startswith("["):
        name, _, rest = place[1:].partition("]")
        return name, rest.removeprefix(":")
    name, _, port = place.partition(":")
    return name.removesuffix("."), port


def _is_listed(name: str, listed: Collection[str]) -> bool:
    """`*.lab` in the list is every name below `lab`."""
    below = (f"*.{name[dot + 1 :]}" for dot, char in enumerate(name) if char == ".")
    return name in listed or any(one in listed for one in below)
