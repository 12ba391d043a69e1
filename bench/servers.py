"""Two servers of one model, for the engine's bench: a peer of ours, and llama.cpp's own server.

Owns processes; must not measure. Ours is a whole peer (HTTP, routing, worker) with one replica;
the other is the server of llama.cpp as `xllamacpp` packs it (in a process of its own), or a
`llama-server` binary that the environment names (LLAMA_SERVER), which should be built from the
same sources as llama-cpp-python's libraries.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from aivailable.gguf.header import read_header
from bench.peers import ROOT, BenchFailed, Peer, whole

READY_LIMIT_S = 120.0
STOP_LIMIT_S = 15.0
LOOK_EVERY_S = 0.1
DEVICE = "cpu:6GiB"
MODEL = "bench"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The same on every side."""

    context: int
    """Tokens per slot."""
    slots: int
    threads: int


@dataclass(frozen=True, slots=True)
class Server:
    """An OpenAI endpoint that answers for `model`."""

    name: str
    url: str
    model: str
    key: str = ""
    chat: bool = True
    """Whether the model has a chat template."""


@contextlib.contextmanager
def ours(path: Path, sizes: Sizes) -> Iterator[Server]:
    """One peer of a cluster of its own, the model deployed and ready."""
    folder = Path(tempfile.mkdtemp(prefix="aivailable-bench-"))
    peer = Peer("bench", folder / "peer", f"bench-{secrets.token_hex(4)}", devices=DEVICE)
    try:
        peer.start()
        _until("the peer has its device", peer, lambda: _alone(peer))
        body = {
            "model": str(path),
            "name": MODEL,
            "context": sizes.context,
            "slots": sizes.slots,
            "options": {"threads": str(sizes.threads)},
        }
        answer = peer.ask("POST", "/cluster/v1/deployments", body, limit_s=60.0)
        if answer is None or answer.status != 201:
            raise BenchFailed(f"the model was not deployed: {answer}\n{peer.last_words()}")
        _until("the replica is ready", peer, lambda: _ready(peer))
        url = json.loads((peer.home / "api.json").read_bytes())["url"]
        key = (peer.home / "admin.key").read_text("utf-8").strip()
        yield Server("ours", url, MODEL, key, _chats(path))
    finally:
        if peer.process is not None:
            peer.process.terminate()
            try:
                peer.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                peer.kill()
        shutil.rmtree(folder, ignore_errors=True)


def others() -> list[str]:
    """The other sides that can be had on this machine."""
    found = ["xllamacpp"] if find_spec("xllamacpp") is not None else []
    if os.environ.get("LLAMA_SERVER"):
        found.append("llama-server")
    return found


@contextlib.contextmanager
def other(name: str, path: Path, sizes: Sizes) -> Iterator[Server]:
    """`xllamacpp` or `llama-server` with the same model and sizes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    numbers = [str(number) for number in (port, sizes.context, sizes.slots, sizes.threads)]
    if name == "xllamacpp":
        command = [sys.executable, "-m", "bench.xllamacpp_server", str(path), *numbers]
    else:
        command = [
            *(os.environ["LLAMA_SERVER"], "-m", str(path), "--host", "127.0.0.1"),
            *("--port", numbers[0], "-c", str(sizes.context * sizes.slots), "-np", numbers[2]),
            *("-t", numbers[3], "-tb", numbers[3], "-ngl", "0", "--kv-unified", "--no-webui"),
        ]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT
        )
        try:
            _until_healthy(f"http://127.0.0.1:{port}/health", process)
            yield Server(name, f"http://127.0.0.1:{port}", MODEL, chat=_chats(path))
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _chats(path: Path) -> bool:
    return read_header(path).chat_template is not None


def _alone(peer: Peer) -> bool:
    state = peer.state()
    return bool(state) and whole([state], 1)


def _ready(peer: Peer) -> bool:
    replicas = peer.state().get("replicas", [])
    for replica in replicas:
        if replica["status"] == "failed":
            raise BenchFailed(f"the replica failed: {replica}")
    return any(replica["status"] == "ready" for replica in replicas)


def _until(what: str, peer: Peer, condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline_s:
        if condition():
            return
        if peer.process is None or peer.process.poll() is not None:
            raise BenchFailed(f"the peer ended\n{peer.last_words()}")
        time.sleep(LOOK_EVERY_S)
    raise BenchFailed(f"not within {READY_LIMIT_S:g} s: {what}\n{peer.last_words()}")


def _until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise BenchFailed(f"the other server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2.0) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(LOOK_EVERY_S)
    raise BenchFailed("the other server did not become healthy")
