"""What a person or a client can get wrong: a clear refusal, and a peer that stays up."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fixtures.gguf_writer import gguf_bytes
from fixtures.homes import Homes
from fixtures.peers import PeerProcess, Peers, cluster_name, loopback_peer, voting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

END_LIMIT_S = 30.0
TINY_DEVICE = "cpu:8MiB"


def ended(peer: PeerProcess) -> tuple[int, str]:
    """Exit code and output of a peer that must not start."""
    peer.start()
    assert peer.process is not None
    try:
        code = peer.process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        peer.kill()
        raise AssertionError(f"still running:\n{peer.output()}") from None
    return code, " ".join(peer.output().split())


def test_a_port_in_use_is_named_with_the_next_step(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = ended(loopback_peer(tmp_path / "p", cluster_name(), port=port))
    assert code in (1, 2)
    assert str(port) in said
    assert "--port" in said
    assert "Traceback" not in said


def test_a_home_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("a file stands here")
    code, said = ended(loopback_peer(tmp_path / "p", cluster_name()))
    assert code in (1, 2)
    assert "--home" in said
    assert "Traceback" not in said


def test_several_wrong_flags_are_named_at_once(tmp_path: Path) -> None:
    peer = loopback_peer(tmp_path / "p", "a/b", devices="gpu:1GiB", flags=("--join-window", "soon"))
    code, said = ended(peer)
    assert code == 2
    assert "gpu:1GiB" in said
    assert "soon" in said
    assert "Traceback" not in said


async def test_one_home_has_one_peer(peers: Peers, tmp_path: Path) -> None:
    first = loopback_peer(tmp_path / "p", cluster_name())
    peers.peers = [first]
    first.start()
    await first.listening()
    second = PeerProcess(tmp_path / "p", first.flags)
    second.home = first.home
    told = (first.home / "api.json").read_bytes()
    code, said = ended(second)
    assert code in (1, 2)
    assert "another aivailable" in said
    (first.home / "api.json").write_bytes(told)
    await peers.until("the first one still serves", voting(1))


@pytest.fixture
async def peer(homes: Homes, peers: Peers, tmp_path: Path) -> PeerProcess:
    """The only member of its cluster."""
    await homes.start(peers, tmp_path, 1, TINY_DEVICE)
    return peers.peers[0]


async def test_a_damaged_home_ends_the_start_with_the_reason(peer: PeerProcess) -> None:
    peer.kill()
    (peer.home / "cluster").write_bytes(b"garbage")
    code, said = ended(peer)
    assert code in (1, 2)
    assert "'cluster' in home is damaged" in said
    assert "Traceback" not in said


async def test_deployments_that_cannot_be_are_explained(
    peers: Peers, peer: PeerProcess, tmp_path: Path
) -> None:
    """Damaged and truncated files, unknown models, too much context, no room: 4xx with the name of
    the thing, and the peer goes on."""
    good = gguf_bytes()
    damaged = {
        "truncated.gguf": good[: len(good) // 2],
        "damaged.gguf": b"GGUF" + bytes(100),
        "empty.gguf": b"",
        "text.gguf": b"hello",
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        answer = await peers.deploy(peer, model=str(tmp_path / name))
        check(answer, 400, name)
    check(await peers.deploy(peer, model=str(tmp_path / "nowhere.gguf")), 400, "nowhere")
    check(await peers.deploy(peer, model="nobody/knows-it"), 404, "nobody/knows-it")
    (tmp_path / "tiny.gguf").write_bytes(good)
    tiny = str(tmp_path / "tiny.gguf")
    check(await peers.deploy(peer, model=tiny, context=10**6), 400, "trained for 512 tokens")
    check(await peers.deploy(peer, model=tiny, context=0), 400, "context")
    check(await peers.deploy(peer, model=tiny, slots=-1), 400, "slots")
    check(await peers.deploy(peer, model=tiny, name="a b"), 400, "a b")
    big = {"need_bytes": str(100 * 1024**3)}
    answer = await peers.deploy(peer, model="huge", engine="fake", options=big)
    check(answer, 409, "GiB", "400", "422", "507")
    assert "peer1" in answer.body["error"]["message"]
    await still_serves(peers, peer)


async def test_requests_that_cannot_be_are_explained(peers: Peers, peer: PeerProcess) -> None:
    await peers.deploy_fake(peer)
    path = "/v1/chat/completions"
    message = [{"role": "user", "content": "hi"}]
    check(await peers.ask(peer, "POST", path, data=b"{not json"), 400, "JSON")
    check(await peers.ask(peer, "POST", path, data=b"[1]"), 400, "")
    check(await peers.ask(peer, "POST", path, {"messages": message}), 400, "model")
    check(await peers.ask(peer, "POST", path, {"model": "fake"}), 400, "messages")
    unknown = {"model": "unknown-model", "messages": message}
    check(await peers.ask(peer, "POST", path, unknown), 404, "unknown-model")
    wrong = {"model": "fake", "messages": message, "temperature": "hot"}
    check(await peers.ask(peer, "POST", path, wrong), 400, "temperature")
    huge = b'{"model": "fake", "prompt": "' + b"x" * (5 * 1024 * 1024) + b'"}'
    check(await peers.ask(peer, "POST", "/v1/completions", data=huge), 413, "")
    long = {"model": "fake", "prompt": "w " * 9000}
    check(await peers.ask(peer, "POST", "/v1/completions", long), 400, "context")
    check(await peers.ask(peer, "GET", "/no/such/path"), 404, "/no/such/path")
    check(await peers.ask(peer, "GET", path), 405, "POST")
    check(await peers.ask(peer, "DELETE", "/cluster/v1/deployments/nothing"), 409, "nothing", "404")
    await still_serves(peers, peer)


async def test_keys_are_checked_at_once(peers: Peers, peer: PeerProcess) -> None:
    await peers.deploy_fake(peer)
    request = {"model": "fake", "prompt": "hi", "max_tokens": 2}
    check(await peers.ask(peer, "POST", "/v1/completions", request, key="wrong"), 401, "key")
    minted = await peers.ask(peer, "POST", "/cluster/v1/keys", {"scope": "user", "label": "x"})
    user = minted.body["key"]
    assert (await peers.ask(peer, "POST", "/v1/completions", request, key=user)).status == 200
    denied = await peers.ask(peer, "POST", "/cluster/v1/keys", {"scope": "admin"}, key=user)
    check(denied, 403, "admin")
    revoked = await peers.ask(peer, "DELETE", f"/cluster/v1/keys/{minted.body['key_id']}")
    assert revoked.status == 200, revoked.body
    check(await peers.ask(peer, "POST", "/v1/completions", request, key=user), 401, "revoked")
    await still_serves(peers, peer)


async def test_a_model_that_never_loads_is_reported(peers: Peers, peer: PeerProcess) -> None:
    options = {"need_bytes": "1000", "fail_load": "bad_file"}
    answer = await peers.deploy(peer, model="broken", engine="fake", options=options)
    assert answer.status == 201, answer.body
    await peers.until(
        "the failure is explained",
        lambda s: "bad_file" in s[0]["deployments"][0]["explanation"],
    )
    await still_serves(peers, peer)


def check(answer: Any, status: int, names: str, *also: str) -> None:
    """OpenAI's error shape with the status (or one of `also`) and the thing's name in it."""
    assert str(answer.status) in (str(status), *also), (answer.status, answer.body)
    error = answer.body["error"]
    assert names in error["message"], error
    assert error["code"]
    assert error["type"]
    assert error["request_id"] == answer.headers["X-AIvailable-Request"]


async def still_serves(peers: Peers, peer: PeerProcess) -> None:
    assert peer.alive
    assert "Traceback" not in peer.output()
    await peers.until("it is a member still", voting(1))
    await peers.deploy_fake(peer, "after")
    assert (await peers.complete(peer, "after")).status == 200
