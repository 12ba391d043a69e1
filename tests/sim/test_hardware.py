"""What the schedule does to machines has the effect that it is meant to have."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
from fixtures.virtual_time import elapse
from sim.hardware import Machine, make_machine
from sim.loop import Process, SimLoop
from sim.moves import Moves
from sim.ports import SimHome
from sim.run import unformed
from sim.world import World

from aivailable.raft.store import Operation

FORM_LIMIT_S = 90.0
SEED = 5


def written() -> Machine:
    machine = make_machine(1, random.Random(0))
    log = machine.log_of("c")
    log.journal, log.snapshot = bytearray(b"journal"), b"snapshot"
    return machine


def test_exactly_one_bit_of_journal_or_snapshot_is_flipped() -> None:
    places = set()
    for seed in range(40):
        machine = written()
        what = machine.flip_bit(random.Random(seed))
        log = machine.logs["c"]
        assert log.snapshot is not None
        was, now = b"journal" + b"snapshot", bytes(log.journal) + log.snapshot
        changed = [(a ^ b).bit_count() for a, b in zip(was, now, strict=True)]
        assert sum(changed) == 1
        places.add(what)
    assert len({"journal" in place for place in places}) == 2
    assert make_machine(1, random.Random(0)).flip_bit(random.Random(1)) == ""


def test_a_machine_is_told_of_each_write() -> None:
    machine = make_machine(1, random.Random(0))
    counted: list[int] = []
    machine.wrote = lambda: counted.append(1)
    home = SimHome(machine, Process("n1", 1))
    home.save("fact", b"1")
    home.remove("fact")
    assert len(counted) == 2


def test_a_copy_of_a_disk_shares_nothing_with_it() -> None:
    machine = written()
    copy = machine.copied("10.0.0.9")
    assert copy.node == machine.node
    assert bytes(copy.logs["c"].journal) == b"journal"
    copy.logs["c"].put(Operation("append", b"x"))
    copy.logs["c"].journal += b"more"
    copy.files["fact"] = b"1"
    assert bytes(machine.logs["c"].journal) == b"journal"
    assert machine.files == {}


def test_a_new_machine_in_an_old_ones_place_has_another_identity() -> None:
    machine = written()
    before = machine.node
    machine.reinstall(random.Random(7))
    assert machine.node != before
    assert machine.logs == {}


async def formed(world: World) -> None:
    for name in world.names:
        world.boot(name)
    end_s = world.loop.time() + FORM_LIMIT_S
    while missing := unformed(world):
        assert world.loop.time() < end_s, missing
        await elapse(0.25)
    world.main = next(s.cluster.cluster_id for s in world.states().values() if s.cluster)


def linked(world: World) -> dict[str, int]:
    return {name: len(run.links.connected()) for name, run in sorted(world.running.items())}


@pytest.mark.parametrize("how", ["one", "all", "exchange"])
def test_links_come_back_wherever_the_machines_are(how: str) -> None:
    async def scenario() -> None:
        await formed(world)
        moved = {"one": ["n1"], "all": world.names, "exchange": ["n1", "n2"]}[how]
        before = [world.machine(name).address for name in moved]
        world.readdress(list(moved), exchange=how == "exchange")
        after = [world.machine(name).address for name in moved]
        assert all(a != b for a, b in zip(before, after, strict=True))
        if how == "exchange":
            assert sorted(before) == sorted(after)
        await elapse(4.0)
        broken = [line for line in world.trace.lines if "link down" in line and "silent" in line]
        assert broken
        await elapse(16.0)
        assert linked(world) == dict.fromkeys(world.names, len(world.names) - 1)
        for state in world.states().values():
            for name in moved:
                member = state.members[world.machine(name).node]
                assert member.addresses == (world.machine(name).address,)

    world = World(SEED, 3, SimLoop())
    play(world, scenario)


def torn(
    machine: Machine, address: str, copied: Callable[..., Machine] = Machine.copied
) -> Machine:
    """A copy whose log takes a while to open: its links are refused before that."""
    copy = copied(machine, address)
    for log in copy.logs.values():
        log.journal += b"torn"
        log.latency_s = 0.5
    return copy


@pytest.mark.parametrize("soon", [False, True])
def test_a_clone_is_refused_by_all_and_told_what_it_is(
    soon: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        await formed(world)
        moves = Moves(world)
        await elapse(10.0)
        assert moves.whole()
        if soon:
            monkeypatch.setattr(Machine, "copied", torn)
        world.clone("n2")
        await elapse(4.0)
        world.watch()
        ((copy, run),) = world.clones.values()
        assert copy.node == world.machine("n2").node
        assert run.links.connected() == ()
        assert "cloned_identity" in run.peer.membership.advice
        world.end_clone("n2")
        await elapse(1.0)
        assert linked(world) == dict.fromkeys(world.names, len(world.names) - 1)
        assert moves.whole()

    world = World(SEED, 3, SimLoop())
    play(world, scenario)


def test_a_clone_once_refused_links_to_nobody_that_starts_later() -> None:
    """Its log is another one by then: a vote or an acknowledgement of it would lose commands."""

    async def scenario() -> None:
        await formed(world)
        world.clone("n2")
        await elapse(4.0)
        for name in ("n1", "n3"):
            world.kill(name, power=True)
        world.kill("n2")
        for name in ("n1", "n3"):
            world.boot(name)
        await elapse(10.0)
        assert linked(world) == {"n1": 1, "n3": 1}
        world.end_clone("n2")
        world.boot("n2")
        await elapse(5.0)
        assert linked(world) == dict.fromkeys(world.names, 2)

    world = World(SEED, 3, SimLoop())
    play(world, scenario)


def test_a_clone_that_is_told_nothing_is_a_problem() -> None:
    async def scenario() -> None:
        await formed(world)
        world.clone("n2")
        world.end_clone("n2")

    world = World(SEED, 3, SimLoop())
    try:
        world.loop.run(scenario(), limit_s=300.0)
    finally:
        world.loop.close()
    assert len(world.checker.problems) == 1


def play(world: World, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run the story; nothing may be a problem."""

    async def main() -> None:
        await scenario()

    try:
        world.loop.run(main(), limit_s=300.0)
    finally:
        world.loop.close()
    assert world.checker.problems == []
