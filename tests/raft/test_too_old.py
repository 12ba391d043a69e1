"""A machine that cannot follow any further: the node stays where it is, loudly, and diverges
nowhere; the others go on, and newer code on the same store goes on, too."""

from __future__ import annotations

import logging

import pytest
from fixtures.raft_cluster import Cluster, Recorder
from fixtures.virtual_time import elapse, run

from aivailable.errors import CodeTooOld

LATER = b"later"


class OldRecorder(Recorder):
    """Knows nothing of LATER, neither in the log nor in a snapshot."""

    def apply(self, payload: bytes) -> None:
        if payload == LATER:
            raise CodeTooOld("install the newer version")
        super().apply(payload)

    def restore(self, data: bytes) -> None:
        if LATER in data:
            raise CodeTooOld("install the newer version")
        super().restore(data)


async def propose(cluster: Cluster, *payloads: bytes) -> None:
    node = await cluster.leader(among="ab")
    for payload in payloads:
        await node.propose(payload, deadline_s=5.0)


async def restart(cluster: Cluster, name: str, machine: type[Recorder]) -> None:
    if name in cluster.nodes:
        cluster.crash(name)
    cluster.machine = machine
    await cluster.start(name)


def test_nothing_is_applied_beyond_what_is_not_understood(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with Cluster("ab", "c") as cluster:
            await restart(cluster, "c", OldRecorder)
            await propose(cluster, b"1", b"2", LATER, b"3")
            await elapse(2.0)
            node = cluster.nodes["c"]
            assert cluster.machines["c"].payloads == [b"1", b"2"]
            assert node.applied_index < node.commit_index
            stopped_at = node.applied_index
            node.compact()
            await propose(cluster, b"4")
            await elapse(2.0)
            assert (node.applied_index, node.tally.faults) == (stopped_at, 0)
            # The snapshot is of what was applied: newer code goes on from there.
            await restart(cluster, "c", Recorder)
            assert cluster.machines["c"].payloads == [b"1", b"2"]
            assert await cluster.converge() == [b"1", b"2", LATER, b"3", b"4"]

    with caplog.at_level(logging.ERROR):
        run(scenario(), limit_s=600.0)
    told = [record for record in caplog.records if "install the newer" in record.getMessage()]
    assert len(told) == 1, "once, not at each tick"


def test_a_snapshot_that_is_not_understood_is_not_restored() -> None:
    async def scenario() -> None:
        async with Cluster("ab", "c") as cluster:
            await propose(cluster, b"1")
            await cluster.converge()
            await elapse(2.0)  # How far it is committed is on disk, too.
            cluster.crash("c")
            await propose(cluster, LATER, b"2")
            for name in "ab":
                cluster.nodes[name].compact()
            await elapse(2.0)
            await restart(cluster, "c", OldRecorder)
            await elapse(2.0)
            assert cluster.machines["c"].payloads == [b"1"]
            assert cluster.nodes["c"].tally.faults == 0
            cluster.nodes.pop("c").kill()
            await cluster.stores["c"].close()
            with pytest.raises(CodeTooOld):
                await cluster.start("c")
            cluster.machine = Recorder
            await cluster.start("c")
            assert await cluster.converge() == [b"1", LATER, b"2"]

    run(scenario(), limit_s=600.0)
