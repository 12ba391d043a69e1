"""Five hosts under a register workload and a nemesis: is anything promised ever lost?

`python tests/lan/workload.py --minutes 10 --seed 1` (as root) prints each injury, then the verdict
as one line of JSON. A register is a deployment of no replicas whose alias is the value: written by
`POST /cluster/v1/deployments`, read by `GET /cluster/v1/state?consistent=1`, both at any host. API
keys are the second workload: whichever was acknowledged must be in everybody's list at the end.
The test in `test_five_nodes` plays a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fixtures.netns import Lan, lan, missing
from fixtures.peers import PeerProcess, Peers, State
from lan.workload_checker import NEVER, Operation, linearizable

from aivailable.peer.session import SETTLE_S

HOSTS = 5
REGISTERS = tuple(f"register-{number}" for number in range(4))
CLIENTS = 5
PAUSE_S = (0.05, 0.25)
ANSWER_S = 4.0
"""A client gives up after this long and does not know what came of it."""
KEY_EVERY_S = 0.7
CALM_S = (0.5, 3.5)
HURT_S = (1.5, 5.0)
LEADER_LIMIT_S = 10.0
POWER_LOSS_FROM_S = 300.0
"""A run at least this long also kills all five at once, now and then."""
FORM_S = 90.0
HEAL_S = 60.0
WINDOW_S = 3600
LINES_SHOWN = 40
TROUBLE = (OSError, ValueError, KeyError, aiohttp.ClientError, TimeoutError)


@dataclass
class Report:
    """What happened, for the verdict and for a person."""

    seed: int
    injuries: dict[str, int] = field(default_factory=dict)
    leaders_lost: int = 0
    terms_at_start: int = 0
    terms: int = 0
    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def line(self) -> str:
        return json.dumps({"seed": self.seed, **vars(self)}, sort_keys=True)


class Registers:
    """Clients that write and read, and what each of them saw."""

    def __init__(self, peers: Peers, rng: random.Random, report: Report) -> None:
        self._peers, self._rng, self._report = peers, rng, report
        self.history: dict[str, list[Operation]] = {name: [] for name in REGISTERS}
        self.keys: list[str] = []
        """Ids of the API keys whose creation was acknowledged."""
        self._values = 0
        self.stopped = False

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)), self._keymaker())

    async def _client(self) -> None:
        while not self.stopped:
            peer, name = self._rng.choice(self._peers.peers), self._rng.choice(REGISTERS)
            if self._rng.random() < 0.5:
                await self.write(peer, name)
            else:
                await self.read(peer, name)
            await asyncio.sleep(self._rng.uniform(*PAUSE_S))

    async def _ask(self, peer: PeerProcess, method: str, path: str, body: Any = None) -> Any:
        """(status, body), or None when nothing is known of what came of it."""
        try:
            answer = await self._peers.ask(peer, method, path, body, limit_s=ANSWER_S)
        except TROUBLE:
            return None
        return answer.status, answer.body

    async def write(self, peer: PeerProcess, name: str) -> bool:
        """True when acknowledged. Only a refusal by the log itself is known to have no effect."""
        self._values += 1
        value = f"v{self._values}"
        body = {"model": name, "engine": "fake", "context": 512, "slots": 1, "replicas_min": 0,
                "replicas_max": 1, "replace": True, "aliases": [f"{name}.{value}"],
                "options": {"need_bytes": "1048576"}}  # fmt: skip
        begun_s = time.monotonic()
        answer = await self._ask(peer, "POST", "/cluster/v1/deployments", body)
        if answer is not None and answer[0] == 409:
            code = answer[1]["error"]["code"]
            self._report.count(f"writes refused: {code}")
            return False
        acknowledged = answer is not None and answer[0] == 201
        ended_s = time.monotonic() if acknowledged else NEVER
        self.history[name].append(Operation(begun_s, ended_s, "write", value))
        self._report.count("writes acknowledged" if acknowledged else "writes of unknown outcome")
        return acknowledged

    async def read(self, peer: PeerProcess, name: str) -> bool:
        """True when answered."""
        begun_s = time.monotonic()
        answer = await self._ask(peer, "GET", "/cluster/v1/state?consistent=1")
        if answer is None or answer[0] != 200 or answer[1].get("phase") != "member":
            self._report.count("reads without an answer")
            return False
        found = [one for one in answer[1]["deployments"] if one["name"] == name]
        value = found[0]["aliases"][0].rpartition(".")[2] if found else ""
        self.history[name].append(Operation(begun_s, time.monotonic(), "read", value))
        self._report.count("reads answered")
        return True

    async def _keymaker(self) -> None:
        while not self.stopped:
            peer = self._rng.choice(self._peers.peers)
            answer = await self._ask(peer, "POST", "/cluster/v1/keys", {"label": "kept"})
            if answer is not None and answer[0] == 201:
                self.keys.append(answer[1]["key_id"])
                self._report.count("keys acknowledged")
            await asyncio.sleep(KEY_EVERY_S)

    async def judge(self) -> None:
        """Everybody shows every acknowledged key and the last values; each register's history."""
        for peer in self._peers.peers:
            for name in REGISTERS:
                if not await self.read(peer, name):
                    self._report.problems.append(f"{peer.name} does not answer at the end")
            answer = await self._ask(peer, "GET", "/cluster/v1/keys")
            listed = {one["key_id"] for one in answer[1]["keys"]} if answer else set()
            lost = [key for key in self.keys if key not in listed]
            if lost:
                self._report.problems.append(f"{peer.name} lost {len(lost)} acknowledged keys")
        for name, operations in self.history.items():
            if not linearizable(operations):
                self._report.problems.append(f"{name} is not linearizable")


