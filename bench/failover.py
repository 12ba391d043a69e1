"""What a death costs: the controller's, and that of the host of the only replica.

Three peers, then five, each on a host of its own where there is the right to make network
namespaces, else on the loopback. For the controller: from its end to a committed command (the join
window is set through a survivor, again until it is accepted), beside the same command with nobody
dead. It ends in two ways: `kill -9`, where the kernel closes its connections and the others notice
at once, and a cut cable, where no socket closes: only silence tells. Each round then waits until
all are one cluster again, with every log equally long. For the host, whether it controls or not:
from `kill -9` until a completion sent through a survivor is answered, split by the log's events,
whose times are the same machine's clock. The fake engine stands for the model, so that loading
costs nothing: what is left is ours.

`--peers 3,5` and `--fault kill,cut,host` choose a part.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.lan import lan, missing, places
from bench.peers import LOOK_EVERY_S, BenchFailed, Cluster, Peer, State, on_loopback
from bench.report import Figure, Wanted, report, wanted

ROUNDS = 40
ROUNDS_QUICK = 4
HOST_ROUNDS = 10
HOST_ROUNDS_QUICK = 1
PEERS = "3,5"
PEERS_QUICK = "3"
FAULTS = "kill,cut,host"
CALM_JITTER_S = 0.2
"""Two heartbeats: a fault comes at any time between two of them."""
KILLED_MEDIAN_S = 0.5
CUT_MEDIAN_S = 0.9
CUT_WORST_S = 1.5
"""Issue 3's acceptance."""
MODEL = "fake"
WINDOW_S = 900
COMMIT_LIMIT_S = 30.0
ANSWER_LIMIT_S = 60.0
CALM = "the same command with nobody dead"
NO_OTHER = "nothing else re-places a model by itself on this machine"


@dataclass(slots=True)
class _Measured:
    """Seconds; one list for each figure, in order of rounds."""

    committed: dict[str, list[float]] = field(default_factory=lambda: {"kill": [], "cut": []})
    healed: dict[str, list[float]] = field(default_factory=lambda: {"kill": [], "cut": []})
    calm: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    down: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Lab:
    """A cluster, and the hosts that it runs on if there are any."""

    cluster: Cluster
    hosts: Any
    asked: Wanted
    found: _Measured

    def rounds(self, fault: str) -> None:
        """End the controller in this way again and again."""
        count = ROUNDS_QUICK if self.asked.quick else ROUNDS
        for number in range(count):
            if fault == "kill":
                self._end_controller(fault, Peer.kill, Peer.start)
            else:
                self._end_controller(fault, self._cut, self._mend)
            self.asked.say(
                f"{len(self.cluster.peers)} peers, {fault} {number + 1} of {count}: committed again"
                f" {self.found.committed[fault][-1]:.3f} s, undisturbed"
                f" {self.found.calm[-1]:.3f} s, whole {self.found.healed[fault][-1]:.1f} s later"
            )

    def host_rounds(self) -> None:
        _deploy(self.cluster)
        count = HOST_ROUNDS_QUICK if self.asked.quick else HOST_ROUNDS
        for number in range(count):
            _kill_host(self.cluster, self.found)
            self.asked.say(
                f"{len(self.cluster.peers)} peers, host {number + 1} of {count}: answered again"
                f" {self.found.answered[-1]:.2f} s"
            )

    def _end_controller(
        self, fault: str, end: Callable[[Peer], float], mend: Callable[[Peer], None]
    ) -> None:
        states = self.cluster.until_whole()
        dead = self.cluster.by_node(states, states[0]["controller"])
        through = random.choice([peer for peer in self.cluster.peers if peer is not dead])
        self.found.calm.append(_until_committed(through, time.monotonic()))
        time.sleep(random.uniform(0.0, CALM_JITTER_S))
        self.found.committed[fault].append(_until_committed(through, end(dead)))
        mended_s = time.monotonic()
        mend(dead)
        self.cluster.until_whole()
        self.found.healed[fault].append(time.monotonic() - mended_s)

    def _cut(self, peer: Peer) -> float:
        """Pull its cable; the monotonic time just before."""
        at_s = time.monotonic()
        self.hosts.cut(self._number(peer))
        return at_s

    def _mend(self, peer: Peer) -> None:
        self.hosts.mend(self._number(peer))

    def _number(self, peer: Peer) -> int:
        return self.cluster.peers.index(peer) + 1


def main() -> None:
    asked = wanted(
        "failover",
        "time from a death to service again",
        {"peers": (PEERS, "how many peers, with commas"), "fault": (FAULTS, "which faults")},
    )
    faults = asked.options["fault"].split(",")
    counts = PEERS_QUICK if asked.quick else asked.options["peers"]
    reason = missing()
    if reason and "cut" in faults:
        asked.say(f"no cable can be cut here: {reason}")
    figures: list[Figure] = []
    for count in map(int, counts.split(",")):
        found = _Measured()
        with _lab(count, asked, found, on_hosts=not reason) as lab:
            for fault in ("kill", "cut"):
                if fault in faults and (fault == "kill" or lab.hosts is not None):
                    lab.rounds(fault)
            if "host" in faults:
                lab.host_rounds()
        _say_bounds(asked, count, found)
        figures += _figures(count, found, reason)
    report("failover", [one for one in figures if one.ours or reason], asked)


