"""What a replica says of its own use: idle since, queued since, how busy."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from fixtures.peer_ports import FakeLauncher, turns
from fixtures.virtual_time import elapse, run
from sim.ports import SimClock

from aivailable.core.state.records import Claim, Replica
from aivailable.peer.serving.replicas import BUSY_WINDOW_S, LocalReplica
from aivailable.wire.generation import Finished, Generate
from aivailable.wire.worker import Counters, Load

RECORD = Replica("m#1.1", "m", "d", 1, "n1", (Claim("d0", 100),), context=64, slots=2)


async def up() -> tuple[LocalReplica, FakeLauncher, asyncio.Task[str]]:
    launcher = FakeLauncher()
    replica = LocalReplica(RECORD, SimClock(), lambda: None, 16)
    life = asyncio.ensure_future(replica.run_worker(launcher, Load("m#1.1", "fake", "", 64, 2, ())))
    await turns()
    assert replica.load().idle_ms == 0, "it loads: that is no idleness"
    launcher.workers[-1].ready()
    await turns()
    return replica, launcher, life


def ask(replica: LocalReplica, name: str) -> asyncio.Task[None]:
    async def read() -> None:
        async for _ in replica.generate(Generate(name, "m", "m#1.1", prompt="x")):
            pass

    return asyncio.ensure_future(read())


def test_idle_since_the_last_end_and_never_while_it_works() -> None:
    async def scenario() -> None:
        replica, launcher, life = await up()
        await elapse(3.0)
        assert replica.load().idle_ms == 3000, "since it became ready"
        reading = ask(replica, "r1")
        await turns()
        await elapse(5.0)
        assert replica.load().idle_ms == 0
        launcher.workers[-1].step(finished=(Finished("r1", "stop"),))
        await reading
        await elapse(2.0)
        assert replica.load().idle_ms == 2000
        replica.kill()
        await life

    run(scenario())


def test_queued_since_all_slots_were_taken() -> None:
    async def scenario() -> None:
        replica, launcher, life = await up()
        reading = [ask(replica, f"r{number}") for number in range(3)]
        await turns()
        await elapse(4.0)
        assert replica.load().queued_ms == 4000
        launcher.workers[-1].step(finished=(Finished("r0", "stop"),))
        await turns()
        assert replica.load().queued_ms == 0
        replica.kill()
        await asyncio.gather(life, *reading)

    run(scenario())


def test_waits_in_the_queue_are_measured_until_the_worker_has_the_request() -> None:
    async def scenario() -> None:
        replica, launcher, life = await up()
        reading = [ask(replica, f"r{number}") for number in range(3)]
        await turns()
        assert replica.queue_waits.cumulative()[0] == 2, "two had a slot at once"
        await elapse(4.0)
        launcher.workers[-1].step(finished=(Finished("r0", "stop"),))
        await turns()
        waits = replica.queue_waits
        counts = dict(zip((*waits.bounds, None), waits.cumulative(), strict=True))
        assert (counts[2.5], counts[5.0], counts[None]) == (2, 3, 3)
        assert waits.sum == pytest.approx(4.0)
        replica.kill()
        await asyncio.gather(life, *reading)

    run(scenario())


def test_every_counter_of_the_worker_is_told() -> None:
    async def scenario() -> None:
        replica, launcher, life = await up()
        names = [field.name for field in dataclasses.fields(Counters)]
        counted = {name: number for number, name in enumerate(names, 1)}
        launcher.workers[-1].step(counters=Counters(**counted))
        await turns()
        assert {name: getattr(replica.load(), name) for name in names} == counted
        replica.kill()
        await life

    run(scenario())


def test_busy_is_a_slow_average_of_its_slots() -> None:
    async def scenario() -> None:
        replica, launcher, life = await up()
        reading = ask(replica, "r1")
        await turns()
        for _ in range(10 * int(BUSY_WINDOW_S)):
            await elapse(1.0)
            busy = replica.load().busy
        assert busy == pytest.approx(0.5, abs=0.01), "one of two slots"
        launcher.workers[-1].step(finished=(Finished("r1", "stop"),))
        await reading
        await elapse(BUSY_WINDOW_S)
        assert replica.load().busy == pytest.approx(0.5 / 2.718, abs=0.02)
        replica.kill()
        await life

    run(scenario())
