"""A model whose only host is killed: the time until it answers again, and where that time goes.

Three peers on the loopback; a real small model runs on one of them, and its file lies on two.
`kill -9` the host, and ask a survivor at once: its answer ends the round. The log's events, whose
times are this machine's clock, split it: **detect** until the log says that the node is down,
**decide** until the replica is placed anew, **fetch** until its worker is started, **load** until
it is ready, **answer** until the waiting client has its first token. In one variant the new host
holds the file already. In the other the one that does is drained, so that it serves the file and
not the model, and the killed one loses its copy after it has come back: each round fetches anew.

`--file held,fetched` and `--model smollm2|gemma` choose.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.models import MODELS
from bench.peers import LOOK_EVERY_S, BenchFailed, Cluster, Peer, State
from bench.report import Figure, Wanted, report, wanted

ROUNDS = 12
ROUNDS_QUICK = 1
PEERS = 3
DEVICE = "cpu:2GiB"
CONTEXT_TOKENS = 2048
SLOTS = 2
COPIES = 2
NAME = "bench"
FILES = "held,fetched"
DEPLOY_LIMIT_S = 60.0
ANSWER_LIMIT_S = 90.0
SERVED_LIMIT_S = 90.0
PARTS = ("detect", "decide", "fetch", "load", "answer")
NO_OTHER = "nothing else re-places a model by itself on this machine"


@dataclass(slots=True)
class _Measured:
    """Seconds, one for each round."""

    total: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PARTS})


class _Lab:
    """Three peers, one of which serves the model."""

    def __init__(self, cluster: Cluster, model: Path, *, fetched: bool) -> None:
        self._cluster = cluster
        self._fetched = fetched
        self._model = model
        """A copy of its own, which a round may delete."""

    def prepare(self) -> None:
        """Deploy, and wait for both copies; the idle holder is drained if files are fetched."""
        self._cluster.start(PEERS)
        self._cluster.until_whole()
        wish = {"model": str(self._model), "name": NAME, "context": CONTEXT_TOKENS}
        answer = self._cluster.peers[0].ask(
            "POST",
            "/cluster/v1/deployments",
            {**wish, "slots": SLOTS, "copies": COPIES},
            DEPLOY_LIMIT_S,
        )
        if answer is None or answer.status != 201:
            raise BenchFailed(f"the model was not deployed: {answer}")
        states = self._until_served()
        if self._fetched:
            (idle,) = set(_holders(states[0])) - {_host(states[0])}
            name = self._cluster.by_node(states, idle).name
            answer = self._cluster.peers[0].ask("POST", f"/cluster/v1/nodes/{name}/drain")
            if answer is None or answer.status != 200:
                raise BenchFailed(f"{name} was not drained: {answer}")

    def round(self, found: _Measured) -> str:
        """Kill the host and wait for the model's answer; what happened, in words."""
        states = self._until_served()
        dead = self._cluster.by_node(states, _host(states[0]))
        holders = _holders(states[0])
        through = next(peer for peer in self._cluster.peers if peer is not dead)
        version = max(state["version"] for state in states)
        offset_s = time.time() - time.monotonic()
        killed_s = dead.kill()
        answered_s = _answered_s(through)
        answer = through.ask("GET", f"/cluster/v1/events?after={version}")
        events: list[dict[str, Any]] = [] if answer is None else answer.body["events"]
        moments = [killed_s, *(at - offset_s for at in _moments(events)), answered_s]
        for name, begin_s, end_s in zip(PARTS, moments[:-1], moments[1:], strict=True):
            found.parts[name].append(end_s - begin_s)
        found.total.append(answered_s - killed_s)
        self._check_file(through.state(), holders)
        self._bring_back(dead)
        split = ", ".join(f"{name} {found.parts[name][-1]:.3f}" for name in PARTS)
        return f"answered again {found.total[-1]:.2f} s ({split})"

    def _check_file(self, now: State, holders: list[str]) -> None:
        """The round was of the variant that it is counted as."""
        if (_host(now) in holders) is self._fetched:
            raise BenchFailed(f"the new host {'held' if self._fetched else 'lacked'} the file")

    def _bring_back(self, dead: Peer) -> None:
        """The file goes once all is calm: a node that starts believes its last state, in which
        it is the host, and would fetch the file again at once."""
        dead.start()
        if self._fetched:
            self._until_served(COPIES + 1)
            self._model.unlink(missing_ok=True)
            for file in (dead.home / "models").glob("*.gguf"):
                file.unlink()

    def _until_served(self, copies: int = COPIES) -> list[State]:
        """All up and of one mind; one host, and this many holders of the file."""
        return self._cluster.until(
            f"{NAME} is ready, with {copies} copies",
            lambda states: _served(states, copies),
            limit_s=SERVED_LIMIT_S,
        )


