"""Heartbeats: everyone linked hears us, and nobody speaks for another."""

from __future__ import annotations

import asyncio

import pytest
from fixtures.peer_ports import FakeLinks, turns
from fixtures.virtual_time import elapse, run
from sim.ports import SimClock

from aivailable.peer.control.heartbeat import Heartbeats
from aivailable.wire.peer import Heartbeat, ReplicaLoad

PERIOD_S = 1.0


class Stage:
    def __init__(self) -> None:
        self.links = FakeLinks(peers=["n2", "n3"])
        self.heard: list[Heartbeat] = []
        self.replicas: tuple[ReplicaLoad, ...] = ()
        self.beats = Heartbeats(
            "n1", SimClock(), self.links, PERIOD_S, self.sample, self.heard.append
        )

    def sample(self) -> Heartbeat:
        return Heartbeat("", "i1", 0, 7, replicas=self.replicas)


def test_every_linked_member_hears_us_once_a_period_in_sequence() -> None:
    async def scenario() -> None:
        stage = Stage()
        running = asyncio.ensure_future(stage.beats.run())
        await elapse(3.5 * PERIOD_S)
        for node in ("n2", "n3"):
            beats = [beat for to, beat in stage.links.sent if to == node]
            assert [beat.seq for beat in beats] == [1, 2, 3, 4]
            assert {(beat.node, beat.hears) for beat in beats} == {("n1", ("n2", "n3"))}
        running.cancel()

    run(scenario())


def test_news_is_told_at_once() -> None:
    async def scenario() -> None:
        stage = Stage()
        running = asyncio.ensure_future(stage.beats.run())
        await turns()
        stage.links.sent.clear()
        stage.replicas = (ReplicaLoad("m#1.1", "m", "ready", 2),)
        stage.beats.nudge()
        await turns()
        assert [beat.replicas for _, beat in stage.links.sent] == [stage.replicas] * 2
        running.cancel()

    run(scenario())


def test_the_picture_holds_what_each_said_of_itself_and_when() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage()
        stage.beats.know(["n1", "n2", "n3"])
        stage.beats.receive("n2", Heartbeat("n2", "i2", 1, 5))
        stage.beats.receive("n3", Heartbeat("n2", "a lie", 9, 99))
        said_s = loop.time()
        await elapse(4.0)
        liveness = stage.beats.liveness()
        assert sorted(liveness.heard) == ["n1", "n2"]
        assert liveness.heard["n2"].heartbeat.instance_id == "i2"
        assert liveness.heard["n2"].at_s == said_s
        assert liveness.heard["n1"].at_s == liveness.now_s == pytest.approx(said_s + 4)
        assert [beat.instance_id for beat in stage.heard] == ["i2"]

    run(scenario())


def test_who_is_no_member_is_forgotten_and_awaited_anew() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage()
        stage.beats.know(["n1", "n2"])
        first_s = loop.time()
        stage.beats.receive("n2", Heartbeat("n2", "i2", 1, 5))
        await elapse(2.0)
        stage.beats.know(["n1", "n2"])
        assert stage.beats.liveness().known_s["n2"] == first_s
        stage.beats.know(["n1"])
        assert sorted(stage.beats.liveness().heard) == ["n1"]
        await elapse(2.0)
        stage.beats.know(["n1", "n2"])
        assert stage.beats.liveness().known_s["n2"] == pytest.approx(first_s + 4)

    run(scenario())
