"""Real peers on the loopback interface, for each test anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fixtures.homes import Homes
from fixtures.peers import Peers

DEVICES = "cpu:64MiB"


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Homes:
    return Homes(tmp_path_factory.mktemp("homes"))


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    """No peer yet; whatever the test adds is ended."""
    async with Peers() as some:
        yield some


@pytest.fixture
async def three(homes: Homes, peers: Peers, tmp_path: Path) -> Peers:
    """Three members, all voters, with an agreed state."""
    await homes.start(peers, tmp_path, 3, DEVICES)
    return peers
