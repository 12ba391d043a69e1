"""The demo's processes: started, watched, and gone without a trace whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aivailable.cli import demo, local_cluster
from aivailable.cli.local_cluster import LocalCluster
from aivailable.errors import AivailableError

PEER = """
import json, os, pathlib, signal, sys
home = pathlib.Path(sys.argv[sys.argv.index("--home") + 1])
life = os.open({fifo!r}, os.O_WRONLY)
if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(home / "arguments").write_text(" ".join(sys.argv[1:]))
(home / "admin.key").write_text("aiv-" + home.name)
(home / "api.json").write_text(json.dumps({{"url": "http://127.0.0.1:1" + home.name}}))
while True:
    signal.pause()
"""


class Life:
    """A pipe that every fake peer holds open: its end is the end of all of them."""

    def __init__(self, folder: Path, *, stubborn: bool = False) -> None:
        fifo = folder / "life"
        os.mkfifo(fifo)
        self._read = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self._read, True)
        script = folder / "peer.py"
        script.write_text(PEER.format(fifo=str(fifo), stubborn=stubborn))
        self.program = (sys.executable, str(script))

    def until_all_are_dead(self) -> None:
        assert os.read(self._read, 1) == b""
        os.close(self._read)


async def test_peers_start_apart_and_leave_nothing(tmp_path: Path) -> None:
    life = Life(tmp_path)
    async with LocalCluster(2, life.program) as peers:
        first = await peers.start()
        assert [peer.url for peer in peers.peers] == ["http://127.0.0.1:11", "http://127.0.0.1:12"]
        assert first.api_key() == "aiv-1"
        said = [(peer.home / "arguments").read_text() for peer in peers.peers]
        assert "--devices cpu:1GiB" in said[0]
        assert "--devices cpu:2GiB" in said[1]
        clusters = {text.split("--cluster ")[1].split()[0] for text in said}
        assert len(clusters) == 1
        assert first.home.stat().st_mode & 0o077 == 0
    life.until_all_are_dead()
    assert not first.home.exists()


async def test_a_stubborn_peer_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "STOP_GRACE_S", 0.05)
    life = Life(tmp_path, stubborn=True)
    async with LocalCluster(1, life.program) as peers:
        peer = await peers.start()
    life.until_all_are_dead()
    assert peer.process.returncode == -signal.SIGKILL


async def test_a_peer_that_ends_is_reported_with_its_last_words() -> None:
    program = (sys.executable, "-c", "raise SystemExit('port 8420 is in use')")
    async with LocalCluster(1, program) as peers:
        with pytest.raises(AivailableError, match=r"ended \(exit code 1\): port 8420 is in use"):
            await peers.start()


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_peers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    life = Life(tmp_path)
    script = f"""
import asyncio, os, signal
from aivailable.cli.local_cluster import LocalCluster
async def main():
    async with LocalCluster(2, {life.program!r}) as peers:
        await peers.start()
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    life.until_all_are_dead()


def test_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AivailableError, match=r"pip install 'aivailable\[demo\]'"):
        demo.find_model("smollm2")
    with pytest.raises(AivailableError, match="it has smollm2"):
        demo.find_model("gpt-5")


def test_voters_that_a_demo_waits_for() -> None:
    assert [demo.voters_expected(members) for members in range(1, 8)] == [1, 1, 3, 3, 5, 5, 5]