def main() -> None:
    asked = wanted(
        "reallocation",
        "time from the death of a model's only host to its next answer",
        {
            "file": (FILES, "held by the new host, fetched by it, or both with a comma"),
            "model": ("smollm2", "smollm2 or gemma"),
        },
    )
    figures: list[Figure] = []
    for variant in asked.options["file"].split(","):
        figures += _figures(variant, _measure(variant, asked), asked.options["model"])
    report("reallocation", figures, asked)


def _measure(variant: str, asked: Wanted) -> _Measured:
    found = _Measured()
    rounds = ROUNDS_QUICK if asked.quick else ROUNDS
    source = MODELS[asked.options["model"]]()
    with (
        tempfile.TemporaryDirectory(prefix="aivailable-bench-") as folder,
        Cluster(devices=DEVICE) as cluster,
    ):
        model = Path(shutil.copy(source, folder))
        lab = _Lab(cluster, model, fetched=variant == "fetched")
        lab.prepare()
        for number in range(rounds):
            asked.say(f"file {variant}, {number + 1} of {rounds}: {lab.round(found)}")
    return found


def _figures(variant: str, found: _Measured, model: str) -> list[Figure]:
    title = f"{model}, file {variant}: host killed to an answer"
    parts = [(f"file {variant}, … of it, {name}", found.parts[name]) for name in PARTS]
    return [
        Figure(name, "s", tuple(values), NO_OTHER)
        for name, values in ((title, found.total), *parts)
    ]


def _served(states: list[State], copies: int) -> bool:
    minds = {(state["controller"], state["term"], state["version"]) for state in states}
    return len(minds) == 1 and all(
        state["quorum"]
        and all(node["state"] in ("here", "up") and node["devices"] for node in state["nodes"])
        and len(state["nodes"]) == len(state["voters"]) == PEERS
        and len(state["replicas"]) == 1
        and _host(state)
        and len(_holders(state)) == copies
        for state in states
    )


def _host(state: State) -> str:
    return next((str(one["node"]) for one in state["replicas"] if one["status"] == "ready"), "")


def _holders(state: State) -> list[str]:
    return [str(node) for model in state["models"] for node in model["holders"]]


def _moments(events: list[dict[str, Any]]) -> list[float]:
    """When the log said down, placed, loading, ready: seconds of the wall clock.

    Raises BenchFailed when one of them is not there.
    """
    wanted_events = (("down", ""), ("placed", ""), ("replica", " loading"), ("replica", " ready"))
    found: list[float] = []
    rest = iter(events)
    for kind, word in wanted_events:
        event = next((e for e in rest if e["kind"] == kind and word in e["text"]), None)
        if event is None:
            raise BenchFailed(f"no event {kind}{word} among {[e['text'] for e in events]}")
        found.append(event["at_ms"] / 1000)
    return found


def _answered_s(through: Peer) -> float:
    """Monotonic time of the first answer."""
    deadline_s = time.monotonic() + ANSWER_LIMIT_S
    body = {"model": NAME, "prompt": "hello", "max_tokens": 1}
    while time.monotonic() < deadline_s:
        answer = through.ask("POST", "/v1/completions", body, ANSWER_LIMIT_S)
        if answer is not None and answer.status == 200:
            return time.monotonic()
        time.sleep(LOOK_EVERY_S)
    raise BenchFailed(f"the model did not answer within {ANSWER_LIMIT_S:g} s")


if __name__ == "__main__":
    main()
