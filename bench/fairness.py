"""What one key's flood costs another key that asks for one thing.

Three peers on the loopback and the fake engine, so that answers take a known time: one peer hosts
a model with two slots, the two others are ingresses. In each round key B asks for one answer
through the second peer, with nobody else there; then key A sends forty requests at once through
the first peer, and when they fill A's share of the line B asks again. At last A holds both slots
with answers that would take minutes, and B asks once more. The other side is B alone, in the same
round. Every answer of B must be 200.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aivailable.core.serving.admission import RESERVED_SHARE, SLOT_PATIENCE_S
from aivailable.core.state.records import ClusterSettings
from bench.peers import LOOK_EVERY_S, BenchFailed, Cluster, Peer, State
from bench.report import Figure, Wanted, report, wanted

ROUNDS = 12
ROUNDS_QUICK = 2
FLOOD = 40
SLOTS = 2
STEP_MS = 20
ANSWER_TOKENS = 40
ENDLESS_TOKENS = 8000
CONTEXT = 16384
MODEL = "fake"
KEY_LIMIT_S = 10.0
LINE_LIMIT_S = 30.0
ANSWER_LIMIT_S = 120.0
SHARE_MAX = 2.0
"""Issue 11's acceptance: at most this many times its time alone, and one answer."""


@dataclass(slots=True)
class _Measured:
    """Seconds, one for each round."""

    alone: list[float] = field(default_factory=list)
    beside_flood: list[float] = field(default_factory=list)
    beside_endless: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Lab:
    cluster: Cluster
    first: Peer
    second: Peer
    host: Peer
    greedy: str
    modest: str
    asked: Wanted
    found: _Measured = field(default_factory=_Measured)

    def round(self, number: int, count: int) -> None:
        self.found.alone.append(self._modest_s())
        places = SLOTS * ClusterSettings().queue_per_slot_max
        full = SLOTS + places - places // RESERVED_SHARE
        with self._greedy(FLOOD, ANSWER_TOKENS, full):
            self.found.beside_flood.append(self._modest_s())
        with self._greedy(SLOTS, ENDLESS_TOKENS, SLOTS):
            self.found.beside_endless.append(self._modest_s())
        self.asked.say(
            f"round {number} of {count}: alone {self.found.alone[-1]:.2f} s, beside {FLOOD}"
            f" requests {self.found.beside_flood[-1]:.2f} s, beside answers without end"
            f" {self.found.beside_endless[-1]:.2f} s"
        )

    def _modest_s(self) -> float:
        """One answer of key B through the second peer."""
        begun_s = time.monotonic()
        with _request(self.second, self.modest, "hello", ANSWER_TOKENS) as response:
            response.read()
            if response.status != 200:
                raise BenchFailed(f"key B was answered {response.status}")
        return time.monotonic() - begun_s

    @contextlib.contextmanager
    def _greedy(self, count: int, tokens: int, until: int) -> Iterator[None]:
        """Key A's requests are there when the block begins; they end with it."""
        flood = [_Client(self.first, self.greedy, f"{n} again", tokens) for n in range(count)]
        for client in flood:
            client.start()
        try:
            self._wait(lambda load: load >= until)
            yield
        finally:
            for client in flood:
                client.leave()
            for client in flood:
                client.join()
            self._wait(lambda load: load == 0)

    def _wait(self, holds: Callable[[int], bool]) -> None:
        self.cluster.until(
            "key A's requests are as they shall be",
            lambda states: holds(_load(states[0])),
            [self.host],
            LINE_LIMIT_S,
        )


class _Client(threading.Thread):
    """One request of key A, until it is answered or `leave` closes its connection."""

    def __init__(self, peer: Peer, key: str, prompt: str, tokens: int) -> None:
        super().__init__(daemon=True)
        self._asked = (peer, key, prompt, tokens)
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        # A connection that is closed under it is how this client ends.
        with contextlib.suppress(OSError, ValueError, AttributeError, http.client.HTTPException):
            peer, key, prompt, tokens = self._asked
            self._connection = _connect(peer)
            _send(self._connection, key, prompt, tokens)
            self._connection.getresponse().read()

    def leave(self) -> None:
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(2)


