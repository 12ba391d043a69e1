"""A drain is checked, committed once, and says what has nowhere to go."""

from __future__ import annotations

import pytest
from fixtures.cluster_parts import FakeProposer, FakeView
from fixtures.states import deployment, equipped
from fixtures.virtual_time import run

from aivailable.core.cluster.liveness import Heard, Liveness
from aivailable.core.serving.status import DrainStatus
from aivailable.core.state.commands import PutDeployment, SetDraining
from aivailable.errors import RequestError
from aivailable.peer.control.draining import set_draining
from aivailable.wire.peer import Heartbeat


def heard(*nodes: str) -> Liveness:
    beats = {node: Heard(node, Heartbeat(node, "i", 1, 1), 100.0) for node in nodes}
    return Liveness("n1", 100.0, nodes[1:], beats, 0.0)


async def drain(
    proposing: FakeProposer,
    node: str,
    draining: bool = True,
    *,
    force: bool = False,
    alive: int = 2,
) -> DrainStatus:
    nodes = [f"n{number}" for number in range(1, alive + 1)]
    return await set_draining(
        node,
        draining,
        cluster=FakeView("n1", proposing.cluster, lambda: heard(*nodes)),
        proposer=proposing,  # type: ignore[arg-type]
        force=force,
        actor="operator:k",
    )


def test_a_drain_is_committed_once_and_ended_once() -> None:
    async def scenario() -> None:
        proposing = FakeProposer(equipped(2))
        replica = proposing.cluster.place("tiny", "n1")
        done = await drain(proposing, "n1")
        assert (done.draining, done.changed) == (True, True)
        assert (done.moving, done.staying) == ((replica,), ())
        again = await drain(proposing, "n1")
        assert (again.changed, again.moving) == (False, (replica,))
        assert (await drain(proposing, "n1", False)).changed
        assert not (await drain(proposing, "n1", False)).changed
        assert proposing.bodies == [SetDraining("n1", True), SetDraining("n1", False)]

    run(scenario())


def test_the_last_usable_node_is_refused_with_what_would_go_dark_unless_forced() -> None:
    async def scenario() -> None:
        proposing = FakeProposer(equipped(2))
        replica = proposing.cluster.place("tiny", "n1")
        with pytest.raises(RequestError, match=r"host-n1 is the last.*dark: tiny; --force") as told:
            await drain(proposing, "n1", alive=1)
        assert (told.value.status, told.value.code) == (409, "last_node")
        assert proposing.bodies == []
        done = await drain(proposing, "n1", force=True, alive=1)
        assert (done.changed, done.staying, done.moving) == (True, ("tiny",), ())
        assert replica in proposing.cluster.state.replicas

    run(scenario())


def test_of_two_nodes_only_one_can_be_drained_without_force() -> None:
    async def scenario() -> None:
        proposing = FakeProposer(equipped(2))
        await drain(proposing, "n1")
        with pytest.raises(RequestError, match="last usable"):
            await drain(proposing, "n2")

    run(scenario())


def test_what_fits_nowhere_else_stays_and_is_named() -> None:
    async def scenario() -> None:
        cluster = equipped(2)
        wide = deployment("wide", weights_bytes=900, kv_bytes=0, compute_bytes=0)
        other = deployment("other", weights_bytes=900, kv_bytes=0, compute_bytes=0)
        for wish in (wide, other):
            cluster.must(PutDeployment(wish))
        tiny = cluster.place("tiny", "n1")
        cluster.place("wide", "n1", bytes_=900)
        cluster.place("other", "n2", bytes_=900)
        done = await drain(FakeProposer(cluster), "n1")
        assert (done.staying, done.moving) == (("wide",), (tiny,))

    run(scenario())


def test_nobody_is_no_member() -> None:
    async def scenario() -> None:
        with pytest.raises(RequestError, match="not a member"):
            await drain(FakeProposer(equipped(2)), "n9")

    run(scenario())
