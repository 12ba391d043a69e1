"""Clusters of one to five nodes of which some are off at night: what works, and what waits.

The table "What works when" of aivailable/peer/DESIGN.md is the expectation: each of its rows is
played with real peers on virtual time, and what is seen must be what the row says.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures.virtual_time import elapse
from sim.converge import unconverged
from sim.loop import SimLoop
from sim.run import overheard, unformed
from sim.workload import Workload, fake_deployment, make_key
from sim.world import World

import aivailable.peer
from aivailable.core.state.commands import Body, PutDeployment, PutKey, SetDraining, SetWindow
from aivailable.core.state.records import Role
from aivailable.core.state.state import State

DESIGN = Path(aivailable.peer.__file__).with_name("DESIGN.md")
SECTION = "## What works when"
FORM_LIMIT_S = 90.0
NIGHT_LIMIT_S = 90.0
MORNING_LIMIT_S = 120.0
BETWEEN_S = 5.0
"""From one switch to the next."""
RUN_LIMIT_S = 2000.0
POLL_S = 0.5
WATCH_S = 0.25
BYTES = 1 << 28
DONE = "acknowledged"
HERE, AWAY = "here", "away"
"""Two models: one on every host, one on the host that goes off last."""


@dataclass(frozen=True)
class Night:
    """Who goes off, and how."""

    nodes: int
    off: Callable[[Scene], list[str]]
    power: bool = False


class Scene:
    """A cluster that is there, and what a person can do to it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.work = Workload(world)
        self._count = 0

    # --- what is

    def state(self) -> State:
        """As the living node with the longest history has it."""
        return max(self.world.states().values(), key=lambda state: state.version)

    def with_role(self, role: Role) -> list[str]:
        members = self.state().members
        return [n for n in self.world.names if members[self.world.machine(n).node].role is role]

    def leader(self) -> str:
        name = self.world.leader()
        assert name is not None
        return name

    def followers(self) -> list[str]:
        """Voters that do not lead."""
        return [name for name in self.with_role(Role.VOTER) if name != self.leader()]

    def on(self) -> list[str]:
        return sorted(self.world.running)

    # --- what is done

    async def until(self, missing: Callable[[], str], limit_s: float) -> None:
        end = self.world.loop.time() + limit_s
        while reason := missing():
            picture = self.world.picture()
            assert self.world.loop.time() < end, f"not in {limit_s:g} s: {reason}\n{picture}"
            await elapse(POLL_S)

    async def whole(self, limit_s: float = FORM_LIMIT_S) -> None:
        """All are on and one, with the right number of voters, and everything wanted runs."""
        await self.until(lambda: unformed(self.world) or unconverged(self.world), limit_s)

    async def change(self, body: Body | None = None, at: str = "") -> str:
        """Propose (a new key, unless said otherwise) at one node: acknowledged or what else."""
        self._count += 1
        if body is None:
            body = PutKey(make_key(f"key {self._count}"))
        task = self.work.propose(at or self.on()[0], body, f"change-{self._count}")
        assert task is not None
        return await task

    async def stop(self, name: str) -> None:
        """SIGTERM and the end of the process."""
        task = self.world.on_behalf(name, lambda run: run.peer.stop())
        assert task is not None
        await task
        self.world.kill(name)

    async def off(self, name: str, *, power: bool) -> None:
        if power:
            self.world.kill(name, power=True)
        else:
            await self.stop(name)

    async def deploy(self, deployment: str, replicas: int) -> None:
        wish = PutDeployment(fake_deployment(deployment, BYTES, replicas))
        assert await self.change(wish) == DONE
        await self.whole()

    async def deploy_on(self, deployment: str, hosts: list[str]) -> None:
        """A model of one replica that runs on one of `hosts`."""
        others = [name for name in self.world.names if name not in hosts]
        for name in others:
            assert await self.change(SetDraining(self.world.machine(name).node, True)) == DONE
        await self.deploy(deployment, 1)
        for name in others:
            assert await self.change(SetDraining(self.world.machine(name).node, False)) == DONE
        await self.whole()
        (replica,) = self.state().replicas_of(deployment)
        assert replica.node in [self.world.machine(name).node for name in hosts]

    async def answered(self, deployment: str) -> bool:
        """Whether it answers through every node that is on."""
        asked = [self.work.ask(name, deployment) for name in self.on()]
        while any(not request.outcome for request in asked):
            await elapse(POLL_S)
        return all(request.outcome == "finished length" for request in asked)

    def how_served(self, deployment: str) -> str:
        """By a placement in the log, or by a standalone replica of one of the living."""
        for name in self.on():
            session = self.world.running[name].peer.session
            for load in session.agent.loads() if session is not None else ():
                if load.deployment == deployment and load.status == "ready":
                    return "a standalone replica" if load.island else "placed anew"
        return "not at all"


