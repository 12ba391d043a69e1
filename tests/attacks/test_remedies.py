"""The remedies that we print mend what they are printed for: each runs as it is printed."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures.peers import PeerProcess, Peers, State, cluster_name, loopback_peer
from fixtures.printed import printed, run_line, run_printed

from aivailable.advice import (
    ADMIT,
    DEPLOY,
    DOCTOR,
    DOCTOR_PEER,
    INVITE,
    KEY_LIST,
    LEAVE,
    LOCK,
    MODELS,
    REMOVE,
    STATUS,
    UNDEPLOY,
    UP,
    UP_CLUSTER,
    UP_CPU,
    UP_SEED,
)

LOCKED = ("--join-window", "0")
TRIES = 25
NOBODY_UID = 54_321
"""No passwd entry has it."""


def founded(states: list[State]) -> bool:
    return all(state["phase"] == "member" and state["quorum"] for state in states) and all(
        node["devices"] for state in states for node in state["nodes"]
    )


def together(count: int) -> object:
    def holds(states: list[State]) -> bool:
        return founded(states) and all(len(state["nodes"]) == count for state in states)

    return holds


async def start(peers: Peers, *new: PeerProcess) -> None:
    peers.peers += [peer for peer in new if peer not in peers.peers]
    for peer in new:
        peer.start()
    await asyncio.gather(*(peer.listening() for peer in new))


async def alone(peers: Peers, home: Path, *flags: str, port: int = 0) -> PeerProcess:
    """One founded peer."""
    peer = loopback_peer(home, cluster_name(), flags=flags, port=port)
    await start(peers, peer)
    await peers.until("founded", founded, [peer])
    return peer


@pytest.mark.remedy("admit")
@pytest.mark.remedy("lock")
async def test_a_waiting_node_is_let_in_by_the_command_that_both_sides_show(
    peers: Peers, tmp_path: Path
) -> None:
    one = await alone(peers, tmp_path / "one", *LOCKED)
    two = loopback_peer(tmp_path / "two", one.flags[5], flags=LOCKED)
    await start(peers, two)
    states = await peers.until("it waits", lambda s: s[0]["phase"] == "waiting", [two])
    await peers.until("it is seen to wait", lambda s: s[0]["waiting"], [one])
    shown = await run_printed(one, STATUS.line)
    assert printed(states[0]["advice"]) == [ADMIT.line]
    assert printed(shown.output)[-1] == ADMIT.line

    said = await run_printed(one, ADMIT.line)
    assert said.code == 0, said.output
    await peers.until("two members", together(2))
    (lock,) = printed(said.output)
    assert lock == LOCK.line
    locked = await run_printed(one, lock)
    assert locked.code == 0, locked.output
    await peers.until("closed", lambda s: not any(state["window_open"] for state in s))
    assert printed(locked.output) == [ADMIT.line]


@pytest.mark.remedy("key-create")
@pytest.mark.remedy("key-list")
async def test_who_has_no_key_gets_one_by_the_command_in_the_refusal(
    peers: Peers, tmp_path: Path
) -> None:
    peer = await alone(peers, tmp_path / "one")

    async def asked(key: str) -> tuple[int, str]:
        # Whoever comes through a proxy is not of this machine.
        headers = {"Authorization": f"Bearer {key}"} if key else {"X-Forwarded-For": "10.0.0.7"}
        async with peers.session.get(f"{peer.url}/v1/models", headers=headers) as response:
            return response.status, await response.text()

    status, text = await asked("")
    assert status == 401
    (create,) = printed(text)
    made = await run_printed(peer, create)
    assert made.code == 0, made.output
    key = next(word for word in made.output.split() if len(word) > 24 and word.isprintable())
    assert (await asked(key))[0] == 200

    status, text = await asked(key[:-1] + ("a" if key[-1] != "a" else "b"))
    assert status == 401
    assert printed(text) == [KEY_LIST.line]
    listed = await run_printed(peer, KEY_LIST.line)
    assert listed.code == 0, listed.output
    assert "user" in listed.output


@pytest.mark.remedy("undrain")
@pytest.mark.remedy("pause-off")
@pytest.mark.remedy("status")
async def test_a_drain_and_a_pause_end_by_the_commands_that_they_print(
    peers: Peers, tmp_path: Path
) -> None:
    peer = await alone(peers, tmp_path / "one")
    for line in ("aivailable drain one --force", "aivailable pause 1h"):
        begun = await run_printed(peer, line)
        assert begun.code == 0, begun.output
        (end,) = printed(begun.output)
        ended = await run_printed(peer, end)
        assert ended.code == 0, ended.output
    (state,) = await peers.states()
    assert not state["nodes"][0]["draining"]
    assert state["nodes"][0]["paused_left_s"] == 0
    shown = await run_printed(peer, STATUS.line)
    assert "one" in shown.output
    assert printed(shown.output) == [DEPLOY.line]


@pytest.mark.remedy("deploy")
@pytest.mark.remedy("undeploy")
@pytest.mark.remedy("models")
async def test_what_nobody_deployed_is_deployed_by_the_printed_command(
    peers: Peers, tmp_path: Path
) -> None:
    peer = await alone(peers, tmp_path / "one")
    refused = await peers.complete(peer, "small")
    for _ in range(TRIES):
        if refused.status != 503:  # Its own first heartbeat may still be to come.
            break
        await asyncio.sleep(0.2)
        refused = await peers.complete(peer, "small")
    assert refused.status == 404
    assert printed(refused.body["error"]["message"]) == [DEPLOY.line]
    need = ("--engine", "fake", "--option", f"need_bytes={1 << 20}")
    done = await run_printed(peer, DEPLOY.of("small").line, *need)
    assert done.code == 0, done.output
    assert (await peers.complete(peer, "small")).status == 200
    gone = await run_printed(peer, UNDEPLOY.of("small").line)
    assert gone.code == 0, gone.output
    listed = await run_printed(peer, MODELS.line)
    assert printed(listed.output) == [DEPLOY.of("PATH").line]


@pytest.mark.slow
@pytest.mark.remedy("remove")
@pytest.mark.remedy("leave")
async def test_a_dead_member_is_removed_and_a_live_one_leaves_by_what_is_printed(
    three: Peers,
) -> None:
    *living, dead = three.peers
    dead.kill()
    await three.until(
        "it is down",
        lambda s: all(
            n["state"] == "down" for x in s for n in x["nodes"] if n["name"] == dead.name
        ),
        living,
    )
    done = await run_printed(living[0], REMOVE.of(dead.name).line, "--yes")
    assert done.code == 0, done.output
    await three.until("two are left", lambda s: all(len(x["nodes"]) == 2 for x in s), living)

    left = await run_printed(living[1], LEAVE.line, "--yes")
    assert left.code == 0, left.output
    assert printed(left.output) == [UP.line]
    await three.until("one is left", lambda s: len(s[0]["nodes"]) == 1, living[:1])


@contextmanager
def occupied() -> Iterator[int]:
    """A port of another program, as another user's would be."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.remedy("up-port")
