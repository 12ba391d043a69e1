"""The files that go with a model: checked before anything is recorded, hashed, kept, sized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.cluster_parts import FakeProposer, FakeView
from fixtures.gguf_writer import gguf_bytes
from fixtures.peer_ports import World
from fixtures.states import DIGEST, Cluster, deployment, device, equipped, inventory
from fixtures.tiny_models import random_lora
from fixtures.tiny_projectors import random_projector
from fixtures.virtual_time import run

from aivailable.core.cluster.liveness import Heard, Liveness
from aivailable.core.state.commands import PutDeployment, ReportInventory
from aivailable.core.state.records import Deployment
from aivailable.errors import RequestError
from aivailable.peer.deploying.deploying import Deploying
from aivailable.peer.ports import FileStatus
from aivailable.peer.service import DeployRequest
from aivailable.wire.peer import DeviceLoad, Heartbeat

LORA, PROJECTOR, OTHER = "a1" * 32, "b2" * 32, "c3" * 32
MIB = 1 << 20
DEVICE_BYTES = 64 * MIB


def _roomy() -> Cluster:
    cluster = equipped(2)
    for node in ("n1", "n2"):
        devices = inventory(node, device(total_bytes=DEVICE_BYTES))
        cluster.must(ReportInventory(devices), by=node, actor="node")
    return cluster


class Stage:
    """Nodes n1 and n2 with room for files as they are; "tiny" lies in `folder` of n1."""

    def __init__(self, folder: Path, node: str = "n1", cluster: Cluster | None = None) -> None:
        self.world = World()
        self.cluster = cluster or _roomy()
        self.node = node
        self.model = folder / "tiny.gguf"
        if node == "n1":
            self.holds(DIGEST, self.model, 60)
        self.deploying = Deploying(
            self.world.ports(),
            FakeProposer(self.cluster, node),  # type: ignore[arg-type]
            FakeView(node, self.cluster, self.liveness),
        )

    def holds(self, digest: str, path: Path, size_bytes: int) -> None:
        self.world.store.files[digest] = FileStatus(digest, path, size_bytes)

    def has(self, digest: str, path: Path) -> Path:
        """A file that is hashed when it is asked for."""
        file = FileStatus(digest, path.resolve(), path.stat().st_size)
        self.world.store.beside[path] = file
        return path

    def liveness(self) -> Liveness:
        heard = {
            node: Heard(
                node,
                Heartbeat(node, "i", 1, 1, devices=(DeviceLoad("d0", DEVICE_BYTES),)),
                100.0,
            )
            for node in ("n1", "n2")
        }
        return Liveness(self.node, 100.0, (), heard, 0.0)

    async def deploy(self, **rest: Any) -> Deployment:
        rest = {"name": "styled", "context": 64, "slots": 2, **rest}
        return await self.deploying.deploy(DeployRequest("tiny", **rest), actor="operator:k")

    async def refused(self, **options: str) -> RequestError:
        before = self.cluster.state
        with pytest.raises(RequestError) as caught:
            await self.deploy(options=options)
        assert self.cluster.state == before, "a refusal records nothing"
        assert caught.value.status == 400
        return caught.value


def test_a_companion_beside_the_model_is_hashed_recorded_and_measured(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        lora = stage.has(LORA, random_lora(tmp_path, "style.gguf"))
        eyes = stage.has(PROJECTOR, random_projector(tmp_path))
        wish = {"lora": "style.gguf:0.5", "projector": str(eyes)}
        made = await stage.deploy(options=wish)
        assert [(e.option, e.path, e.digest, e.size_bytes) for e in made.companions] == [
            ("lora", "style.gguf", LORA, lora.stat().st_size),
            ("projector", str(eyes), PROJECTOR, eyes.stat().st_size),
        ]
        assert made.companions[1].compute_bytes > 0
        assert dict(made.options) == wish, "the user's words stay"
        state = stage.cluster.state
        assert [state.holders(digest) for digest in made.digests] == [("n1",)] * 3
        asked = stage.world.predicted[-1].options
        assert asked == {"lora": f"{lora}:0.5", "projector": str(eyes)}
        # The same again is nothing; another file of that name is something.
        assert await stage.deploy(options=wish) == made
        stage.has(OTHER, lora)
        assert (await stage.deploy(options=wish)).generation > made.generation

    run(scenario())


def test_what_is_no_companion_is_refused_and_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        alien = random_lora(tmp_path, "alien.gguf", general__architecture="qwen3")
        eyes = random_projector(tmp_path)
        for options, code, said in (
            ({"lora": "gone.gguf"}, "bad_companion_file", f"{tmp_path}/gone.gguf: cannot be read"),
            ({"lora": str(eyes)}, "bad_companion_file", "this is no LoRA adapter"),
            ({"lora": str(alien)}, "bad_companion_file", "is for 'qwen3', the model is 'llama'"),
            ({"projector": str(alien)}, "bad_companion_file", "this is no projector"),
            ({"lora": "a.gguf:1e9"}, "invalid_options", "scale 1e+09"),
            ({"lora": "a.gguf:nan"}, "invalid_options", "scale nan"),
            ({"lora": ",".join("abcdefghijklmnopq")}, "invalid_options", "more than 16"),
        ):
            error = await stage.refused(**options)
            assert error.code == code
            assert said in str(error)

    run(scenario())


def test_nothing_is_registered_when_a_companion_is_refused(tmp_path: Path) -> None:
    """Neither is the model's own file, of which the catalogue knows nothing yet."""

    async def scenario() -> None:
        stage = Stage(tmp_path)
        fresh = tmp_path / "fresh.gguf"
        fresh.write_bytes(gguf_bytes())
        before = stage.cluster.state
        with pytest.raises(RequestError, match=r"gone\.gguf: cannot be read"):
            await stage.deploying.deploy(
                DeployRequest(str(fresh), options={"lora": "gone.gguf"}), actor="operator:k"
            )
        assert stage.cluster.state == before

    run(scenario())