def play(nodes: int, story: Callable[[Scene], Awaitable[None]], seed: int = 1) -> None:
    """Form a cluster of this many, let the story run, and judge it by the checkers of all runs."""
    loop = SimLoop()
    world = World(seed, nodes, loop)

    async def watch() -> None:
        while True:
            world.watch()
            await elapse(WATCH_S)

    async def main() -> None:
        watcher = loop.create_task(watch(), name="watcher")
        scene = Scene(world)
        for name in world.names:
            world.boot(name)
        await scene.whole()
        await story(scene)
        scene.work.judge_requests()
        watcher.cancel()
        world.close()

    try:
        with overheard(world.checker):
            loop.run(main(), limit_s=RUN_LIMIT_S)
    finally:
        loop.close()
    assert world.checker.problems == []


NIGHTS = {
    "2 nodes, the observer stops": Night(2, lambda s: s.with_role(Role.OBSERVER)),
    "2 nodes, the voter stops": Night(2, lambda s: s.with_role(Role.VOTER)),
    "2 nodes, the voter loses power": Night(2, lambda s: s.with_role(Role.VOTER), power=True),
    "3 nodes, one stops": Night(3, lambda s: s.followers()[:1]),
    "3 nodes, one loses power": Night(3, lambda s: s.followers()[:1], power=True),
    "3 nodes, the leader stops": Night(3, lambda s: [s.leader()]),
    "3 nodes, the leader loses power": Night(3, lambda s: [s.leader()], power=True),
    "3 nodes, two stop": Night(3, lambda s: s.followers()),
    "3 nodes, two lose power": Night(3, lambda s: s.followers(), power=True),
    "3 nodes, the leader and one more stop": Night(3, lambda s: [s.leader(), s.followers()[0]]),
    "4 nodes, the observer and one voter stop": Night(
        4, lambda s: [*s.with_role(Role.OBSERVER), s.followers()[0]]
    ),
    "4 nodes, two voters stop": Night(4, lambda s: s.followers()),
    "5 nodes, two stop": Night(5, lambda s: s.followers()[:2]),
    "5 nodes, the leader and one more lose power": Night(
        5, lambda s: [s.leader(), s.followers()[0]], power=True
    ),
    "5 nodes, three stop": Night(5, lambda s: s.followers()[:3]),
    "5 nodes, three lose power": Night(5, lambda s: s.followers()[:3], power=True),
}
SLOW_FROM_NODES = 4


def table() -> dict[str, tuple[str, ...]]:
    """The rows of the table in DESIGN.md: first cell → the others."""
    section = DESIGN.read_text("utf-8").split(SECTION, 1)[1].split("\n## ", 1)[0]
    first = section.split("\n\n|", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in first]
    return {row[0]: tuple(row[1:]) for row in rows}


def test_the_table_has_every_case_and_no_other() -> None:
    assert sorted(table()) == sorted(NIGHTS)


