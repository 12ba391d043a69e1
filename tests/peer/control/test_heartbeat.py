"""Heartbeats: everyone linked hears us, and nobody speaks for another."""

from __future__ import annotations

import asyncio

import pytest
from fixtures.peer_ports import FakeLinks, turns
from fixtures.virtual_time import elapse, run
from sim.ports import SimClock

from aivailable.peer.control.heartbeat import COUNT_MAX, LEFT_MAX_S, ROWS_MAX, Heartbeats
from aivailable.wire.peer import DeviceLoad, Heartbeat, ReplicaLoad

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


def test_wild_numbers_are_in_their_range_before_anybody_reads_them() -> None:
    async def scenario() -> None:
        stage = Stage()
        load = ReplicaLoad("m#1.1", "m", "ready", -5, tokens_per_s=float("inf"), idle_ms=2**62)
        sane = ReplicaLoad("m#1.2", "m", "ready", 2, tokens_per_s=3.5, prefixes=(2**62,))
        device = DeviceLoad("d", -1, utilization=float("nan"), temperature_c=-4.0)
        beat = Heartbeat(
            *("n2", "i", 2**62, -1),
            replicas=(load, sane),
            devices=(device,),
            hears=("n3",) * (2 * ROWS_MAX),
            term=2**62,
            window_left_s=2**62,
        )
        stage.beats.receive("n2", beat)
        (heard,) = stage.heard
        assert (heard.seq, heard.applied, heard.term) == (COUNT_MAX, 0, COUNT_MAX)
        assert (heard.window_left_s, len(heard.hears)) == (LEFT_MAX_S, ROWS_MAX)
        wild, told = heard.replicas
        assert (wild.slots, wild.tokens_per_s, wild.idle_ms) == (0, 0.0, COUNT_MAX)
        assert told == sane, "what is in range is as it was told"
        assert heard.devices == (DeviceLoad("d", 0, temperature_c=-4.0),)

    run(scenario())
