"""Peers on hosts of their own: network namespaces on a bridge, whose cables can be cut.

Owns nothing but the way from a bench to the tests' LAN (tests/fixtures/netns.py): it is one thing,
and it is theirs. Needs root and `ip`; `missing` says what is not there. Used by the benches that
need a real cut: no socket closes, only silence tells.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from bench.peers import ROOT, Place

sys.path.append(str(ROOT / "tests"))

from fixtures.netns import lan, missing  # type: ignore[import-not-found]

__all__ = ["lan", "missing", "places"]


def places(hosts: Any) -> Callable[[int], Place]:
    """Where the peer of each number runs: on the host of that number, no flags but the port."""

    def place(number: int) -> Place:
        return Place(hosts.prefix(number), hosts.address(number), ("--port", "0"))

    return place