def test_another_node_changes_a_deployment_whose_companion_it_does_not_have(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Stage(tmp_path)
        first.has(LORA, random_lora(tmp_path, "style.gguf"))
        wish = {"lora": "style.gguf"}
        made = await first.deploy(options=wish)
        other = Stage(tmp_path / "nowhere", "n2", first.cluster)
        assert await other.deploy(options=wish) == made
        changed = await other.deploy(options=wish, slots=1)
        assert changed.companions == made.companions
        assert other.cluster.state.holders(LORA) == ("n1",)
        # By the formula and the recorded bytes: neither of the files is there.
        assert changed.predicted_by == "formula"
        plain = await other.deploy(name="plain", slots=1)
        size = made.companions[0].size_bytes
        assert changed.weights_bytes - plain.weights_bytes == size
        error = await other.refused(lora="another.gguf")
        assert "not on this node" in str(error)

    run(scenario())


def test_a_question_hashes_nothing_and_knows_the_companions_bytes(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        lora = random_lora(tmp_path, "style.gguf")
        before = stage.cluster.state
        wish = DeployRequest("tiny", "styled", context=64, slots=2, options={"lora": "style.gguf"})
        plan = await stage.deploying.preview(wish)
        assert plan.refusal == ""
        assert [(s.action, s.deployment) for s in plan.steps if s.deployment == "styled"] == [
            ("place", "styled")
        ]
        assert stage.world.predicted[-1].options == {"lora": f"{lora}:1.0"}
        assert (await stage.deploying.fit(wish)).node_name
        assert (stage.cluster.state, stage.world.store.beside) == (before, {})

    run(scenario())


def test_a_record_without_its_companions_is_still_a_deployment() -> None:
    """One from before companions were recorded: its options are taken as they stand."""
    cluster = equipped(1)
    old = deployment("old", options={"lora": "/m/style.gguf"})
    cluster.must(PutDeployment(old))
    assert cluster.state.files_of(cluster.state.deployments["old"]) == {DIGEST: 60}
