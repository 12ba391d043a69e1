"""Honest streams beside an attack: `PYTHONPATH=.:tests python -m attacks.beside [--quick]`.

Eight streams of one key run against a member of three. Beside them the attack goes to
the same member or, in every second round, to a sink on this machine. Prints for each attack the
99th percentile of the pauses between tokens in both cases, and what became of the members: marked
down, elections, memory, log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from attacks.attackers import ATTACKS, MDNS_PORT
from fixtures.homes import Homes
from fixtures.peers import MIB, PeerProcess, Peers, State, pieces, ready

STREAMS = 8
STEP_MS = 20
ROUND_S, ROUNDS = 8.0, 5
MODEL = "honest"
RATIO_MAX = 2.0
GROWTH_MAX_BYTES = 50 * MIB
LOG_MAX_BYTES_PER_MIN = 1 * MIB
SOFT_DESCRIPTORS = 1024
SETTLE_S = 1.0
"""The streams run before the attack begins."""
SINK_MDNS_PORT = 5454
LISTENING = "0A"
"""TCP_LISTEN in /proc/net/tcp."""


@dataclass
class Shown:
    """Of one attack at one strength."""

    attacked_ms: list[float] = field(default_factory=list)
    sunk_ms: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    growth_bytes: int = 0
    log_bytes_per_min: float = 0.0

    @property
    def ratio(self) -> float:
        return statistics.median(self.attacked_ms) / statistics.median(self.sunk_ms)

    def plain(self) -> dict[str, object]:
        return {
            "attacked_p99_ms": round(statistics.median(self.attacked_ms), 1),
            "sink_p99_ms": round(statistics.median(self.sunk_ms), 1),
            "ratio": round(self.ratio, 2),
            "memory_growth_mib": round(self.growth_bytes / MIB, 1),
            "log_kib_per_min": round(self.log_bytes_per_min / 1024, 1),
            "troubles": self.troubles,
        }


@asynccontextmanager
async def sink() -> AsyncIterator[int]:
    """A port that takes whatever comes and answers nothing."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def pauses_ms(peers: Peers, peer: PeerProcess, key: str, until_s: float) -> list[float]:
    """Between the tokens of one honest stream after another, until then."""
    found: list[float] = []
    while time.monotonic() < until_s:
        headers = {"Authorization": f"Bearer {key}"}
        body = {"model": MODEL, "prompt": "tell me", "max_tokens": 4000, "stream": True}
        async with peers.session.post(
            peer.url + "/v1/completions", json=body, headers=headers
        ) as response:
            if response.status != 200:
                raise RuntimeError(f"an honest stream was refused: {await response.text()}")
            last_s = None
            async for _ in pieces(response):
                now_s = time.monotonic()
                if last_s is not None:
                    found.append((now_s - last_s) * 1000)
                last_s = now_s
                if now_s >= until_s:
                    break
    return found


def attack(name: str, strength: int, seconds: float, **ports: object) -> subprocess.Popen[bytes]:
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in ports.items()]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "attacks.attackers", name, *arguments),
            *("--strength", str(strength), "--seconds", str(seconds)),
        ]
    )


async def user_key(peers: Peers, label: str) -> str:
    body = {"scope": "user", "label": label}
    made = await peers.ask(peers.peers[0], "POST", "/cluster/v1/keys", body)
    return str(made.body["key"])


class Lab:
    """Three members and one replica; the honest and the attack ask the same node."""

    def __init__(self, peers: Peers, honest: str, hostile: str) -> None:
        self.peers, self.honest, self.hostile = peers, honest, hostile

    async def round(self, name: str, strength: int, at_sink: bool, seconds: float) -> list[float]:
        """The pauses of all honest streams, sorted."""
        victim = self.peers.peers[0]
        port = int(victim.url.rsplit(":", 1)[1])
        links, mdns = links_port(victim, port), MDNS_PORT
        async with sink() as sunk:
            if at_sink:
                port = links = sunk
                mdns = SINK_MDNS_PORT
            until_s = time.monotonic() + SETTLE_S + seconds
            streams = [
                asyncio.ensure_future(pauses_ms(self.peers, victim, self.honest, until_s))
                for _ in range(STREAMS)
            ]
            await asyncio.sleep(SETTLE_S)
            hostile = attack(
                *(name, strength, seconds),
                port=port, links_port=links, mdns_port=mdns, key=self.hostile, model=MODEL,
            )  # fmt: skip
            try:
                found = await asyncio.gather(*streams)
            finally:
                hostile.kill()
                hostile.wait()
        return sorted(pause for one in found for pause in one)


