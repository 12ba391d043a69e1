"""Clusters that end in others, on virtual time: recovery from a survivor, and who was away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from fixtures.virtual_time import elapse
from sim.loop import SimLoop
from sim.workload import fake_deployment, make_key
from sim.world import World

from aivailable.core.state.commands import PutDeployment, PutKey, SetWindow
from aivailable.core.state.merging import Recovered
from aivailable.core.state.records import Role
from aivailable.core.state.state import State, state_digest
from aivailable.errors import RequestError

FORM_LIMIT_S = 60.0
FIND_LIMIT_S = 90.0
POLL_S = 0.25


def run(seed: int, count: int, scenario: Callable[[World], Awaitable[None]]) -> World:
    loop = SimLoop()
    try:
        world = World(seed, count, loop)
        loop.run(scenario(world), limit_s=600.0)
    finally:
        loop.close()
    assert world.checker.problems == []
    return world


async def until(world: World, done: Callable[[], bool], limit_s: float = FIND_LIMIT_S) -> None:
    end = world.loop.time() + limit_s
    while not done():
        assert world.loop.time() < end, f"not in {limit_s} s:\n{world.picture()}"
        await elapse(POLL_S)


def cluster_of(world: World, name: str) -> str:
    state = world.state_of(name)
    return "" if state is None or state.cluster is None else state.cluster.cluster_id


def together(world: World, names: list[str]) -> bool:
    """These, and nobody else, are members of one cluster, and all say the same."""
    states = [world.state_of(name) for name in names]
    nodes = {world.machine(name).node for name in names}
    return all(state is not None and set(state.members) == nodes for state in states) and (
        len({state_digest(state) for state in states if state is not None}) == 1
    )


async def formed(world: World, names: list[str]) -> None:
    for name in names:
        world.boot(name)
    await until(world, lambda: together(world, names), FORM_LIMIT_S)


async def recover(world: World, name: str) -> Recovered:
    task = world.on_behalf(name, lambda run: run.peer.members.recover(actor="operator:test"))
    assert task is not None
    result = await task
    assert isinstance(result, Recovered)
    return result


async def change(world: World, name: str, label: str) -> None:
    """One acknowledged command through this node."""
    key = PutKey(make_key(label))
    task = world.on_behalf(
        name, lambda run: run.peer.changes.propose(key, actor="operator:test", reason=label)
    )
    assert task is not None
    await task


def labels(world: World, name: str) -> set[str]:
    state = world.state_of(name)
    assert state is not None
    return {event.reason for event in state.events}


@pytest.mark.parametrize("seed", range(3))
def test_recover_founds_anew_and_the_others_find_their_way(seed: int) -> None:
    async def scenario(world: World) -> None:
        names = world.names
        await formed(world, names)
        await until(world, lambda: voters(world, "n1") == 3)
        await change(world, "n1", "kept")
        await until(world, lambda: all("kept" in labels(world, name) for name in names))
        with pytest.raises(RequestError, match="has a leader"):
            await recover(world, "n2")
        old = cluster_of(world, "n2")
        for name in ("n1", "n3"):
            world.kill(name)
        await elapse(3.0)
        with pytest.raises(RequestError, match="s only"):
            await recover(world, "n2")
        await elapse(12.0)
        result = await recover(world, "n2")
        assert sorted(result.gone) == ["n1", "n3"]
        await until(world, lambda: world.leader() == "n2")
        fresh = cluster_of(world, "n2")
        assert fresh != old
        await change(world, "n2", "after")
        assert labels(world, "n2") >= {"kept", "after"}
        world.kill("n2", power=True)
        world.boot("n2")
        await until(world, lambda: world.leader() == "n2")
        assert labels(world, "n2") >= {"kept", "after"}
        world.boot("n3")
        await until(world, lambda: together(world, ["n2", "n3"]))
        world.boot("n1")
        await until(world, lambda: together(world, names))
        assert {cluster_of(world, name) for name in names} == {fresh}
        await until(world, lambda: voters(world, "n2") == 3)
        await change(world, "n1", "again")

    run(seed, 3, scenario)


def voters(world: World, name: str) -> int:
    state = world.state_of(name)
    return 0 if state is None else sum(m.role is Role.VOTER for m in state.members.values())


def test_a_majority_that_was_only_cut_off_is_not_taken_over() -> None:
    """The survivor was wrong: the others live. They stay what they are."""

    async def scenario(world: World) -> None:
        await formed(world, world.names)
        await until(world, lambda: voters(world, "n1") == 3)
        old = cluster_of(world, "n1")
        pairs = [(a, b) for a in ("n1", "n2") for b in ("n3",)]
        both = [*pairs, *((b, a) for a, b in pairs)]
        for source, target in both:
            world.damage.cut(source, target, world.loop.time())
        await elapse(15.0)
        await recover(world, "n3")
        world.damage.mend(both)
        await elapse(40.0)
        assert {cluster_of(world, name) for name in ("n1", "n2")} == {old}
        assert cluster_of(world, "n3") != old
        await change(world, "n1", "alive")

    run(5, 3, scenario)


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.005, 0.01, 0.02, 0.05])
def test_a_death_in_the_middle_leaves_the_old_cluster_or_the_new(after_s: float) -> None:
    async def scenario(world: World) -> None:
        survivor, other = "n1", "n2"
        await formed(world, world.names)
        await until(world, lambda: voters(world, survivor) == 3)
        task = world.on_behalf(
            survivor,
            lambda run: run.peer.changes.propose(
                PutDeployment(fake_deployment("model", 1 << 20, 1)), actor="operator:t", reason="d"
            ),
        )
        assert task is not None
        await task
        await elapse(2.0)
        old = cluster_of(world, survivor)
        world.kill(other)
        world.kill("n3")
        await elapse(15.0)
        attempt = world.on_behalf(
            survivor, lambda run: run.peer.members.recover(actor="operator:t")
        )
        assert attempt is not None
        await elapse(after_s)
        world.kill(survivor, power=True)
        world.boot(survivor)
        await elapse(20.0)
        state = world.state_of(survivor)
        assert state is not None
        if state.cluster is not None and state.cluster.cluster_id != old:
            assert world.leader() == survivor
        else:
            await recover(world, survivor)
            await until(world, lambda: world.leader() == survivor)
        state = world.state_of(survivor)
        assert state is not None
        assert list(state.deployments) == ["model"]
        await change(world, survivor, "alive")
        world.boot(other)
        await until(world, lambda: together(world, ["n1", "n2"]))

    run(11, 3, scenario)


class Two:
    """Two clusters that have not heard of each other: `first` and `second`, by names."""

    def __init__(self, world: World, first: int) -> None:
        self.world = world
        self.first, self.second = world.names[:first], world.names[first:]
        pairs = [(a, b) for a in self.first for b in self.second]
        self._pairs = [*pairs, *((b, a) for a, b in pairs)]

    async def form(self) -> None:
        """`second` founds when `first` is there: its nodes must not hear each other before."""
        for source, target in self._pairs:
            self.world.damage.cut(source, target, self.world.loop.time())
        await formed(self.world, self.first)
        await formed(self.world, self.second)

    def meet(self) -> None:
        self.world.damage.mend(self._pairs)

    def ids(self) -> tuple[str, str]:
        return cluster_of(self.world, self.first[0]), cluster_of(self.world, self.second[0])

    def ranked(self) -> tuple[list[str], list[str]]:
        """(winner's names, loser's names) by the rule, said once more here."""
        mine, other = self.ids()
        keys = (-len(self.first), mine), (-len(self.second), other)
        both = self.first, self.second
        return both if keys[0] < keys[1] else (both[1], both[0])


async def order(world: World, name: str, into: str) -> None:
    task = world.on_behalf(name, lambda run: run.peer.members.merge(into, actor="operator:t"))
    assert task is not None
    await task


async def deploy(world: World, name: str, label: str) -> None:
    body = PutDeployment(fake_deployment(label, 1 << 20, 1))
    task = world.on_behalf(
        name, lambda run: run.peer.changes.propose(body, actor="operator:t", reason=label)
    )
    assert task is not None
    await task


async def open_window(world: World, name: str) -> None:
    task = world.on_behalf(
        name,
        lambda run: run.peer.changes.propose(SetWindow(600), actor="operator:t", reason="admit"),
    )
    assert task is not None
    await task


def advice(world: World, name: str) -> str:
    return world.running[name].peer.observation.status().advice


@pytest.mark.parametrize("seed", range(2))
def test_two_unused_clusters_that_meet_become_one_by_themselves(seed: int) -> None:
    async def scenario(world: World) -> None:
        two = Two(world, 3)
        await two.form()
        winner = two.ids()[0]
        two.meet()
        await until(world, lambda: together(world, world.names))
        assert {cluster_of(world, name) for name in world.names} == {winner}
        await change(world, "n5", "alive")

    run(seed, 5, scenario)


def test_used_clusters_stay_apart_until_the_operator_says_so_and_bring_what_they_have() -> None:
    async def scenario(world: World) -> None:
        two = Two(world, 3)
        await two.form()
        await deploy(world, "n1", "both")
        await deploy(world, "n1", "theirs")
        await deploy(world, "n4", "both")
        await deploy(world, "n4", "ours")
        await change(world, "n4", "a key of ours")
        keys = set(of(world, "n4").keys) | set(of(world, "n1").keys)
        winner, loser = two.ids()
        two.meet()
        await elapse(30.0)
        assert two.ids() == (winner, loser)
        assert f"aivailable merge {winner}` here" in advice(world, "n4")
        assert f"aivailable merge {winner}` there" in advice(world, "n2")
        with pytest.raises(RequestError, match="there"):
            await order(world, "n1", loser)
        with pytest.raises(RequestError, match="no cluster"):
            await order(world, "n4", "x" * 26)
        await order(world, "n4", winner)
        await until(world, lambda: together(world, world.names))
        assert cluster_of(world, "n4") == winner
        wanted = {"both", "theirs", "ours"}
        await until(world, lambda: set(of(world, "n1").deployments) == wanted)
        assert keys <= set(of(world, "n1").keys)
        assert advice(world, "n1") == advice(world, "n4") == ""
        await until(world, lambda: "belongings" not in world.machine("n4").files)

    run(7, 5, scenario)


def of(world: World, name: str) -> State:
    state = world.state_of(name)
    assert state is not None
    return state


def test_a_closed_window_of_the_winner_refuses_and_says_what_to_type() -> None:
    async def scenario(world: World) -> None:
        two = Two(world, 3)
        await two.form()
        winner, loser = two.ids()
        lock = world.on_behalf(
            "n1",
            lambda run: run.peer.changes.propose(SetWindow(0), actor="operator:t", reason="lock"),
        )
        assert lock is not None
        await lock
        two.meet()
        await elapse(20.0)
        assert two.ids() == (winner, loser)
        with pytest.raises(RequestError, match="aivailable admit"):
            await order(world, "n4", winner)

    run(8, 5, scenario)


@pytest.mark.parametrize("seed", range(2))
def test_a_member_that_was_off_finds_its_way(seed: int) -> None:
    async def scenario(world: World) -> None:
        two = Two(world, 3)
        await two.form()
        await until(world, lambda: voters(world, two.second[0]) == 3)
        winners, losers = two.ranked()
        winner = cluster_of(world, winners[0])
        off = losers[seed]
        world.kill(off)
        two.meet()
        rest = [name for name in world.names if name != off]
        await until(world, lambda: all(cluster_of(world, name) == winner for name in rest))
        await elapse(20.0)
        world.boot(off)
        await until(world, lambda: together(world, world.names))

    run(seed, 6, scenario)


WATCH_S = 0.002
STEPS: dict[str, Callable[[World, list[str], list[str]], bool]] = {
    "met": lambda world, winners, losers: True,
    "adopted": lambda world, winners, losers: any(
        state.tombstones for name, state in world.states().items() if name in winners
    ),
    "packed": lambda world, winners, losers: any(
        "belongings" in world.machine(name).files for name in losers
    ),
    "dissolved": lambda world, winners, losers: any(
        state.dissolved is not None for state in world.states().values()
    ),
    "first admitted": lambda world, winners, losers: any(
        len(state.members) > len(winners)
        for name, state in world.states().items()
        if name in winners
    ),
    "first moved": lambda world, winners, losers: any(
        cluster_of(world, name) == cluster_of(world, winners[0]) for name in losers
    ),
    "all moved": lambda world, winners, losers: all(
        cluster_of(world, name) == cluster_of(world, winners[0]) for name in losers
    ),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("whom", ["losers", "winners", "all"])
@pytest.mark.slow
def test_deaths_at_any_step_leave_one_cluster_in_the_end(step: str, whom: str) -> None:
    async def scenario(world: World) -> None:
        two = Two(world, 3)
        await two.form()
        winners, losers = two.ranked()
        winner = cluster_of(world, winners[0])
        two.meet()
        while not STEPS[step](world, winners, losers):
            await elapse(WATCH_S)
        victims = {"losers": losers, "winners": winners, "all": world.names}[whom]
        for name in victims:
            world.kill(name, power=whom != "winners")
        await elapse(2.0)
        for name in victims:
            world.boot(name)
        await elapse(40.0)
        ended = [of(world, name).dissolved is not None for name in world.names]
        assert not any(ended), f"nobody stays in a cluster that ended:\n{world.picture()}"
        if cluster_of(world, losers[0]) != winner:
            # A window that nobody could time any more has closed: the operators do it, unless
            # opening the winner's was all that was missing.
            await open_window(world, winners[0])
            await elapse(12.0)
        if cluster_of(world, losers[0]) != winner:
            await order(world, losers[0], winner)
        await until(world, lambda: together(world, world.names))
        assert {cluster_of(world, name) for name in world.names} == {winner}
        await change(world, losers[-1], "alive")

    run(21, 5, scenario)