@contextlib.contextmanager
def _lab(count: int, asked: Wanted, found: _Measured, *, on_hosts: bool) -> Iterator[_Lab]:
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(lan(count)) if on_hosts else None
        where = on_loopback if hosts is None else places(hosts)
        cluster = stack.enter_context(Cluster(places=where))
        cluster.start(count)
        cluster.until_whole()
        yield _Lab(cluster, hosts, asked, found)


def _figures(count: int, found: _Measured, reason: str) -> list[Figure]:
    calm, no_cut = tuple(found.calm), reason or CALM
    committed = "to the next committed command"
    values: list[tuple[str, list[float], str, tuple[float, ...]]] = [
        (f"controller killed: {committed}", found.committed["kill"], CALM, calm),
        (f"controller cut off: {committed}", found.committed["cut"], no_cut, calm),
        ("killed peer: start to one cluster again", found.healed["kill"], NO_OTHER, ()),
        ("cut peer: mended to one cluster again", found.healed["cut"], NO_OTHER, ()),
        ("only host killed: to an answer", found.answered, NO_OTHER, ()),
        ("… of it, until the log says down", found.down, NO_OTHER, ()),
        ("… of it, until the new replica is ready", found.ready, NO_OTHER, ()),
    ]
    return [
        Figure(f"{count} peers, {name}", "s", tuple(ours), other_name, other)
        for name, ours, other_name, other in values
    ]


def _say_bounds(asked: Wanted, count: int, found: _Measured) -> None:
    killed, cut = found.committed["kill"], found.committed["cut"]
    measured = [("killed: median", statistics.median(killed), KILLED_MEDIAN_S)] if killed else []
    if cut:
        measured += [
            ("cut off: median", statistics.median(cut), CUT_MEDIAN_S),
            ("cut off: worst", max(cut), CUT_WORST_S),
        ]
    for name, value_s, bound_s in measured:
        verdict = "within" if value_s <= bound_s else "OVER"
        what = f"{count} peers, controller {name} {value_s:.3f} s"
        asked.say(f"{what}, {verdict} the bound of {bound_s:g} s")


def _deploy(cluster: Cluster) -> None:
    wish = {"model": MODEL, "engine": "fake", "context": 4096, "slots": 2}
    answer = cluster.peers[0].ask(
        "POST", "/cluster/v1/deployments", {**wish, "options": {"need_bytes": str(2**20)}}, 30.0
    )
    if answer is None or answer.status != 201:
        raise BenchFailed(f"the fake model was not deployed: {answer}")
    cluster.until("the fake model is ready", _all_ready)


def _until_committed(through: Peer, since_s: float) -> float:
    """Seconds until the survivor says that its command is in the log."""
    deadline_s = time.monotonic() + COMMIT_LIMIT_S
    while time.monotonic() < deadline_s:
        answer = through.ask("POST", "/cluster/v1/window", {"duration_s": WINDOW_S}, COMMIT_LIMIT_S)
        if answer is not None and answer.status == 200:
            return time.monotonic() - since_s
        time.sleep(LOOK_EVERY_S)
    raise BenchFailed(f"no command was committed within {COMMIT_LIMIT_S:g} s")


def _kill_host(cluster: Cluster, found: _Measured) -> None:
    states = cluster.until_whole()
    dead = cluster.by_node(states, _host(states[0]))
    through = next(peer for peer in cluster.peers if peer is not dead)
    version = max(state["version"] for state in states)
    offset_s = time.time() - time.monotonic()
    killed_s = dead.kill()
    found.answered.append(_until_answered(through, killed_s))
    answer = through.ask("GET", f"/cluster/v1/events?after={version}")
    events: list[dict[str, Any]] = [] if answer is None else answer.body["events"]
    killed_at_s = killed_s + offset_s
    down = next((one for one in events if one["kind"] == "down"), None)
    ready = next(
        (one for one in events if one["kind"] == "replica" and "ready" in one["text"]), None
    )
    if down is not None:
        found.down.append(down["at_ms"] / 1000 - killed_at_s)
    if ready is not None:
        found.ready.append(ready["at_ms"] / 1000 - killed_at_s)
    dead.start()
    cluster.until_whole()
    cluster.until("the fake model is ready", _all_ready)


def _until_answered(through: Peer, since_s: float) -> float:
    deadline_s = time.monotonic() + ANSWER_LIMIT_S
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 1}
    while time.monotonic() < deadline_s:
        answer = through.ask("POST", "/v1/completions", body, ANSWER_LIMIT_S)
        if answer is not None and answer.status == 200:
            return time.monotonic() - since_s
        time.sleep(LOOK_EVERY_S)
    raise BenchFailed(f"the model did not answer within {ANSWER_LIMIT_S:g} s")


def _host(state: State) -> str:
    return next((str(one["node"]) for one in state["replicas"] if one["status"] == "ready"), "")


def _all_ready(states: list[State]) -> bool:
    return all(_host(state) for state in states)


if __name__ == "__main__":
    main()
