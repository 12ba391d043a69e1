"""Peers on hosts of their own: network namespaces on a bridge, whose cables can be cut.

Owns nothing but the way from a bench to the tests' LAN (tests/fixtures/netns.py): it is one thing,
and it is theirs. Needs root and `ip`; `missing` says what is not there. For the benches that need a
real cut: no socket closes, only silence tells.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from bench.peers import ROOT, Place

sys.path.append(str(ROOT / "tests"))

from fixtures.netns import lan, missing  # type: ignore[import-not-found]

__all__ = ["lan", "missing", "places", "shape"]

BURST_KIB = 32
QUEUE_MS = 100
"""What a switch's port holds before it drops."""


def places(hosts: Any) -> Callable[[int], Place]:
    """Where the peer of each number runs: on the host of that number, no flags but the port."""

    def place(number: int) -> Place:
        return Place(hosts.prefix(number), hosts.address(number), ("--port", "0"))

    return place


def shape(hosts: Any, number: int, mbit_per_s: int) -> None:
    """Limit the host's cable, both ways. Raises CalledProcessError where `tc` cannot."""
    limit = f"rate {mbit_per_s}mbit burst {BURST_KIB}kb latency {QUEUE_MS}ms".split()
    inside = ("tc", "qdisc", "add", "dev", hosts.card(number), "root", "tbf", *limit)
    outside = ("tc", "qdisc", "add", "dev", f"{hosts.bridge}p{number}", "root", "tbf", *limit)
    at_router = ("ip", "netns", "exec", hosts.router)
    for command in ((*hosts.prefix(number), *inside), (*at_router, *outside)):
        subprocess.run(command, check=True, capture_output=True)
