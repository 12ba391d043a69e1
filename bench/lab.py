"""A throw-away cluster of real peers on the loopback interface, for benchmarks.

Owns nothing of its own: it uses the harness of the cluster tests, so that figures and tests look
at the same thing in the same way.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fixtures.peers import PeerProcess, Peers, cluster_name, loopback_peer, voting

FORM_LIMIT_S = 60.0


@contextlib.asynccontextmanager
async def lab(count: int) -> AsyncIterator[Peers]:
    """`count` peers with homes of their own, not started."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = cluster_name()
        async with Peers() as peers:
            peers.peers = [
                loopback_peer(Path(folder) / f"peer{number}", cluster)
                for number in range(1, count + 1)
            ]
            yield peers


async def form(peers: Peers, some: list[PeerProcess] | None = None) -> None:
    """Start peers together and wait until they agree."""
    chosen = some or peers.peers
    for peer in chosen:
        peer.start()
    for peer in chosen:
        await peer.listening()
    await peers.until("all agree", voting(len(chosen)), chosen, FORM_LIMIT_S)
