"""Three real peers on the loopback interface, for each test anew or as a module's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from fixtures.peers import Peers, cluster_name, loopback_peer, voting

JOIN_LIMIT_S = 60.0
StartPeers = Callable[[int], Awaitable[Peers]]


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    """No peer yet; whatever the test adds is ended."""
    async with Peers() as some:
        yield some


@pytest.fixture
async def three(peers: Peers, tmp_path: Path) -> Peers:
    """Three members, all voters, with an agreed state."""
    cluster = cluster_name()
    peers.peers = [loopback_peer(tmp_path / f"peer{n}", cluster) for n in (1, 2, 3)]
    for peer in peers.peers:
        peer.start()
    for peer in peers.peers:
        await peer.listening()
    await peers.until("three voters agree", voting(3), limit_s=JOIN_LIMIT_S)
    return peers
