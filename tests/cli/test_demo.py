"""The order of the demo's show, on peers that are only pretended."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Self

import pytest
from fixtures.cluster_status import NAS, RIG1, RIG2, deployment, device, lab, replica
from typer.testing import CliRunner

from aivailable.cli import app, demo, target
from aivailable.core.serving.status import ClusterStatus

NODES = {"http://peer1": RIG1, "http://peer2": RIG2, "http://peer3": NAS}


@dataclasses.dataclass
class FakePeer:
    url: str
    home: Path = Path("/nowhere")

    def api_key(self) -> str:
        return f"key of {self.url}"


class FakeNursery:
    """Three peers; remembers that it was left, and that the show went on until all ended."""

    def __init__(self, count: int) -> None:
        self.peers = [FakePeer(url) for url in NODES][:count]
        self.left = False
        self.stayed = False
        made.append(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left = True

    async def start(self) -> FakePeer:
        return self.peers[0]

    def check(self) -> None:
        return None

    def last_words(self) -> str:
        return ""

    async def until_all_ended(self, tell: Any) -> None:
        self.stayed = True


made: list[FakeNursery] = []


@pytest.fixture
def stage(client: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model runs on the first peer; each peer knows who it is."""
    made.clear()
    devices = (device("CPU", "cpu", 1, 0),)
    nodes = tuple(dataclasses.replace(node, state="up", devices=devices) for node in lab().nodes)
    formed = dataclasses.replace(
        lab(),
        nodes=nodes,
        deployments=(deployment("smollm2", "ready", 1),),
        replicas=(replica("smollm2", RIG1, "peer1", "ready"),),
    )
    here: list[str] = []

    def open_client(urls: list[str], api_key: str | None) -> Any:
        assert api_key == f"key of {urls[0]}"
        here[:] = [NODES[urls[0]]]
        return client

    async def state() -> ClusterStatus:
        return dataclasses.replace(formed, here=here[0])

    def chat(model: str, messages: Any, **params: Any) -> Any:
        client.calls.append(("chat", here[0], model, messages[0]["content"]))
        stream = type(client).chat(client, model, messages, **params)
        stream.ingress, stream.host = here[0], RIG1
        return stream

    client.statuses = [formed]
    client.state, client.chat = state, chat
    monkeypatch.setattr(target, "open_client", open_client)
    monkeypatch.setattr(demo, "LocalCluster", FakeNursery)
    monkeypatch.setattr(demo, "find_model", lambda model: Path("/models/smollm2.gguf"))
    return client


def test_once_asks_a_peer_that_does_not_host(stage: Any) -> None:
    result = CliRunner().invoke(app, ["demo", "--once", "Say hello"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Hello\nanswered by {RIG2[:8]}, hosted by {RIG1[:8]}\n"
    assert stage.calls[0][:2] == ("deploy", "/models/smollm2.gguf")
    assert ("chat", RIG2, "smollm2", "Say hello") in stage.calls
    assert made[0].left
    assert not made[0].stayed


def test_without_once_it_invites_and_stays(stage: Any) -> None:
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0, result.output
    assert "smollm2 runs on peer1 and answers at any of" in result.stdout
    assert "curl http://peer3/v1/chat/completions" in result.stdout
    assert made[0].stayed
    assert made[0].left


def test_a_cluster_that_does_not_form_says_how_far_it_came(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "FORM_TIMEOUT_S", 0.01)
    monkeypatch.setattr(demo, "voters_expected", lambda members: 99)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    assert "did not become one cluster within 0 s: 3 members, 3 voters so far" in result.stderr
    assert made[0].left
