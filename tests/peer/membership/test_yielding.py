"""A pristine cluster of one and a seed that may not know of it, on fake ports and virtual time."""

from __future__ import annotations

import asyncio

import pytest
from fixtures.peer_ports import World
from fixtures.virtual_time import elapse, run
from sim.ports import SimIdentity

from aivailable.peer.membership.membership import PRISTINE_PERIOD_S
from aivailable.peer.membership.yielding import SEED_PATIENCE_S
from aivailable.peer.node import Peer
from aivailable.peer.ports import PeerConfig
from aivailable.wire.join import JoinAnswer, JoinOffer, Seat

SEED = ("192.0.2.2", 8421)
GREATEST_ID = "zzzzzzzz" + "b" * 18
"""Of two pristine clusters of one, the other should come to ours."""
FOUND_S = 30.0


@pytest.mark.parametrize("pristine", [True, False], ids=["as new as ours", "in use"])
def test_a_seed_that_does_not_come_is_gone_to(pristine: bool) -> None:
    """It was named here, not there: it never hears of us. One in use is gone to at once."""

    async def on_virtual_time() -> None:
        world, other = World(), SimIdentity.named("other")
        peer = Peer(PeerConfig("host1", seeds=(SEED,)), world.ports())
        await peer.start()
        await elapse(FOUND_S)
        assert peer.observation.status().cluster_id not in ("", GREATEST_ID)
        seat = Seat(other.node, other.certificate, (SEED[0],), SEED[1], True)
        offer = JoinOffer(b"n" * 32, other.node, GREATEST_ID, "default", 1, pristine, True, 1, 1)
        world.join_client.answers[SEED] = JoinAnswer("", "", GREATEST_ID, "default", (seat,))
        world.join_client.offers[SEED] = offer
        await elapse(SEED_PATIENCE_S - 1.0)
        assert (world.join_client.requests == []) is pristine
        await elapse(1.0 + 2 * PRISTINE_PERIOD_S)
        assert len(world.join_client.requests) == 1
        assert peer.session is not None
        assert peer.session.file.cluster_id == GREATEST_ID
        async with asyncio.timeout(60.0):
            await peer.stop()

    run(on_virtual_time(), limit_s=600.0)
