"""Real peers that are attacked: on the loopback interface, or as hosts on a bridge."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fixtures.homes import Homes
from fixtures.netns import Lan, lan, missing
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


@pytest.fixture
def hosts() -> Iterator[Lan]:
    """Three hosts on one bridge; skipped with the reason where there are no namespaces."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with lan(3) as one:
        yield one
