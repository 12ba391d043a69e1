"""Whose program listens on a port of this machine: for the refusal to send it a key.

Owns the reading of Linux's tables of sockets; elsewhere nobody is named.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN = "0A"


def port_owner(port: int) -> str:
    """ "user NAME" of another user, "another program of yours", or "another program"."""
    for state, local_port, uid in _sockets():
        if state == _LISTEN and local_port == port:
            return "another program of yours" if uid == os.getuid() else f"user {_name(uid)}"
    return "another program"


def _sockets() -> Iterator[tuple[str, int, int]]:
    """State, local port and owner of each TCP socket (proc(5))."""
    for table in TABLES:
        try:
            lines = table.read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            yield fields[3], int(fields[1].rpartition(":")[2], 16), int(fields[7])


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
