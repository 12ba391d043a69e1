"""With a join key among several clusters of one name: each is tried, none is mistaken for nobody.
A real peer on fake ports and virtual time; what the join client answers is scripted."""

from __future__ import annotations

import logging

import pytest
from fixtures.peer_ports import World
from fixtures.virtual_time import elapse, run
from sim.ports import SimIdentity

from aivailable.core.ids import short
from aivailable.peer.membership.membership import ASK_PERIOD_S
from aivailable.peer.node import Peer
from aivailable.peer.ports import PeerConfig, Sighting
from aivailable.wire.join import JoinAnswer, JoinOffer, Seat

SEEK_S = 5.0
"""Looking around, at most."""


class Neighbour:
    """A node of another cluster of our name, at an address of its own."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.identity = SimIdentity.named(f"other{number}")
        self.address = (f"192.0.2.{number}", 8421)
        self.cluster_id = f"{number}" * 26

    def sighting(self) -> Sighting:
        prefix = short(self.cluster_id)
        node = short(self.identity.node)
        return Sighting(node, "i", prefix, "default", False, 8420, (self.address,))

    def refuses(self, code: str, message: str = "another join key") -> None:
        self.world.join_client.answers[self.address] = JoinAnswer(code, message)

    def admits(self) -> None:
        seat = Seat(self.identity.node, self.identity.certificate, (self.address[0],), 8421, True)
        answer = JoinAnswer("", "", self.cluster_id, "default", (seat,))
        self.world.join_client.answers[self.address] = answer

    def offers(self) -> None:
        """It may be looked at: in use, two members."""
        self.world.join_client.offers[self.address] = JoinOffer(
            b"n" * 32, self.identity.node, self.cluster_id, "default", 2, False, False, 1, 1
        )


class Stage:
    """One peer, and three neighbours to be shown."""

    def __init__(self) -> None:
        self.world = World()
        self.said: list[str] = []
        self.peer = Peer(PeerConfig("host1"), self.world.ports(), self.said.append)
        self.others = [Neighbour(self.world, number) for number in (2, 3, 4)]

    def show(self) -> None:
        self.world.discovery.show(*(other.sighting() for other in self.others))

    @property
    def cluster_id(self) -> str:
        """Of the cluster that the peer takes itself to belong to; "" = none."""
        return "" if self.peer.session is None else self.peer.session.file.cluster_id

    async def __aenter__(self) -> Stage:
        await self.peer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.peer.stop()


def test_each_cluster_of_the_name_is_tried_until_one_proves_the_key() -> None:
    async def scenario() -> None:
        async with Stage() as stage:
            stage.others[0].refuses("bad_proof")
            stage.others[1].refuses("no_key")
            stage.others[2].admits()
            stage.show()
            await elapse(SEEK_S)
            assert stage.cluster_id == stage.others[2].cluster_id
            assert stage.world.join_client.asked == [other.address for other in stage.others]

    run(scenario(), limit_s=600.0)


def test_none_that_proves_the_key_is_waited_for_and_nothing_is_founded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with Stage() as stage:
            for other in stage.others:
                other.refuses("bad_proof")
                other.offers()
            # One that does not answer, too: it counts as not seen, the others must not.
            del stage.world.join_client.answers[stage.others[1].address]
            del stage.world.join_client.offers[stage.others[1].address]
            stage.show()
            await elapse(20 * ASK_PERIOD_S)
            status = stage.peer.observation.status()
            assert (status.phase, status.advice) == ("waiting", "another join key")
            asked = stage.world.join_client.asked
            assert all(asked.count(other.address) >= 5 for other in stage.others)
            assert len([line for line in stage.said if "another join key" in line]) == 2
            # And it is there at once when a cluster gets our key.
            stage.others[2].admits()
            await elapse(2 * ASK_PERIOD_S)
            assert stage.cluster_id == stage.others[2].cluster_id

    run(scenario(), limit_s=600.0)
    warned = [line for line in caplog.messages if "another join key" in line]
    assert len(warned) == 2, "one for each cluster, not for each knock"


@pytest.mark.parametrize("code", ["bad_proof", "no_key"])
def test_a_pristine_cluster_of_one_stays_apart_from_another_key(code: str) -> None:
    async def scenario() -> None:
        async with Stage() as stage:
            await elapse(30.0)
            own = stage.cluster_id
            assert own
            for other in stage.others:
                other.offers()
                other.refuses(code)
            stage.show()
            await elapse(20.0)
            assert stage.cluster_id == own
            assert len([line for line in stage.said if "stays apart" in line]) == 3
            assert stage.peer.observation.status().phase == "member"
            stage.others[1].admits()
            await elapse(20.0)
            assert stage.cluster_id == stage.others[1].cluster_id

    run(scenario(), limit_s=600.0)


def test_a_closed_window_is_no_reason_to_hide_a_cluster() -> None:
    async def scenario() -> None:
        async with Stage() as stage:
            for other in stage.others:
                other.refuses("window_closed", "type `aivailable admit`")
            stage.show()
            await elapse(SEEK_S)
            assert stage.peer.observation.status().phase == "waiting"
            assert frozenset(stage.world.join_client.asked) == {stage.others[0].address}

    run(scenario(), limit_s=600.0)


def test_logged_as_a_warning_so_that_the_log_file_has_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with Stage() as stage:
            stage.others[0].refuses("no_key")
            stage.world.discovery.show(stage.others[0].sighting())
            await elapse(SEEK_S)

    run(scenario(), limit_s=600.0)
    found = [entry for entry in caplog.records if "refused by" in entry.message]
    assert [entry.levelno for entry in found] == [logging.WARNING]