def main() -> None:
    asked = wanted("fairness", "what one key's flood costs another key")
    rounds = ROUNDS_QUICK if asked.quick else ROUNDS
    with Cluster() as cluster:
        cluster.start(3)
        cluster.until_whole()
        lab = _lab(cluster, asked)
        for number in range(rounds):
            lab.round(number + 1, rounds)
    found = lab.found
    _say_bound(asked, found)
    alone = tuple(found.alone)
    waits = [
        (f"one request beside {FLOOD} of another key, through another peer", found.beside_flood),
        (f"one request while another key's answers hold all {SLOTS} slots", found.beside_endless),
    ]
    report(
        "fairness",
        [Figure(name, "s", tuple(ours), "the same alone", alone) for name, ours in waits],
        asked,
    )


def _lab(cluster: Cluster, asked: Wanted) -> _Lab:
    wish = {"model": MODEL, "engine": "fake", "context": CONTEXT, "slots": SLOTS}
    options = {"need_bytes": str(2**20), "step_ms": str(STEP_MS)}
    answer = cluster.peers[0].ask(
        "POST", "/cluster/v1/deployments", {**wish, "options": options}, ANSWER_LIMIT_S
    )
    if answer is None or answer.status != 201:
        raise BenchFailed(f"the fake model was not deployed: {answer}")
    states = cluster.until("the fake model is ready", lambda seen: all(map(_host, seen)))
    host = cluster.by_node(states, _host(states[0]))
    first, second = (peer for peer in cluster.peers if peer is not host)
    return _Lab(cluster, first, second, host, _key(cluster, first), _key(cluster, second), asked)


def _key(cluster: Cluster, user: Peer) -> str:
    """A new user key that its peer knows."""
    made = cluster.peers[0].ask("POST", "/cluster/v1/keys", {"scope": "user"}, KEY_LIMIT_S)
    if made is None or made.status != 201:
        raise BenchFailed(f"no key was made: {made}")
    key = str(made.body["key"])
    deadline_s = time.monotonic() + KEY_LIMIT_S
    while time.monotonic() < deadline_s:
        with contextlib.closing(_connect(user)) as connection:
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
            if connection.getresponse().status == 200:
                return key
        time.sleep(LOOK_EVERY_S)
    raise BenchFailed("a new key did not reach its peer")


def _connect(peer: Peer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(peer.place.host, peer.port(), timeout=ANSWER_LIMIT_S)


def _send(connection: http.client.HTTPConnection, key: str, prompt: str, tokens: int) -> None:
    body: dict[str, Any] = {"model": MODEL, "prompt": prompt, "max_tokens": tokens}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)


@contextlib.contextmanager
def _request(peer: Peer, key: str, prompt: str, tokens: int) -> Iterator[http.client.HTTPResponse]:
    with contextlib.closing(_connect(peer)) as connection:
        _send(connection, key, prompt, tokens)
        yield connection.getresponse()


def _say_bound(asked: Wanted, found: _Measured) -> None:
    """The acceptance, round by round: an answer of A takes as long as one of B."""
    over = [
        beside_s - (SHARE_MAX * alone_s + alone_s)
        for alone_s, beside_s in zip(found.alone, found.beside_flood, strict=True)
    ]
    verdict = "within" if max(over) <= 0 else "OVER"
    asked.say(
        f"beside {FLOOD} requests: worst {max(found.beside_flood):.2f} s, {verdict} the bound of"
        f" {SHARE_MAX:g} × alone and one answer"
        f" ({(SHARE_MAX + 1) * statistics.median(found.alone):.2f} s)"
    )
    asked.say(f"beside answers without end: {SLOT_PATIENCE_S:g} s of it are the patience")


def _load(state: State) -> int:
    """Requests at the replica, in slots and in its line."""
    return sum(int(one["slots_busy"]) + int(one["waiting"]) for one in state["replicas"])


def _host(state: State) -> str:
    return next((str(one["node"]) for one in state["replicas"] if one["status"] == "ready"), "")


if __name__ == "__main__":
    main()
