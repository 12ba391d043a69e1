"""The one TCP port of a node: its sockets for IPv4 and IPv6 on the same number.

Owns binding and its error messages.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from aivailable.errors import ConfigError
from aivailable.peer.links.port_choice import taken

BACKLOG: Final = 256
"""Connections in the kernel's line: a flood that comes between two turns of the loop fits."""
EPHEMERAL_ATTEMPTS_MAX: Final = 8
_NO_SUCH_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def bind(hosts: tuple[str, ...], port: int) -> list[socket.socket]:
    """Bound sockets, one for each host whose address family this machine has; all on one port,
    chosen by the system when `port` is 0. Raises ConfigError."""
    for attempt in range(EPHEMERAL_ATTEMPTS_MAX):
        try:
            return _bind_all(hosts, port)
        except OSError as error:
            # The number that the system chose for IPv4 may be taken for IPv6.
            if port == 0 and error.errno == errno.EADDRINUSE:
                if attempt + 1 < EPHEMERAL_ATTEMPTS_MAX:
                    continue
            elif error.errno == errno.EADDRINUSE:
                raise taken(port, links=True) from error
            raise ConfigError(
                f"port {port} cannot be opened ({error.strerror}); choose another with --port"
            ) from error
    raise AssertionError("unreachable")


def _bind_all(hosts: tuple[str, ...], port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    refusal: OSError | None = None
    try:
        for host in hosts:
            try:
                sockets.append(_bind_one(host, sockets[0].getsockname()[1] if sockets else port))
            except OSError as error:
                if error.errno not in _NO_SUCH_FAMILY:
                    raise
                refusal = error
        if not sockets:
            raise refusal or OSError(errno.EADDRNOTAVAIL, "no address to listen on")
    except OSError:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def _bind_one(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((host, port))
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened
