"""What to say when a port of ours is taken: which one, and a command that works.

Owns looking for a pair of free ports. It opens and closes sockets, and keeps none.
"""

from __future__ import annotations

import socket
from typing import Final

from aivailable.advice import UP_PORT
from aivailable.errors import ConfigError

STEP: Final = 10
"""Between the ports that are tried: people keep such numbers apart."""
TRIES_MAX: Final = 20
PORT_MAX: Final = 65_534
"""The next one is for links."""


def taken(port: int, *, links: bool = False) -> ConfigError:
    """`port` is another program's, perhaps another user's. `links`: it is the second of the two
    ports, one after the API's."""
    api_port = port - 1 if links else port
    free = next(
        (
            one
            for one in range(api_port + STEP, api_port + STEP * (TRIES_MAX + 1), STEP)
            if one <= PORT_MAX and _free(one) and _free(one + 1)
        ),
        0,  # Which `up` takes as any free port.
    )
    whose = " (links use the one after --port)" if links else ""
    return ConfigError(
        f"port {port} is in use by another program, perhaps of another user{whose}: choose "
        f"another, like {UP_PORT.of(str(free))}"
    )


def _free(port: int) -> bool:
    """Whether nobody listens there, on any address of this machine."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind((address, port))
                one.listen(1)
        except OSError:
            if family == socket.AF_INET or socket.has_ipv6:
                return False
    return True