def test_the_other_cases_name_tests_that_there_are() -> None:
    section = DESIGN.read_text("utf-8").split(SECTION, 1)[1].split("\n## ", 1)[0]
    named = [word.strip("`") for word in section.split() if word.startswith("`test_")]
    assert len(named) >= 6
    assert [name for name in named if name not in globals()] == []


async def live_through(scene: Scene, night: Night) -> tuple[str, ...]:
    """Evening, night and morning; what was seen, in the words of the table."""
    off = night.off(scene)
    await scene.deploy_on(AWAY, off[-1:])
    await scene.deploy(HERE, night.nodes)
    assert night.off(scene) == off, "nobody but the night changes who leads and votes"
    for name in off:
        await scene.off(name, power=night.power)
        if not night.power:
            await elapse(BETWEEN_S)
    here = "goes on" if await scene.answered(HERE) else "is gone"
    end = scene.world.loop.time() + NIGHT_LIMIT_S
    while not await scene.answered(AWAY):
        assert scene.world.loop.time() < end, scene.world.picture()
        await elapse(POLL_S)
    away = scene.how_served(AWAY)
    changes = "possible" if await scene.change() == DONE else "wait"
    voters = scene.with_role(Role.VOTER)
    votes = f"{sum(name in scene.on() for name in voters)} of {len(voters)}"
    for name in reversed(off):
        scene.world.boot(name)
    await scene.whole(MORNING_LIMIT_S)
    assert await scene.change() == DONE
    assert await scene.answered(HERE)
    assert await scene.answered(AWAY)
    return changes, here, away, votes


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * (night.nodes >= SLOW_FROM_NODES))
        for case, night in NIGHTS.items()
    ],
)
def test_a_night(case: str) -> None:
    seen: list[tuple[str, ...]] = []

    async def story(scene: Scene) -> None:
        seen.append(await live_through(scene, NIGHTS[case]))

    play(NIGHTS[case].nodes, story)
    assert seen == [table()[case]]


# The other cases of the section, each a test of its own.

SILENT_S = 600.0
"""core.cluster.voters: after this long a seat lost in silence is given to an observer."""
STEP_S = 30.0


@pytest.mark.slow
def test_a_voter_silent_for_ten_minutes_is_replaced() -> None:
    async def story(scene: Scene) -> None:
        (observer,), silent = scene.with_role(Role.OBSERVER), scene.followers()[0]
        await scene.off(silent, power=True)
        await elapse(SILENT_S - STEP_S)
        assert silent in scene.with_role(Role.VOTER)
        assert scene.with_role(Role.OBSERVER) == [observer]
        await scene.until(
            lambda: "" if observer in scene.with_role(Role.VOTER) else "no seat", 3 * STEP_S
        )
        await scene.until(
            lambda: "" if silent not in scene.with_role(Role.VOTER) else "two seats", STEP_S
        )
        # It counts: with another one off, two of three are left.
        await scene.off(next(name for name in scene.followers() if name != observer), power=True)
        await elapse(STEP_S)
        assert await scene.change() == DONE
        for name in scene.world.names:
            scene.world.boot(name)
        await scene.whole(MORNING_LIMIT_S)
        assert scene.with_role(Role.OBSERVER) == [silent]

    play(4, story)


def test_a_voter_that_said_goodbye_keeps_its_seat() -> None:
    async def story(scene: Scene) -> None:
        (observer,), away = scene.with_role(Role.OBSERVER), scene.followers()[0]
        await scene.stop(away)
        await elapse(2 * SILENT_S)
        assert scene.with_role(Role.OBSERVER) == [observer]
        assert away in scene.with_role(Role.VOTER)
        assert await scene.change() == DONE
        scene.world.boot(away)
        await scene.whole(MORNING_LIMIT_S)

    play(4, story)