def links_port(peer: PeerProcess, api_port: int) -> int:
    """Whatever else the process listens on (the API does not tell)."""
    assert peer.process is not None
    root = Path("/proc") / str(peer.process.pid)
    own = {os.readlink(entry) for entry in (root / "fd").iterdir()}
    for line in (root / "net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        port = int(words[1].rsplit(":", 1)[1], 16)
        if words[3] == LISTENING and f"socket:[{words[9]}]" in own and port != api_port:
            return port
    raise LookupError("it listens on one port only")


def percentile_99(values: list[float]) -> float:
    return values[int(len(values) * 0.99)]


def trouble(before: list[State], after: list[State]) -> list[str]:
    found = []
    for earlier, later in zip(before, after, strict=True):
        if not later:
            found.append("a member does not answer")
            continue
        if later["term"] != earlier["term"]:
            found.append(f"an election: term {earlier['term']} to {later['term']}")
        events = [e for e in later["events"] if e["version"] > earlier["version"]]
        found += [e["text"] for e in events if e["kind"] == "down"]
    return sorted(frozenset(found))


async def measured(lab: Lab, name: str, strength: int, rounds: int, seconds: float) -> Shown:
    shown, peers = Shown(), lab.peers
    before = await peers.states()
    rss = [peer.rss_bytes() for peer in peers.peers]
    logs = [peer.output_path.stat().st_size for peer in peers.peers]
    began_s = time.monotonic()
    for _ in range(rounds):
        for at_sink in (True, False):
            pauses = await lab.round(name, strength, at_sink, seconds)
            (shown.sunk_ms if at_sink else shown.attacked_ms).append(percentile_99(pauses))
    minutes = (time.monotonic() - began_s) / 60
    after = await peers.states()
    shown.troubles = trouble(before, after)
    shown.growth_bytes = max(
        peer.rss_bytes() - old for peer, old in zip(peers.peers, rss, strict=True)
    )
    written = [
        peer.output_path.stat().st_size - old for peer, old in zip(peers.peers, logs, strict=True)
    ]
    shown.log_bytes_per_min = max(written) / minutes
    return shown


@contextmanager
def service_limits() -> Iterator[None]:
    """The descriptors that a service manager gives, for the processes that are started within."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT_DESCRIPTORS, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def lab_of(peers: Peers, folder: Path) -> Lab:
    with service_limits():
        await Homes(folder / "kept").start(peers, folder / "run", 3, "cpu:64MiB")
    options = {"need_bytes": str(MIB), "step_ms": str(STEP_MS)}
    answer = await peers.deploy(
        peers.peers[0], model=MODEL, engine="fake", options=options, context=8192,
        slots=2 * STREAMS, replicas_min=1,
    )  # fmt: skip
    if answer.status != 201:
        raise RuntimeError(f"not deployed: {answer.body}")
    await peers.until("it is ready", lambda states: all(ready(one, MODEL) for one in states))
    lab = Lab(peers, await user_key(peers, "honest"), await user_key(peers, "hostile"))
    await asyncio.sleep(1.0)
    return lab


async def run(told: argparse.Namespace) -> int:
    failed = 0
    seconds, rounds = (3.0, 1) if told.quick else (ROUND_S, ROUNDS)
    lines = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in told.attacks or sorted(ATTACKS):
            for strength in (1, 3):
                async with Peers() as peers:
                    lab = await lab_of(peers, Path(folder) / f"{name}{strength}")
                    shown = await measured(lab, name, strength, rounds, seconds)
                lines[f"{name} x{strength}"] = shown.plain()
                good = (
                    shown.ratio <= RATIO_MAX
                    and not shown.troubles
                    and shown.growth_bytes <= GROWTH_MAX_BYTES
                    and shown.log_bytes_per_min <= LOG_MAX_BYTES_PER_MIN
                )
                failed += not good
                print(f"{name} x{strength}: {'held' if good else 'NOT HELD'} {shown.plain()}")
    print(json.dumps(lines))
    return failed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("attacks", nargs="*", choices=[*sorted(ATTACKS), []])
    parser.add_argument("--quick", action="store_true")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