class Nemesis:
    """Hurts one host at a time, sometimes two, so that a majority of five always lives; in long
    runs sometimes all. A cut is whole, one way only (the host hears nobody, or nobody hears it),
    or between two hosts."""

    def __init__(self, hosts: Lan, peers: Peers, rng: random.Random, report: Report) -> None:
        self._hosts, self._peers, self._rng, self._report = hosts, peers, rng, report
        self._begun_s = time.monotonic()

    async def run(self, duration_s: float) -> None:
        """Every kind of injury comes in turn, in the seed's order, until time is up."""
        end_s = time.monotonic() + duration_s
        kinds: list[tuple[str, Callable[[int], Awaitable[None]]]] = [
            ("cut", self._cut), ("kill", self._kill), ("remove and join", self._remove),
            ("kill the leader", self._kill), ("cut the leader", self._cut),
            ("deafen", self._deafen), ("deafen the leader", self._deafen),
            ("mute", self._mute), ("mute the leader", self._mute), ("part", self._part),
        ]  # fmt: skip
        if duration_s >= POWER_LOSS_FROM_S:
            kinds.append(("kill all, the leader too", self._kill_all))
        while time.monotonic() < end_s:
            self._rng.shuffle(kinds)
            for name, injure in kinds:
                if time.monotonic() >= end_s:
                    return
                await self._injure(name, injure)
                await asyncio.sleep(self._rng.uniform(*CALM_S))

    async def _injure(self, name: str, injure: Callable[[int], Awaitable[None]]) -> None:
        leader = await self.leader()
        others = [n for n in range(1, HOSTS + 1) if n != leader]
        victim = leader if "leader" in name and leader else self._rng.choice(others)
        second = self._rng.choice([n for n in others if n != victim])
        both = not name.startswith(("remove", "kill all")) and self._rng.random() < 0.3
        self._say(f"{name}: host {victim}{f', and cut host {second}' if both else ''}")
        self._report.injuries[name] = self._report.injuries.get(name, 0) + 1
        self._report.leaders_lost += leader in ((victim, second) if both else (victim,))
        if both:
            await asyncio.gather(injure(victim), self._cut(second))
        else:
            await injure(victim)

    async def leader(self) -> int | None:
        """The number of the host that most hosts believe to lead; waits while nobody does."""
        end_s = time.monotonic() + LEADER_LIMIT_S
        while time.monotonic() < end_s:
            states = await self._peers.states()
            named = [state["leader"] for state in states if state.get("leader")]
            best = max(sorted(named), key=named.count, default=None)
            numbers = [n for n, s in enumerate(states, start=1) if s and s["here"] == best]
            if numbers:
                return numbers[0]
        return None

    async def _cut(self, number: int) -> None:
        self._hosts.cut(number)
        try:
            await asyncio.sleep(self._rng.uniform(*HURT_S))
        finally:
            self._hosts.mend(number)

    async def _deafen(self, number: int) -> None:
        """It is heard, and hears nobody."""
        await self._silence([(other, number) for other in range(1, HOSTS + 1) if other != number])

    async def _mute(self, number: int) -> None:
        """It hears all, and nobody hears it."""
        await self._silence([(number, other) for other in range(1, HOSTS + 1) if other != number])

    async def _part(self, number: int) -> None:
        """It and one other host, perhaps the leader, do not hear each other."""
        other = self._rng.choice([n for n in range(1, HOSTS + 1) if n != number])
        self._say(f"      from host {other}")
        await self._silence([(number, other), (other, number)])

    async def _silence(self, ways: list[tuple[int, int]]) -> None:
        for one, other in ways:
            self._hosts.mute(one, other)
        try:
            await asyncio.sleep(self._rng.uniform(*HURT_S))
        finally:
            for one, other in ways:
                self._hosts.unmute(one, other)

    async def _kill_all(self, _number: int) -> None:
        """As if the whole house had lost its power."""
        for peer in self._peers.peers:
            peer.kill()
        for peer in self._peers.peers:
            peer.start()
        await asyncio.gather(*(peer.listening() for peer in self._peers.peers))
        # A window that an operator opens sooner is taken for replay everywhere, and expires.
        await asyncio.sleep(SETTLE_S + 1.0)

    async def _kill(self, number: int) -> None:
        peer = self._peers.peers[number - 1]
        peer.kill()
        await asyncio.sleep(self._rng.uniform(*HURT_S))
        peer.start()
        await peer.listening()

    async def _remove(self, number: int) -> None:
        """Out by an operator at another host; then it leaves by hand and is started as a new node.
        Nobody is hurt before it is in again: alone it would found a cluster, as it should, and
        the clients' writes there would be that one's."""
        peer = self._peers.peers[number - 1]
        before = await self._peers.state(peer)
        node, cluster = before.get("here"), before.get("cluster_id")
        through = self._peers.peers[number % HOSTS]
        try:
            # After all were off at once nobody can time the old window any more: it has expired.
            await self._peers.ask(through, "POST", "/cluster/v1/window", {"duration_s": WINDOW_S},
                                  limit_s=20.0)  # fmt: skip
            answer = await self._peers.ask(through, "DELETE", f"/cluster/v1/members/{node}",
                                           limit_s=20.0)  # fmt: skip
        except TROUBLE as error:
            self._say(f"remove: {error!r}")
            return
        if answer.status != 200:
            self._say(f"remove: {answer.body}")
            return
        self._report.count("members removed")
        await asyncio.sleep(self._rng.uniform(*HURT_S))
        await self._peers.ask(peer, "POST", "/cluster/v1/leave", {}, limit_s=20.0)
        await asyncio.to_thread(peer.stop)
        flags, peer.flags = peer.flags, (*peer.flags, "--new-identity")
        peer.start()
        peer.flags = flags
        await peer.listening()
        await self._peers.until(
            "a member again",
            lambda states: states[0]["phase"] == "member" and states[0]["cluster_id"] == cluster,
            [peer],
            limit_s=HEAL_S,
        )

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun_s:6.1f} s: {text}", flush=True)


