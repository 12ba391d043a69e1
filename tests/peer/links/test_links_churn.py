"""Connections that die at random moments: the mesh always comes back to one a pair."""

from __future__ import annotations

import asyncio
import random
from itertools import permutations
from pathlib import Path

import pytest
from fixtures.mesh import DEADLINE_S, Node, introduce, linked, start_nodes, stop_nodes

from aivailable.errors import LinkLost
from aivailable.wire.generation import Cancel


async def streams_pass(nodes: list[Node]) -> None:
    """Linked, and a stream passes in each direction between every two. A side may for a moment
    still show a link that the other has cut: then all is tried again."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            await linked(*nodes)
            try:
                for node, other in permutations(nodes, 2):
                    stream = await node.links.open_stream(other.id, Cancel("r"))
                    assert await stream.receive() is None
            except LinkLost:
                continue
            return


@pytest.mark.parametrize("seed", range(5))
async def test_random_cuts_heal_to_one_connection_a_pair(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    nodes = await start_nodes(tmp_path, 3)
    introduce(*nodes)
    for _ in range(8):
        await linked(*nodes)
        for _ in range(rng.randint(1, 4)):
            victim = rng.choice(nodes)
            connections = list(victim.links._open)
            if connections:
                rng.choice(connections).close("cut by the test")
            for _ in range(rng.randint(0, 20)):
                await asyncio.sleep(0)
    await streams_pass(nodes)
    up = [sum(connection.up for connection in node.links._open) for node in nodes]
    assert up == [2, 2, 2], f"seed {seed}"
    # Cutting what has not said hello yet looks like a stranger's refusal; nothing else may.
    codes = [event[2] for node in nodes for event in node.listener.of("refused")]
    assert codes == ["not_member"] * len(codes), f"seed {seed}"
    await stop_nodes(nodes)
