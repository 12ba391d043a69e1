"""A drain is checked, committed once, and says what has nowhere to go."""

from __future__ import annotations

import pytest
from fixtures.states import Cluster, deployment, equipped
from fixtures.virtual_time import run

from aivailable.core.commands import Body, PutDeployment, SetDraining
from aivailable.core.liveness import Heard, Liveness
from aivailable.core.status import DrainStatus
from aivailable.errors import ProposalRejected, RequestError
from aivailable.peer.draining import set_draining
from aivailable.wire.peer import Heartbeat


class Proposing:
    """Applies to the test's cluster at once."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.bodies: list[Body] = []

    async def propose(self, body: Body, *, actor: str, reason: str) -> None:
        self.bodies.append(body)
        outcome = self.cluster.propose(body, actor=actor)
        if not outcome.accepted:
            raise ProposalRejected(outcome.code, outcome.message)


def heard(*nodes: str) -> Liveness:
    beats = {node: Heard(node, Heartbeat(node, "i", 1, 1), 100.0) for node in nodes}
    return Liveness("n1", 100.0, nodes[1:], beats, 0.0)


async def drain(
    proposing: Proposing, node: str, draining: bool = True, *, force: bool = False, alive: int = 2
) -> DrainStatus:
    return await set_draining(
        node,
        draining,
        state=proposing.cluster.state,
        liveness=heard(*(f"n{n}" for n in range(1, alive + 1))),
        proposer=proposing,  # type: ignore[arg-type]
        force=force,
        actor="operator:k",
    )


def test_a_drain_is_committed_once_and_ended_once() -> None:
    async def scenario() -> None:
        proposing = Proposing(equipped(2))
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
        proposing = Proposing(equipped(2))
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
        proposing = Proposing(equipped(2))
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
        done = await drain(Proposing(cluster), "n1")
        assert (done.staying, done.moving) == (("wide",), (tiny,))

    run(scenario())


def test_nobody_is_no_member() -> None:
    async def scenario() -> None:
        with pytest.raises(RequestError, match="no member"):
            await drain(Proposing(equipped(2)), "n9")

    run(scenario())
