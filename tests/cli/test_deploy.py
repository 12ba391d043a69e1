"""`deploy`: what it sends, and how it waits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from fixtures.cluster_status import RIG2, deployment, lab, replica
from typer.testing import CliRunner

from aivailable.cli import app, models
from aivailable.cli.progress import LoadProgress
from aivailable.core.serving.status import ClusterStatus
from aivailable.errors import AivailableError

NAME = "mistral-7b"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def at(state: str, *, ready: int = 0, explanation: str = "", **part: Any) -> ClusterStatus:
    """The lab with one deployment in `state`, and one replica when `part` says how it is."""
    return dataclasses.replace(
        lab(),
        deployments=(deployment(NAME, state, ready, explanation),),
        replicas=(replica(NAME, RIG2, "rig2", **part),) if part else (),
    )


def test_what_is_sent(client: Any) -> None:
    arguments = "deploy qwen --as chat --replicas 1..3 --ctx 2048 --slots 2 --pin --no-wait"
    result = run(*arguments.split())
    assert result.exit_code == 0
    assert client.calls == [
        (
            "deploy",
            "qwen",
            {
                "name": "chat",
                "context": 2048,
                "slots": 2,
                "replicas_min": 1,
                "replicas_max": 3,
                "pin": True,
                "engine": "llama",
            },
        )
    ]
    assert result.stdout == "chat is deployed; `aivailable status` shows when it is ready\n"


def test_a_path_is_made_absolute(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_text("")
    assert models.absolute("weights") == str(tmp_path / "weights")
    assert models.absolute("sub/model.gguf") == str(tmp_path / "sub/model.gguf")
    assert models.absolute("./x") == str(tmp_path / "x")
    assert models.absolute("org/model:7b") == "org/model:7b"


def test_progress_until_ready(client: Any) -> None:
    client.statuses = [
        lab(),
        at("starting", explanation="no replica yet"),
        at("starting", status="fetching", progress=0.25),
        at("starting", status="loading", progress=0.5),
        at("ready", ready=1, status="ready"),
    ]
    result = run("deploy", NAME)
    assert result.exit_code == 0
    assert result.stdout == f"{NAME} is ready: aivailable chat {NAME} Hello\n"
    for text in ("starting: no replica yet", "on rig2: fetching", "on rig2: loading"):
        assert text in result.stderr


def test_a_model_that_cannot_chat_is_not_offered_for_it(client: Any) -> None:
    ready = at("ready", ready=1, status="ready")
    mute = tuple(dataclasses.replace(one, has_chat_template=False) for one in ready.models)
    client.statuses = [lab(), dataclasses.replace(ready, models=mute)]
    result = run("deploy", NAME)
    assert "its file has no chat template" in result.stdout.lower()
    assert "aivailable chat" not in result.stdout


def test_what_can_never_be_placed_ends_with_the_reason() -> None:
    with LoadProgress() as progress:
        watch = models.ReadyWatch(NAME, progress)
        hopeless = at("unplaceable", explanation="needs 9.1 GiB, 6.0 free")
        assert not watch.ready(hopeless, 100.0)
        assert not watch.ready(at("starting"), 104.0)
        assert not watch.ready(hopeless, 106.0)
        with pytest.raises(AivailableError, match=r"needs 9\.1 GiB, 6\.0 free.*undeploy"):
            watch.ready(hopeless, 111.0)


def test_a_deployment_that_vanishes_ends_the_wait(client: Any) -> None:
    client.statuses = [at("starting"), dataclasses.replace(lab(), deployments=(), replicas=())]
    result = run("deploy", NAME)
    assert result.exit_code == 1
    assert f"{NAME} was undeployed meanwhile" in result.stderr


def test_ready_needs_the_wanted_replicas() -> None:
    with LoadProgress() as progress:
        watch = models.ReadyWatch(NAME, progress)
        assert not watch.ready(at("ready", ready=0), 0.0)
        assert watch.ready(at("ready", ready=1), 0.0)