@pytest.mark.parametrize("offset", [0, -1], ids=["the API's", "the links'"])
async def test_a_taken_port_is_named_and_the_printed_one_works(
    peers: Peers, tmp_path: Path, offset: int
) -> None:
    with occupied() as port:
        peer = loopback_peer(tmp_path / "one", cluster_name(), port=port + offset)
        refused = await run_printed(peer, UP.line, *peer.flags)
        assert refused.code == 2, refused.output
        assert f"port {port} " in refused.output
        assert "Traceback" not in refused.output
        (line,) = printed(refused.output)
        flags = [*peer.flags]
        at = flags.index("--port")
        flags[at : at + 2] = line.split()[2:]
        peer.flags = tuple(flags)
        await start(peers, peer)
        await peers.until("founded", founded)


@pytest.mark.slow
@pytest.mark.remedy("up")
@pytest.mark.remedy("up-seed")
@pytest.mark.remedy("up-cluster")
@pytest.mark.remedy("up-cpu")
@pytest.mark.remedy("doctor")
@pytest.mark.remedy("doctor-peer")
@pytest.mark.remedy("invite")
async def test_a_node_is_started_and_looked_at_by_the_printed_commands(
    peers: Peers, tmp_path: Path
) -> None:
    """`up` alone, without a device; then with one, in another cluster, by a seed."""
    with occupied() as port:
        pass
    seed = f"127.0.0.1:{port}"
    peer = await alone(peers, tmp_path / "one", port=port - 1)
    own, cluster = ("--interfaces", "127.0.0.1", "--bind", "127.0.0.1"), peer.flags[5]
    line = " ".join(
        [
            UP.line,
            *UP_SEED.of(seed).line.split()[2:],
            *UP_CLUSTER.of(cluster).line.split()[2:],
            *UP_CPU.line.split()[2:],
        ]
    )
    two = PeerProcess(tmp_path / "two", (*own, "--port", "0", *line.split()[2:]))
    two.environment["AIVAILABLE_FAKE_ENGINE"] = "1"
    await start(peers, two)
    states = await peers.until("two members", together(2))
    sizes = {d["total_bytes"] for n in states[0]["nodes"] for d in n["devices"]}
    assert 4 << 30 in sizes

    for line in (DOCTOR.line, DOCTOR_PEER.of(seed).line):
        looked = await run_printed(peer, line)
        assert looked.code in (0, 1), looked.output
        assert "membership" in looked.output.lower() or "node" in looked.output.lower()
        assert "Traceback" not in looked.output
    key = await run_printed(peer, INVITE.line, home=False)
    assert key.code == 0, key.output
    assert printed(key.output) == [LOCK.line]


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="another user needs root"
)
@pytest.mark.parametrize(
    "line", [UP.line, STATUS.line, DOCTOR.line, LEAVE.line, KEY_LIST.line, DEPLOY.line]
)
def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path, line: str) -> None:
    """The smallest input: no HOME, and a user id that no passwd entry has."""
    rights = "+dac_override,+dac_read_search"
    user = ["setpriv", "--reuid", str(NOBODY_UID), "--regid", str(NOBODY_UID), "--clear-groups"]
    # The packages may lie where only we can read.
    user += ["--inh-caps", rights, "--ambient-caps", rights]
    bare = {"PATH": os.environ["PATH"]}
    said = asyncio.run(run_line(line, (), bare, prefix=user, folder=tmp_path))
    assert said.code == 2, said.output
    assert "set AIVAILABLE_HOME" in said.output
    assert len(said.output.strip().splitlines()) == 1, said.output
    assert [*tmp_path.iterdir()] == [], "no folder called ~"

    told = {**bare, "AIVAILABLE_HOME": str(tmp_path / "home"), "AIVAILABLE_URL": "127.0.0.1:1"}
    if line == STATUS.line:
        said = asyncio.run(run_line(line, (), told, prefix=user, folder=tmp_path))
        assert "nobody answers" in said.output, "the remedy gets it one step further"
