"""Real peers on this machine, for the benches: start, ask, kill, always end.

Owns processes and their folder; must not measure. Time is the caller's. Not the tests' fixtures:
a bench needs nothing but the package, so that it runs from any checkout. Peers run on the loopback,
or wherever `places` puts them (bench.lan: on hosts of their own).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from aivailable.core.cluster.voters import target_voters

ROOT = Path(__file__).resolve().parent.parent
LOOK_EVERY_S = 0.02
START_LIMIT_S = 60.0
STOP_LIMIT_S = 15.0
ASK_LIMIT_S = 5.0
LOG_SHOWN_BYTES = 2000

State = dict[str, Any]


class BenchFailed(Exception):
    """What was waited for did not come; the message has the peers' last words."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: Any


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer runs, and how it is reached from here."""

    prefix: tuple[str, ...] = ()
    """Goes before the command."""
    host: str = "127.0.0.1"
    flags: tuple[str, ...] = ("--interfaces", "127.0.0.1", "--bind", "127.0.0.1", "--port", "0")


def on_loopback(_number: int) -> Place:
    """Every peer on this machine itself."""
    return Place()


@dataclass(slots=True)
class Peer:
    """One `aivailable up`; may be killed and started again."""

    name: str
    home: Path
    cluster: str
    place: Place = field(default_factory=Place)
    devices: str = "cpu:64MiB"
    started_s: float = 0.0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns at once; `started_s` is the monotonic time just before."""
        with contextlib.suppress(FileNotFoundError):
            (self.home / "api.json").unlink()
        command = [
            *self.place.prefix,
            *(sys.executable, "-m", "aivailable", "up", "--home", str(self.home)),
            *self.place.flags,
            *("--cluster", self.cluster, "--name", self.name, "--devices", self.devices),
        ]
        with self.home.with_suffix(".out").open("ab") as output:
            self.started_s = time.monotonic()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
                cwd=ROOT,
            )

    def kill(self) -> float:
        """SIGKILL; returns the monotonic time just before."""
        assert self.process is not None
        at_s = time.monotonic()
        self.process.kill()
        self.process.wait()
        return at_s

    def ask(
        self, method: str, path: str, body: Any = None, limit_s: float = ASK_LIMIT_S
    ) -> Answer | None:
        """One request with the peer's admin key; None when it cannot be asked or is silent."""
        try:
            key = (self.home / "admin.key").read_text("utf-8").strip()
            connection = http.client.HTTPConnection(self.place.host, self.port(), timeout=limit_s)
            with contextlib.closing(connection):
                headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
                text = None if body is None else json.dumps(body)
                connection.request(method, path, text, headers)
                response = connection.getresponse()
                return Answer(response.status, json.loads(response.read() or b"null"))
        except (OSError, ValueError, http.client.HTTPException):
            return None

    def port(self) -> int:
        """The API's. Raises OSError and ValueError while there is none."""
        url = str(json.loads((self.home / "api.json").read_bytes())["url"])
        return urlsplit(url).port or 0

    def state(self) -> State:
        """The status document; {} while there is none."""
        answer = self.ask("GET", "/cluster/v1/state")
        return answer.body if answer is not None and answer.status == 200 else {}

    def last_words(self) -> str:
        try:
            return self.home.with_suffix(".out").read_bytes()[-LOG_SHOWN_BYTES:].decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return f"(no output to read: {error})"


@dataclass(slots=True)
class Cluster:
    """Peers of one random cluster name; leaving the block ends them and removes their folder."""

    peers: list[Peer] = field(default_factory=list)
    places: Callable[[int], Place] = on_loopback
    """By the peer's number, from 1."""
    devices: str = "cpu:64MiB"
    """Of every peer."""
    _name: str = field(default_factory=lambda: f"bench-{secrets.token_hex(4)}")
    _folder: Path = field(
        default_factory=lambda: Path(tempfile.mkdtemp(prefix="aivailable-bench-"))
    )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        running = [peer.process for peer in self.peers if peer.process is not None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, count: int) -> list[Peer]:
        """`count` more peers, started one right after the other."""
        fresh = []
        for _ in range(count):
            name = f"peer{len(self.peers) + 1}"
            place = self.places(len(self.peers) + 1)
            peer = Peer(name, self._folder / name, self._name, place, self.devices)
            self.peers.append(peer)
            peer.start()
            fresh.append(peer)
        return fresh

    def until(
        self,
        what: str,
        condition: Callable[[list[State]], bool],
        peers: list[Peer] | None = None,
        limit_s: float = START_LIMIT_S,
    ) -> list[State]:
        """Ask the peers until the condition holds for what all of them see.

        Raises BenchFailed after `limit_s` seconds.
        """
        asked = self.peers if peers is None else peers
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            states = [peer.state() for peer in asked]
            if all(states) and condition(states):
                return states
            time.sleep(LOOK_EVERY_S)
        words = "\n".join(f"--- {peer.name}\n{peer.last_words()}" for peer in asked)
        raise BenchFailed(f"not within {limit_s:g} s: {what}\n{words}")

    def until_whole(self) -> list[State]:
        """One cluster, everyone up with its device, as many voters as there shall be."""
        count = len(self.peers)
        return self.until(f"{count} peers are one cluster", lambda seen: whole(seen, count))

    def by_node(self, states: list[State], node: str) -> Peer:
        """The peer that is `node`; `states` are those of all peers, in order."""
        return next(p for p, s in zip(self.peers, states, strict=True) if s["here"] == node)


def members(states: list[State]) -> bool:
    """Every one is a member of one and the same cluster, which has a controller."""
    return (
        all(state["phase"] == "member" and state["controller"] for state in states)
        and len({state["cluster_id"] for state in states}) == 1
    )


def whole(states: list[State], count: int) -> bool:
    """`count` members of one mind, all heard and with a device, as many voters as there shall be.

    Of one mind: the same controller in the same term, and the same log applied by all.
    """
    voters = target_voters(count)
    minds = {(state["controller"], state["term"], state["version"]) for state in states}
    return (
        members(states)
        and len(minds) == 1
        and all(
            len(state["voters"]) == voters
            and state["quorum"]
            and len(state["nodes"]) == count
            and all(node["state"] in ("here", "up") and node["devices"] for node in state["nodes"])
            for state in states
        )
    )


def environment() -> Mapping[str, str]:
    """Ours, without settings of a node that runs here; the fake engine is allowed."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("AIVAILABLE_")}
    path = [str(ROOT), str(ROOT / "tui"), os.environ.get("PYTHONPATH", "")]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "AIVAILABLE_FAKE_ENGINE": "1",
    }
