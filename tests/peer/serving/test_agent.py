"""The agent: what is placed here runs here, what is not does not, and every end is reported."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fixtures.agent_stage import AgentStage as Stage
from fixtures.peer_ports import turns
from fixtures.states import DIGEST, deployment, device, inventory
from fixtures.virtual_time import elapse, run

from aivailable.core.agent import RESTART_BASE_S, WORKER_ATTEMPTS_MAX
from aivailable.core.state.commands import (
    Drain,
    PutDeployment,
    RemoveDeployment,
    ReportInventory,
    ReportReplica,
)
from aivailable.core.state.records import Backend, Companion, Status
from aivailable.errors import LinkLost
from aivailable.wire.worker import Load, LoadFailed


def test_a_placement_becomes_a_ready_worker_with_its_claim() -> None:
    async def scenario() -> None:
        stage = Stage()
        replica = await stage.placed_and_ready()
        load: Load = stage.workers[0].load
        assert (load.replica, load.path, load.context, load.slots) == (
            replica,
            "/m/tiny.gguf",
            64,
            2,
        )
        assert [(claim.device_id, claim.claim_bytes) for claim in load.devices] == [("d0", 100)]
        assert load.check_tensors, "the first load of a file checks it"
        (entry,) = stage.agent.loads()
        assert (entry.replica, entry.status) == (replica, "ready")
        await stage.stop()
        assert stage.workers[0].killed, "no worker outlives its peer"

    run(scenario())


def test_a_missing_file_is_fetched_first() -> None:
    async def scenario() -> None:
        stage = Stage(held=False)
        stage.world.store.gate = asyncio.Event()
        replica = stage.cluster.place(node="n2")
        stage.agent.nudge()
        await turns(50)
        assert stage.workers == []
        assert stage.status(replica) is Status.FETCHING
        stage.world.store.partial[DIGEST] = 30
        assert stage.agent.loads()[0].progress == pytest.approx(0.5)
        stage.world.store.gate.set()
        await turns(50)
        assert len(stage.workers) == 1
        await stage.stop()

    run(scenario())


def test_a_companion_is_fetched_and_named_by_its_place_here() -> None:
    async def scenario() -> None:
        stage = Stage(held=False)
        lora = "d2" * 32
        styled = deployment(
            "styled",
            options={"lora": "/there/style.gguf:0.5", "kv_type": "q8_0"},
            companions=(Companion("lora", "/there/style.gguf", lora, 20),),
        )
        stage.cluster.must(PutDeployment(styled, holding=(lora,)))
        stage.world.store.gate = asyncio.Event()
        replica = stage.cluster.place("styled", node="n2")
        stage.agent.nudge()
        await turns(50)
        assert stage.status(replica) is Status.FETCHING
        stage.world.store.partial[DIGEST] = 40
        assert stage.agent.loads()[0].progress == pytest.approx(0.5)
        stage.world.store.gate.set()
        await turns(50)
        assert sorted(stage.world.store.fetched) == sorted((DIGEST, lora))
        load: Load = stage.workers[0].load
        assert load.path == f"/m/{DIGEST}"
        assert load.options == {"lora": f"/m/{lora}:0.5", "kv_type": "q8_0"}
        assert stage.cluster.state.holders(lora) == ("n1", "n2")
        await stage.stop()

    run(scenario())


def test_a_path_that_another_node_wrote_is_never_opened() -> None:
    """Only files of the store are, by their digest."""

    async def scenario() -> None:
        stage = Stage()
        options = {"lora": "/etc/passwd"}
        stage.cluster.must(PutDeployment(deployment("styled", options=options)))
        stage.cluster.place("styled", node="n2")
        stage.agent.nudge()
        await turns(50)
        assert not stage.workers
        assert "does not go with this deployment" in stage.agent.loads()[0].reason
        await stage.stop()

    run(scenario())


def test_a_companion_that_cannot_be_fetched_is_a_failure_and_tried_again() -> None:
    async def scenario() -> None:
        stage = Stage()
        lora = "d2" * 32
        styled = deployment(
            "styled",
            options={"lora": "s.gguf"},
            companions=(Companion("lora", "s.gguf", lora, 20),),
        )
        stage.cluster.must(PutDeployment(styled, holding=(lora,)))
        stage.world.store.fetch_errors = [LinkLost("cut")]
        replica = stage.cluster.place("styled", node="n2")
        stage.agent.nudge()
        await turns(50)
        assert "cut" in stage.cluster.state.replicas[replica].reason
        while not stage.workers:
            await elapse(0.5)
        assert stage.world.store.fetched == [lora], "the model was here"
        await stage.stop()

    run(scenario(), limit_s=60.0)


def test_a_crash_is_reported_and_restarted_with_a_growing_pause() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage()
        replica = await stage.placed_and_ready()
        stage.workers[-1].die("killed by SIGSEGV: boom")
        died_s = loop.time()
        await turns(50)
        record = stage.cluster.state.replicas[replica]
        assert record.status is Status.LOADING
        assert record.reason == "/m/tiny.gguf: killed by SIGSEGV: boom"
        assert len(stage.workers) == 1, "not at once"
        while len(stage.workers) < 2:
            await elapse(0.1)
        assert loop.time() - died_s >= RESTART_BASE_S / 2
        stage.workers[-1].ready()
        await turns(50)
        assert stage.status(replica) is Status.READY
        await stage.stop()

    run(scenario())


def test_a_load_that_keeps_failing_is_reported_as_failed_with_its_reason() -> None:
    async def scenario() -> None:
        stage = Stage()
        replica = stage.cluster.place(node="n2")
        stage.agent.nudge()
        for attempt in range(1, WORKER_ATTEMPTS_MAX + 1):
            while len(stage.workers) < attempt:
                await elapse(0.5)
            stage.workers[-1].say(LoadFailed("out_of_memory", "9 GiB needed"))
            stage.workers[-1].die("exit code 1")
            await turns(50)
        await elapse(1.0)
        assert stage.status(replica) is Status.FAILED or replica not in stage.cluster.state.replicas
        failures = stage.cluster.state.failures
        assert any("9 GiB" in str(failure) for failure in failures.values())
        await stage.stop()

    run(scenario(), limit_s=600.0)


def test_a_report_that_got_lost_is_made_again() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.proposer.fails = 3
        replica = stage.cluster.place(node="n2")
        stage.agent.nudge()
        await turns(50)
        stage.workers[-1].ready()
        await elapse(3.0)
        assert stage.status(replica) is Status.READY
        await stage.stop()

    run(scenario())


def test_a_drained_replica_ends_and_its_claim_with_it() -> None:
    async def scenario() -> None:
        stage = Stage()
        replica = await stage.placed_and_ready()
        stage.cluster.must(Drain(replica))
        stage.agent.nudge()
        await elapse(2.0)
        assert stage.workers[0].killed
        assert replica not in stage.cluster.state.replicas
        assert stage.cluster.state.claimed_bytes("n2", "d0") == 0
        assert stage.agent.loads() == ()
        await stage.stop()

    run(scenario())


@pytest.mark.parametrize("when", ["launching", "loading", "ready"])
def test_what_is_no_longer_wanted_leaves_no_worker_whenever_that_is(when: str) -> None:
    async def scenario() -> None:
        stage = Stage()
        if when == "launching":
            stage.world.launcher.held = asyncio.Event()
        replica = stage.cluster.place(node="n2")
        stage.agent.nudge()
        await turns(50)
        if when == "ready":
            stage.workers[0].ready()
            await turns(50)
        stage.cluster.must(RemoveDeployment("tiny"))
        if replica in stage.cluster.state.replicas:
            stage.cluster.must(Drain(replica))
        stage.agent.nudge()
        await elapse(1.0)
        if stage.world.launcher.held is not None:
            stage.world.launcher.held.set()
        await elapse(2.0)
        assert [worker.killed for worker in stage.workers] == [True]
        assert replica not in stage.cluster.state.replicas
        assert stage.agent.find(replica) is None
        await stage.stop()

    run(scenario())


def test_a_load_waits_when_other_programs_have_taken_the_memory() -> None:
    """The device is a real one: the claim is in the log, the bytes are not there."""

    async def scenario() -> None:
        stage = Stage()
        cuda = replace(device(), backend=Backend.CUDA)
        stage.cluster.must(ReportInventory(inventory("n2", cuda)), by="n2", actor="node")
        stage.world.leave_free(99)
        replica = stage.cluster.place(node="n2")
        stage.agent.nudge()
        await turns(50)
        assert stage.workers == []
        assert stage.agent.find(replica) is not None
        assert "other programs" in stage.agent.find(replica).entry.reason  # type: ignore[union-attr]
        stage.world.leave_free(100)
        await elapse(5.0)
        assert len(stage.workers) == 1
        await stage.stop()

    run(scenario())


def test_a_load_waits_for_what_loads_under_way_may_still_take() -> None:
    """Both were planned, then another program grew: one of them has room, whichever is first."""

    async def scenario() -> None:
        stage = Stage()
        cuda = replace(device(), backend=Backend.CUDA)
        stage.cluster.must(ReportInventory(inventory("n2", cuda)), by="n2", actor="node")
        stage.world.leave_free(150)
        first, second = (stage.cluster.place(node="n2") for _ in range(2))
        stage.agent.nudge()
        await turns(50)
        assert [worker.load.replica for worker in stage.workers] == [first]
        assert stage.status(second) is Status.PLACED, "no failed attempt"
        stage.world.leave_free(100)
        stage.workers[0].ready()
        await turns(50)
        assert [worker.load.replica for worker in stage.workers] == [first, second]
        await stage.stop()

    run(scenario())


def test_a_transfer_that_fails_counts_and_is_tried_again() -> None:
    async def scenario() -> None:
        stage = Stage(held=False)
        stage.world.store.fetch_errors = [LinkLost("cut")]
        replica = stage.cluster.place(node="n2")
        stage.agent.nudge()
        await turns(50)
        assert stage.cluster.state.replicas[replica].reason == "cut"
        await elapse(8.0)
        assert len(stage.workers) == 1
        await stage.stop()

    run(scenario())


def test_a_state_without_us_kills_everything() -> None:
    """Another cluster's state, or ours after we were removed: nothing is placed here."""

    async def scenario() -> None:
        stage = Stage()
        replica = await stage.placed_and_ready()
        report = ReportReplica(replica, "n2", Status.FAILED, "node down")
        stage.cluster.must(report, by="n2")
        stage.agent.nudge()
        await turns(50)
        assert stage.workers[0].killed
        assert stage.agent.find(replica) is None
        await stage.stop()

    run(scenario())