def host_peer(hosts: Lan, number: int, folder: Path) -> PeerProcess:
    return PeerProcess(
        folder / f"host{number}",
        ("--devices", "cpu:64MiB"),
        prefix=hosts.prefix(number),
        host=hosts.url_host(number),
        environment={"AIVAILABLE_FAKE_ENGINE": "1"},
    )


def last_words(peers: Peers) -> str:
    """The end of every host's log, without its requests."""
    said = []
    for peer in peers.peers:
        lines = (peer.home / "logs" / "aivailable.log").read_text(errors="replace").splitlines()
        kept = [line for line in lines if "aivailable.requests" not in line][-LINES_SHOWN:]
        said.append("\n".join([f"--- {peer.name}", *kept]))
    return "\n".join(said)


def whole(states: list[State]) -> bool:
    """Five members, five voters, one version, a controller."""
    return (
        all(state.get("phase") == "member" and state["controller"] for state in states)
        and len({(state["cluster_id"], state["version"]) for state in states}) == 1
        and all(len(state["nodes"]) == HOSTS == len(state["voters"]) for state in states)
    )


async def play(hosts: Lan, folder: Path, seed: int, duration_s: float) -> Report:
    """Form, hurt, heal, judge. Raises AssertionError when it neither forms nor heals."""
    report, rng = Report(seed), random.Random(f"five nodes {seed}")
    print(f"seed {seed}, {duration_s:g} s", flush=True)
    async with Peers([host_peer(hosts, n, folder) for n in range(1, HOSTS + 1)]) as peers:
        for peer in peers.peers:
            peer.start()
        await asyncio.gather(*(peer.listening(FORM_S) for peer in peers.peers))
        states = await peers.until("five voters", whole, limit_s=FORM_S)
        report.terms_at_start = states[0]["term"]
        registers = Registers(peers, random.Random(f"clients {seed}"), report)
        clients = asyncio.ensure_future(registers.run())
        try:
            await Nemesis(hosts, peers, rng, report).run(duration_s)
            registers.stopped = True
            await clients
            states = await peers.until("all are one again", whole, limit_s=HEAL_S)
        except AssertionError as error:
            print(f"{report.line()}\n{last_words(peers)}\n{error}", flush=True)
            raise
        finally:
            registers.stopped = True
            await asyncio.gather(clients, return_exceptions=True)
        report.terms = states[0]["term"]
        await registers.judge()
    if report.terms > report.terms_at_start + 2 * report.leaders_lost:
        report.problems.append("too many terms")
    print(report.line(), flush=True)
    return report


async def main(minutes: float, seed: int) -> int:
    with lan(HOSTS) as hosts, tempfile.TemporaryDirectory() as folder:
        report = await play(hosts, Path(folder), seed, minutes * 60)
    return 1 if report.problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    reason = missing()
    if reason:
        sys.exit(reason)
    sys.exit(asyncio.run(main(given.minutes, given.seed)))
