"""What the way through another peer costs: straight to the host of a model against one hop.

Three peers run on the loopback. The fake engine answers without a pause, so the figures are of the
way and not of a model. Each round asks for the same streamed answers, first at the peer that hosts
the model, then at one that does not. Figures are the time to the first byte of an answer, the
time between two tokens, and that of a whole answer, one value a round; "ours" is through the other
peer. A long prompt shows what reading, checking, packing and unpacking of a request cost.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.peers import BenchFailed, Cluster, Peer, State
from bench.report import Figure, Wanted, report, wanted

ROUNDS = 60
ROUNDS_QUICK = 15
WARM_ROUNDS = 2
ANSWERS = 5
"""In one round, at each of the two peers."""
TOKENS = 64
LONG_PROMPT_CHARS = 200_000
CONTEXT = 65_536
SLOTS = 4
MODEL = "fake"
ANSWER_LIMIT_S = 60.0


@dataclass(slots=True)
class _Side:
    """Seconds, one value for each round."""

    first_s: list[float] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    long_s: list[float] = field(default_factory=list)

    def round(self, peer: Peer, key: str) -> None:
        with contextlib.closing(_connect(peer)) as connection:
            seen = [_answer(connection, key, f"hello {n}") for n in range(ANSWERS)]
            long = [
                _answer(connection, key, f"{n} " + "x" * LONG_PROMPT_CHARS, tokens=1)
                for n in range(ANSWERS)
            ]
        self.first_s.append(statistics.median(one.first_s for one in seen))
        self.token_s.append(statistics.median(one.token_s for one in seen))
        self.whole_s.append(statistics.median(one.whole_s for one in seen))
        self.long_s.append(statistics.median(one.whole_s for one in long))


@dataclass(frozen=True, slots=True)
class _Seen:
    first_s: float
    whole_s: float

    @property
    def token_s(self) -> float:
        return (self.whole_s - self.first_s) / (TOKENS - 1)


def main() -> None:
    asked = wanted("hop", "what the way through another peer costs")
    rounds = ROUNDS_QUICK if asked.quick else ROUNDS
    with Cluster() as cluster:
        cluster.start(3)
        cluster.until_whole()
        host, other = _deployed(cluster)
        straight, hop = _Side(), _Side()
        sides = [(straight, host), (hop, other)]
        for number in range(WARM_ROUNDS + rounds):
            if number == WARM_ROUNDS:
                # What a first request costs (imports, links) is no part of the way.
                straight, hop = _Side(), _Side()
                sides = [(straight, host), (hop, other)]
            for side, peer in sides if number % 2 else reversed(sides):
                side.round(peer, _key(peer))
        _report(asked, straight, hop)


def _report(asked: Wanted, straight: _Side, hop: _Side) -> None:
    figures = [
        ("first byte", hop.first_s, straight.first_s),
        ("one token after another", hop.token_s, straight.token_s),
        (f"an answer of {TOKENS} tokens", hop.whole_s, straight.whole_s),
        (f"a prompt of {LONG_PROMPT_CHARS:,} characters", hop.long_s, straight.long_s),
    ]
    report(
        "hop",
        [
            Figure(f"{name}, through another peer", "ms", _ms(ours), "straight", _ms(other))
            for name, ours, other in figures
        ],
        asked,
    )


def _ms(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(value * 1000 for value in values)


def _deployed(cluster: Cluster) -> tuple[Peer, Peer]:
    """The host of the model, and a peer that is not."""
    wish: dict[str, Any] = {"model": MODEL, "engine": "fake", "context": CONTEXT, "slots": SLOTS}
    options = {"need_bytes": str(2**20), "step_ms": "0"}
    answer = cluster.peers[0].ask(
        "POST", "/cluster/v1/deployments", {**wish, "options": options}, ANSWER_LIMIT_S
    )
    if answer is None or answer.status != 201:
        raise BenchFailed(f"the fake model was not deployed: {answer}")
    states = cluster.until("the fake model is ready", lambda seen: all(map(_host, seen)))
    host = cluster.by_node(states, _host(states[0]))
    return host, next(peer for peer in cluster.peers if peer is not host)


def _host(state: State) -> str:
    return next((str(one["node"]) for one in state["replicas"] if one["status"] == "ready"), "")


def _key(peer: Peer) -> str:
    return (peer.home / "admin.key").read_text("utf-8").strip()


def _connect(peer: Peer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(peer.place.host, peer.port(), timeout=ANSWER_LIMIT_S)


def _answer(
    connection: http.client.HTTPConnection, key: str, prompt: str, tokens: int = TOKENS
) -> _Seen:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "stream": True}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    begun_s = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    response.read(1)
    first_s = time.perf_counter() - begun_s
    response.read()
    whole_s = time.perf_counter() - begun_s
    if response.status != 200:
        raise BenchFailed(f"an answer was refused: {response.status}")
    return _Seen(first_s, whole_s)


if __name__ == "__main__":
    main()