def gone(scene: Scene, name: str) -> str:
    """What is missing until everyone else is a whole cluster without `name`."""
    node = scene.world.machine(name).node
    for other, state in scene.world.states().items():
        if other != name and node in state.members:
            return f"{other} still counts {name}"
    voters = [m for m in scene.state().members.values() if m.role is Role.VOTER]
    wanted = 1 if len(scene.state().members) < 3 else 3
    return "" if len(voters) == wanted else f"{len(voters)} voters"


@pytest.mark.parametrize("nodes", [2, 3])
def test_the_leader_leaves_and_another_takes_over(nodes: int) -> None:
    async def story(scene: Scene) -> None:
        leader = scene.leader()
        await scene.deploy_on(AWAY, [leader])
        task = scene.world.on_behalf(leader, lambda run: run.peer.members.leave())
        assert task is not None
        await task
        await scene.stop(leader)
        await scene.until(lambda: gone(scene, leader), NIGHT_LIMIT_S)
        assert await scene.change() == DONE
        await elapse(STEP_S)
        assert await scene.answered(AWAY)

    play(nodes, story)


@pytest.mark.parametrize("nodes", [2, 3])
def test_the_leader_is_removed_by_an_operator(nodes: int) -> None:
    async def story(scene: Scene) -> None:
        leader = scene.leader()
        operator = next(name for name in scene.on() if name != leader)
        node = scene.world.machine(leader).node
        await scene.change(SetWindow(0))
        task = scene.world.on_behalf(
            operator, lambda r: r.peer.members.remove(node, actor="operator:sim")
        )
        assert task is not None
        await task
        await scene.until(lambda: gone(scene, leader), NIGHT_LIMIT_S)
        assert await scene.change(at=operator) == DONE
        await elapse(STEP_S)
        # It is cut off and knows it: no session with the others' state, no way back by itself.
        assert node not in scene.world.running[operator].links.connected()
        assert node not in scene.state().members

    play(nodes, story)


@pytest.mark.parametrize("power", [False, True], ids=["stopped", "power lost"])
def test_all_off_and_on_in_another_order(power: bool) -> None:
    async def story(scene: Scene) -> None:
        await scene.deploy(HERE, 1)
        before = scene.state()
        for name in scene.world.names:
            await scene.off(name, power=power)
            await elapse(BETWEEN_S)
        *late, first = scene.world.names
        scene.world.boot(first)
        await elapse(STEP_S)
        assert await scene.change() != DONE
        scene.world.boot(late[-1])
        await elapse(STEP_S)
        assert await scene.change() == DONE
        assert await scene.answered(HERE)
        scene.world.boot(late[0])
        await scene.whole(MORNING_LIMIT_S)
        assert scene.state().cluster == before.cluster

    play(3, story)


def test_a_node_alone_goes_off_and_comes_back() -> None:
    async def story(scene: Scene) -> None:
        await scene.deploy(HERE, 1)
        for power in (False, True):
            await scene.off("n1", power=power)
            await elapse(STEP_S)
            scene.world.boot("n1")
            await scene.whole(MORNING_LIMIT_S)
            assert await scene.change() == DONE
            assert await scene.answered(HERE)

    play(1, story)


@pytest.mark.parametrize("nodes", [3, 5])
def test_a_removed_voter_comes_back_and_votes_again(nodes: int) -> None:
    """By hand, as a new node; the cluster's leader is the same all the time."""

    async def story(scene: Scene) -> None:
        leader, voter = scene.leader(), scene.followers()[0]
        node = scene.world.machine(voter).node
        task = scene.world.on_behalf(
            leader, lambda r: r.peer.members.remove(node, actor="operator:sim")
        )
        assert task is not None
        await task
        await elapse(STEP_S)
        task = scene.world.on_behalf(voter, lambda run: run.peer.members.leave())
        assert task is not None
        await task
        await scene.stop(voter)
        scene.world.machine(voter).reinstall(random.Random(nodes))
        scene.world.boot(voter)
        await scene.whole(MORNING_LIMIT_S)
        assert scene.leader() == leader
        assert node in scene.state().removed
        assert node not in scene.state().members

    play(nodes, story)
