"""A disk that takes nothing: the node steps down, says so, serves on, and comes back by itself."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from fixtures.raft_cluster import Cluster, MemoryLink, Recorder
from fixtures.virtual_time import elapse, run

from aivailable.core.state.records import Role
from aivailable.errors import ProposalError, ProposalRejected
from aivailable.raft import store as store_module
from aivailable.raft.node import RaftNode
from aivailable.raft.store import FileStore, MemoryStore, Operation, StoreUnusable

T = TypeVar("T")
FULL = OSError(errno.ENOSPC, "No space left on device")


class Inline:
    """A disk thread without a thread."""

    async def run(self, work: Callable[[], T]) -> T:
        return work()

    def close(self) -> None:
        """Nothing runs."""


@pytest.mark.parametrize("leading", [True, False])
def test_a_full_disk_costs_the_cluster_one_node_for_as_long_as_it_lasts(leading: bool) -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            leader = await cluster.leader()
            name = next(n for n in "ABC" if (n == leader.node_id) is leading)
            node, store = cluster.nodes[name], cluster.stores[name]
            await leader.propose(b"one", deadline_s=1.0)
            await cluster.converge()
            store.fail_with = FULL
            cluster.changes.clear()
            with pytest.raises(ProposalError):
                await node.propose(b"two", deadline_s=2.0 if leading else 0.2)
            await cluster.until(lambda: node.failure is not None)
            assert cluster.changes.is_set(), "nobody is told"
            assert not node.is_leader
            assert cluster.machines[name].payloads[0] == b"one", "reads go on"
            with pytest.raises(ProposalRejected, match="No space left"):
                await node.propose(b"here", deadline_s=1.0)
            new = await cluster.leader(among="ABC".replace(name, ""))
            for number in range(30):
                await new.propose(b"%d" % number, deadline_s=1.0)
            await elapse(20.0)
            assert new.is_leader, "a node without a disk disturbs"
            store.fail_with = None
            cluster.changes.clear()
            await cluster.until(lambda: node.failure is None, limit_s=8.5)
            assert cluster.changes.is_set()
            assert b"29" in await cluster.converge()
            await node.propose(b"back", deadline_s=1.0)
            cluster.crash(name)
            await cluster.start(name)
            assert b"back" in await cluster.converge()

    run(scenario(), limit_s=120)


def test_a_cluster_of_one_comes_back_when_there_is_room() -> None:
    async def scenario() -> None:
        async with Cluster("A") as cluster:
            node = await cluster.leader()
            await node.propose(b"one", deadline_s=1.0)
            cluster.stores["A"].fail_with = FULL
            with pytest.raises(ProposalError):
                await node.propose(b"two", deadline_s=3.0)
            assert node.leader is None
            cluster.stores["A"].fail_with = None
            await cluster.until(lambda: node.is_leader, limit_s=10.0)
            await node.propose(b"three", deadline_s=1.0)
            cluster.crash("A")
            await cluster.start("A")
            assert await cluster.converge() == [b"one", b"two", b"three"]

    run(scenario(), limit_s=60)


def test_the_whole_cluster_outlives_full_disks_everywhere() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            await (await cluster.leader()).propose(b"one", deadline_s=1.0)
            for store in cluster.stores.values():
                store.fail_with = FULL
            with pytest.raises(ProposalError):
                await cluster.nodes["A"].propose(b"two", deadline_s=5.0)
            for store in cluster.stores.values():
                store.fail_with = None
            await cluster.until(lambda: cluster.leading() is not None)
            await cluster.nodes["A"].propose(b"three", deadline_s=15.0)
            state = await cluster.converge()
            assert (state[0], state[-1]) == (b"one", b"three")

    run(scenario(), limit_s=60)


async def test_a_half_written_record_is_cut_before_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path, Inline())
    await store.load()
    store.put(Operation("append", b"good"))
    await store.sync()
    room, real = 3, os.write

    def write(fd: int, data: memoryview) -> int:
        nonlocal room
        if room <= 0:
            raise FULL
        done = real(fd, data[:room])
        room -= done
        return done

    store.put(Operation("append", b"record"))
    store.put(Operation("snapshot", b"state"))
    store.put(Operation("seal", b"|"))
    with monkeypatch.context() as patched:
        patched.setattr(store_module.os, "write", write)
        for left in (b"goodrec", b"good"):
            with pytest.raises(OSError, match="No space left"):
                await store.sync()
            assert (tmp_path / "journal").read_bytes() == left
    store.put(Operation("append", b"more"))
    await store.sync()
    assert (tmp_path / "journal").read_bytes() == b"goodrecord|more"
    assert (tmp_path / "snapshot").read_bytes() == b"state"
    await store.close()


async def test_a_replacement_that_does_not_fit_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path, Inline())
    await store.load()
    store.put(Operation("journal", b"old"))
    await store.sync()

    def full(fd: int, data: memoryview) -> int:
        raise FULL

    store.put(Operation("journal", b"compacted"))
    with monkeypatch.context() as patched:
        patched.setattr(store_module.os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            await store.sync()
    assert os.listdir(tmp_path) == ["journal"]
    assert (tmp_path / "journal").read_bytes() == b"old"
    store.put(Operation("append", b"+"))
    await store.sync()
    assert (tmp_path / "journal").read_bytes() == b"compacted+"
    await store.close()


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(StoreUnusable, match=r"file.raft cannot be opened .*another home"):
        await FileStore(blocked / "raft", Inline()).load()


def test_a_disk_that_is_full_at_start_is_an_error_that_says_so() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        store.fail_with = FULL
        node = RaftNode(
            node_id="A",
            voters=("A",),
            observers=(),
            role=Role.VOTER,
            machine=Recorder(),
            link=MemoryLink(Cluster("A"), "A"),
            store=store,
            clock=asyncio.get_running_loop().time,
            rng=random.Random(1),
        )
        with pytest.raises(StoreUnusable, match=r"No space left on device.*make room"):
            await node.start()

    run(scenario(), limit_s=10)
