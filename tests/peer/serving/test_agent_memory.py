"""Memory that comes back late, a claim that was too small, and an owner who wants it all."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fixtures.agent_stage import AgentStage
from fixtures.peer_ports import turns
from fixtures.states import device, inventory
from fixtures.virtual_time import elapse, run

from aivailable.core.planning.memory_pressure import tight_bytes
from aivailable.core.state.commands import Drain, ReportInventory
from aivailable.core.state.records import Backend, Status
from aivailable.peer.serving.agent import MEMORY_BACK_S, MEMORY_POLL_S
from aivailable.wire.worker import LoadFailed, Ready


async def on_a_card() -> tuple[AgentStage, str]:
    """A replica that uses 90 of the 100 bytes it claims, on a real device."""
    stage = AgentStage()
    cuda = replace(device(), backend=Backend.CUDA)
    stage.cluster.must(ReportInventory(inventory("n2", cuda)), by="n2", actor="node")
    replica = stage.cluster.place(node="n2")
    stage.agent.nudge()
    await turns(50)
    stage.workers[-1].say(Ready("fake", 64, 2, {"d0": 90}, 90, 0, 0, 1))
    await turns(50)
    assert stage.status(replica) is Status.READY
    stage.world.leave_free(500)
    return stage, replica


def test_the_claim_ends_when_the_memory_is_back_and_not_before() -> None:
    async def scenario() -> None:
        stage, replica = await on_a_card()
        stage.cluster.must(Drain(replica))
        stage.agent.nudge()
        await elapse(MEMORY_BACK_S / 2)
        assert stage.workers[0].killed
        assert replica in stage.cluster.state.replicas, "its memory is held still"
        assert "545 expected" in stage.agent.loads()[0].phase
        stage.world.leave_free(590)
        await elapse(2 * MEMORY_POLL_S)
        assert replica not in stage.cluster.state.replicas
        await stage.stop()

    run(scenario())


def test_memory_that_never_comes_back_is_not_waited_for_for_ever() -> None:
    async def scenario() -> None:
        stage, replica = await on_a_card()
        stage.cluster.must(Drain(replica))
        stage.agent.nudge()
        await elapse(MEMORY_BACK_S + 2.0)
        assert replica not in stage.cluster.state.replicas
        await stage.stop()

    run(scenario())


def test_what_a_failed_load_needed_is_reported_at_once() -> None:
    """The same claim would fail again: two more tries would only cost time."""

    async def scenario() -> None:
        stage = AgentStage()
        replica = stage.cluster.place(node="n2")
        stage.agent.nudge()
        await turns(50)
        stage.workers[-1].say(LoadFailed("over_claim", "d0: 140 used, 100 claimed", {"d0": 140}))
        stage.workers[-1].die("")
        await turns(50)
        assert replica not in stage.cluster.state.replicas
        assert len(stage.workers) == 1
        (failure,) = stage.cluster.state.failures.values()
        assert failure.for_memory
        assert "140 used" in failure.reason
        (measured,) = stage.cluster.state.measured.values()
        assert (measured.predicted_bytes, measured.used_bytes) == (100, 140)
        await stage.stop()

    run(scenario())


def test_a_paused_node_ends_what_runs_here_whoever_leads() -> None:
    async def scenario() -> None:
        stage = AgentStage()
        replica = await stage.placed_and_ready()
        stage.pause.set(60)
        stage.agent.nudge()
        await elapse(2.0)
        assert stage.workers[0].killed
        assert replica not in stage.cluster.state.replicas
        await stage.stop()

    run(scenario())


def test_how_long_a_device_has_been_tight() -> None:
    async def scenario() -> None:
        stage = AgentStage()
        least = tight_bytes(stage.cluster.state.settings)

        def tight_ms() -> int:
            return stage.agent.device_loads()[0].tight_ms

        stage.world.leave_free(least)
        assert tight_ms() == 0
        stage.world.leave_free(least - 1)
        assert tight_ms() == 0
        await elapse(3.0)
        assert tight_ms() == 3000
        stage.world.leave_free(least)
        assert tight_ms() == 0
        stage.world.leave_free(0)
        await elapse(3.0)
        assert tight_ms() == 0, "a new count"
        assert asyncio.get_running_loop().time() > 0
        await stage.stop()

    run(scenario())
