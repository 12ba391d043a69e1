"""From words to a deployment: every refusal with its next step, and the same again is nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.cluster_parts import FakeProposer, FakeView
from fixtures.gguf_writer import gguf_bytes
from fixtures.peer_ports import World
from fixtures.states import DIGEST, equipped
from fixtures.virtual_time import run

from aivailable.core.cluster.liveness import Heard, Liveness
from aivailable.core.state.records import Deployment, Where
from aivailable.errors import GgufError, RequestError
from aivailable.peer.deploying.deploying import Deploying
from aivailable.peer.deploying.growth import (
    CELLS_AUTO_MAX,
    CONTEXT_AUTO_MAX,
    SLOTS_AUTO_MAX,
    most_context,
    most_slots,
)
from aivailable.peer.ports import FileStatus, Prediction
from aivailable.peer.service import DeployRequest
from aivailable.wire.peer import DeviceLoad, Heartbeat
from aivailable.worker import loading


class Stage:
    """One node, n1, with a device of 1000 bytes; "tiny" is deployed (64 tokens, 2 slots)."""

    def __init__(self, nodes: int = 1) -> None:
        self.world = World()
        self.cluster = equipped(nodes)
        self.world.store.files[DIGEST] = FileStatus(DIGEST, Path("/m/tiny.gguf"), 60)
        self.proposer = FakeProposer(self.cluster)
        self.deploying = Deploying(
            self.world.ports(),
            self.proposer,  # type: ignore[arg-type]
            FakeView("n1", self.cluster, self.liveness),
        )

    def liveness(self) -> Liveness:
        beat = Heartbeat("n1", "i", 1, 1, devices=(DeviceLoad("d0", 1000),))
        return Liveness("n1", 100.0, (), {"n1": Heard("n1", beat, 100.0)}, 0.0)

    async def deploy(self, model: str = "tiny", **rest: Any) -> Deployment:
        rest = {"context": 64, "slots": 2, **rest}
        return await self.deploying.deploy(DeployRequest(model, **rest), actor="operator:k")

    async def refused(self, model: str = "tiny", **rest: Any) -> RequestError:
        before = self.cluster.state
        with pytest.raises(RequestError) as caught:
            await self.deploy(model, **rest)
        assert self.cluster.state == before, "a refusal changes nothing"
        return caught.value


def test_the_same_again_makes_no_new_generation() -> None:
    async def scenario() -> None:
        stage = Stage()
        first = await stage.deploy(name="again")
        proposed = len(stage.proposer.bodies)
        assert await stage.deploy(name="again") == first
        # Another node, without the file, predicts otherwise; the user's words are the same.
        stage.world.store.files.clear()
        assert await stage.deploy(name="again") == first
        assert len(stage.proposer.bodies) == proposed

    run(scenario())


def test_a_change_makes_a_new_generation_unless_replacing_is_not_wanted() -> None:
    async def scenario() -> None:
        stage = Stage()
        first = await stage.deploy(name="again")
        error = await stage.refused(name="again", slots=1, replace=False)
        assert (error.status, error.code) == (409, "exists")
        second = await stage.deploy(name="again", slots=1)
        assert second.generation > first.generation
        assert stage.cluster.state.deployments["again"] == second

    run(scenario())


def test_an_unknown_model_names_the_catalogue() -> None:
    async def scenario() -> None:
        error = await Stage().refused("nobody")
        assert (error.status, error.code) == (404, "unknown_model")
        assert "'nobody'" in str(error)
        assert "(tiny)" in str(error)

    run(scenario())


def test_a_context_over_the_trained_one_says_both_numbers() -> None:
    async def scenario() -> None:
        error = await Stage().refused(context=4097)
        assert (error.status, error.code) == (400, "context_too_large")
        assert "4096" in str(error)
        assert "4097" in str(error)

    run(scenario())


def test_what_fits_nowhere_says_what_was_missing_on_each_device() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.world.prediction = Prediction(3 << 30, 1 << 30, 0, "oracle")
        error = await stage.refused(name="big")
        assert (error.status, error.code) == (422, "does_not_fit")
        assert "big fits on no device" in str(error)
        assert "4.0 GiB" in str(error)
        assert "d0" in str(error)

    run(scenario())


def test_a_replacement_may_use_the_room_of_what_it_replaces() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.world.prediction = Prediction(600, 0, 0, "oracle")
        await stage.deploy(name="wide")
        stage.cluster.place("wide", bytes_=600)
        assert (await stage.deploy(name="wide", slots=1)).slots == 1
        error = await stage.refused(name="other")
        assert error.code == "does_not_fit"

    run(scenario())


@pytest.mark.parametrize("name", ["", "two words", "ä", "x" * 500, "a\nb"])
def test_a_name_that_no_url_could_carry_is_refused(name: str) -> None:
    async def scenario() -> None:
        error = await Stage().refused(name=name)
        assert (error.status, error.code) == (400, "invalid_name")

    run(scenario())


@pytest.mark.parametrize(
    ("raised", "code"),
    [(ValueError("kv_type: f16 or q8_0"), "invalid_options"), (GgufError("x"), "bad_model_file")],
)
def test_what_the_prediction_refuses_is_the_callers_fault(raised: Exception, code: str) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.world.predict_error = raised
        error = await stage.refused(name="odd", options={"kv_type": "f17"})
        assert (error.status, error.code) == (400, code)
        assert str(raised) in str(error)

    run(scenario())


def test_a_path_that_is_not_there_and_files_that_are_no_model(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage()
        error = await stage.refused(str(tmp_path / "gone.gguf"))
        assert (error.status, error.code) == (400, "bad_model_file")
        assert "gone.gguf" in str(error)
        good = gguf_bytes()
        for number, data in enumerate(
            (b"", b"GGUF", b"not a model at all", good[: len(good) // 2])
        ):
            path = tmp_path / f"bad{number}.gguf"
            path.write_bytes(data)
            error = await stage.refused(str(path))
            assert (error.status, error.code) == (400, "bad_model_file")
        (tmp_path / "folder.gguf").mkdir()
        error = await stage.refused(str(tmp_path / "folder.gguf"))
        assert error.status == 400

    run(scenario())


def test_a_good_path_is_registered_and_deployed_under_its_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage()
        path = tmp_path / "My model (v2).gguf"
        path.write_bytes(gguf_bytes())
        stage.world.store.registers = FileStatus("e5" * 32, path, path.stat().st_size)
        made = await stage.deploy(str(path), context=None)
        assert made.name == "My-model--v2"
        assert made.digest == "e5" * 32
        assert stage.cluster.state.models[made.digest].source == str(path)
        assert stage.cluster.state.holders(made.digest) == ("n1",)
        # The same file under another path is the same model.
        twin = tmp_path / "twin.gguf"
        twin.write_bytes(gguf_bytes())
        assert (await stage.deploy(str(twin), context=None)).name == made.name

    run(scenario())


def test_the_fake_engine_is_only_for_those_who_asked_for_it() -> None:
    async def scenario() -> None:
        stage = Stage()
        made = await stage.deploy("f", engine="fake", options={"need_bytes": "70"})
        assert (made.need_bytes, made.digest) == (70, "fake:f")
        error = await stage.refused("g", engine="fake", options={"need_bytes": "much"})
        assert error.code == "invalid_options"
        stage.world.devices.engines = ("llama",)
        error = await stage.refused("g", engine="fake")
        assert error.code == "no_fake_engine"

    run(scenario())


def test_a_preview_shows_the_plan_and_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(2)
        stage.cluster.place("tiny", "n1")
        path = tmp_path / "new.gguf"
        path.write_bytes(gguf_bytes())
        before = stage.cluster.state
        plan = await stage.deploying.preview(DeployRequest(str(path), slots=2))
        assert (plan.deployment, plan.predicted_by, plan.refusal) == ("new", "oracle", "")
        assert [(s.action, s.deployment) for s in plan.steps] == [
            ("place", "new"),
            ("keep", "tiny"),
        ]
        assert plan.steps[0].node == "n1", "its file is here"
        same = await stage.deploying.preview(DeployRequest("tiny", context=64, slots=2))
        assert [(s.action, s.deployment) for s in same.steps] == [("keep", "tiny")]
        assert stage.cluster.state == before
        assert stage.proposer.bodies == []

    run(scenario())


def test_a_preview_says_what_would_refuse_it() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.world.prediction = Prediction(3 << 30, 1 << 30, 0, "oracle")
        wanted = DeployRequest("tiny", name="big", context=64)
        plan = await stage.deploying.preview(wanted)
        with pytest.raises(RequestError) as told:
            await stage.deploying.deploy(wanted, actor="operator:k")
        assert plan.refusal == str(told.value)
        assert plan.steps[-1].action == "lack"
        again = DeployRequest("tiny", context=64, slots=1, replace=False)
        assert "deployed already" in (await stage.deploying.preview(again)).refusal

    run(scenario())


def test_a_fit_is_measured_by_the_file_and_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage()
        before = stage.cluster.state
        known = await stage.deploying.fit(DeployRequest("tiny", context=64, slots=2))
        assert (known.model, known.node_name, known.predicted_by) == ("tiny", "host-n1", "oracle")
        assert known.devices_chosen == ("Sim d0",)
        assert [(d.fits, d.free_bytes) for d in known.devices] == [(True, 1000)]
        path = tmp_path / "other.gguf"
        path.write_bytes(gguf_bytes())
        stage.world.prediction = Prediction(990, 30, 10, "oracle")
        other = await stage.deploying.fit(DeployRequest(str(path), slots=2))
        assert stage.world.predicted[-1].path == path
        assert (other.node_name, other.devices[0].missing_bytes) == ("", 30)
        with pytest.raises(RequestError, match=r"no model 'nobody'.*\(tiny\)"):
            await stage.deploying.fit(DeployRequest("nobody"))
        # Without the file the formula answers, and says so.
        stage.world.store.files.clear()
        assert (await stage.deploying.fit(DeployRequest("tiny"))).predicted_by == "formula"
        assert stage.cluster.state == before
        assert stage.proposer.bodies == []

    run(scenario())


def test_an_automatic_context_knows_what_each_token_more_costs() -> None:
    """Between the two dry runs the need is never more than what a replica would claim."""

    async def scenario() -> None:
        stage = Stage()
        facts = stage.cluster.state.models[DIGEST].facts
        made = await stage.deploy(name="auto", context_max=0)
        assert made.growth is not None
        assert made.growth.context_max == facts.context_train
        proposed = len(stage.proposer.bodies)
        assert await stage.deploy(name="auto", context_max=0) == made
        assert len(stage.proposer.bodies) == proposed
        full = await stage.deploy(name="full", context=facts.context_train, context_max=0)
        assert full.growth is None
        assert made.grown(facts.context_train, made.slots).kv_bytes >= full.kv_bytes

    run(scenario())


def test_automatic_slots_stay_within_what_a_worker_loads() -> None:
    assert (SLOTS_AUTO_MAX, CELLS_AUTO_MAX) == (loading.SLOTS_MAX, loading.CELLS_MAX)
    assert [most_slots(0, context) for context in (64, 1 << 17, 1 << 18, 1 << 20)] == [
        64,
        64,
        32,
        8,
    ]
    assert (most_slots(100, 64), most_slots(6, 64)) == (64, 6)
    assert CONTEXT_AUTO_MAX == loading.CONTEXT_MAX_TOKENS
    assert [most_context(slots) for slots in (1, 8, 9, 64)] == [
        1 << 20,
        1 << 20,
        (8 << 20) // 9,
        1 << 17,
    ]


def test_an_automatic_context_stays_within_what_a_worker_loads() -> None:
    """Some headers say ten million tokens."""

    async def scenario() -> None:
        stage = Stage()
        state = stage.cluster.state
        model = state.models[DIGEST]
        endless = replace(model, facts=replace(model.facts, context_train=10_485_760))
        stage.cluster.state = replace(state, models={**state.models, DIGEST: endless})
        made = await stage.deploy(name="auto", context=64, context_max=0, slots=2)
        assert made.context_most == 1 << 20

    run(scenario())


def test_automatic_slots_never_cost_more_than_is_claimed_for_them() -> None:
    """Also where the compute buffer has a kink: 100 tokens in few slots are less than a ubatch."""

    async def scenario(context: int, most: int) -> None:
        stage = Stage()
        stage.world.store.files.clear()  # By the formula, which can be asked for every count.
        rest: dict[str, Any] = {"replicas_min": 0, "replicas_max": 1}
        wish = rest | {"context": context, "context_max": most, "slots": 1, "slots_max": 9}
        made = await stage.deploy(name="auto", **wish)
        assert (made.context_most, made.slots_most) == (most, 9)
        proposed = len(stage.proposer.bodies)
        assert await stage.deploy(name="auto", **wish) == made
        assert len(stage.proposer.bodies) == proposed
        for slots in range(1, 10):
            fixed = await stage.deploy(name="fixed", context=most, slots=slots, **rest)
            grown = made.grown(most, slots)
            assert grown.kv_bytes >= fixed.kv_bytes
            assert grown.compute_bytes >= fixed.compute_bytes
        alone = await stage.deploy(name="alone", slots_max=0, **rest)
        assert (alone.context_most, alone.slots_most) == (64, SLOTS_AUTO_MAX)
        assert (await stage.deploy(name="full", slots_max=2, **rest)).growth is None

    run(scenario(100, 3000))
    run(scenario(100, 100))


def test_a_name_that_two_members_have_is_asked_back_and_what_is_shown_is_taken() -> None:
    async def scenario() -> None:
        stage = Stage(2)
        state = stage.cluster.state
        twins = {
            f"{first}{'x' * 51}": replace(state.members[node], node=f"{first}{'x' * 51}", name="vm")
            for first, node in (("a", "n1"), ("b", "n2"))
        }
        stage.cluster.state = replace(state, members={**state.members, **twins})
        for where in (Where(nodes=("vm",)), Where(not_nodes=("VM",))):
            error = await stage.refused(name="there", where=where)
            assert (error.status, error.code) == (409, "ambiguous_node")
            assert "vm-axxx (axxxxxxx), vm-bxxx (bxxxxxxx)" in str(error)
        made = await stage.deploy(name="there", where=Where(not_nodes=("vm-bxxx", "v*")))
        assert made.where.not_nodes == ("bxxxxxxx", "v*")

    run(scenario())


def test_a_member_that_has_not_told_its_devices_is_named_and_may_be_waited_for() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.cluster.state = replace(stage.cluster.state, inventories={})
        error = await stage.refused(name="early")
        assert (error.status, error.code) == (409, "devices_not_told")
        assert "has not told its devices yet" in str(error)

    run(scenario())


def test_a_node_that_nobody_is_called_is_refused_with_those_that_there_are() -> None:
    async def scenario() -> None:
        stage = Stage()
        error = await stage.refused(name="here", where=Where(nodes=("lab-9",)))
        assert (error.status, error.code) == (400, "unknown_node")
        assert "no member is called 'lab-9'; there are: " in str(error)
        error = await stage.refused(name="here", where=Where(beside=("here",)))
        assert error.code == "invalid_where"

    run(scenario())
