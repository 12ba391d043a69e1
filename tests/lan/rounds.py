"""`aivailable up` on three hosts, no flag but home and device: do they always become one?

`python tests/lan/rounds.py --rounds 20 --seed 1` (as root) prints the seed, each round's start
offsets and result, and at last how many agreed. The test in `test_lan` runs a few of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fixtures.netns import Lan, lan, missing
from fixtures.peers import PeerProcess, Peers, voting

OFFSET_MAX_S = 10.0
AGREE_LIMIT_S = 60.0


def peer_on(hosts: Lan, number: int, folder: Path, devices: str = "cpu:1GiB") -> PeerProcess:
    """Exactly what a person types on that host: `aivailable up`, a home and a device."""
    return PeerProcess(
        folder / f"host{number}",
        ("--devices", devices),
        prefix=hosts.prefix(number),
        host=hosts.address(number),
    )


async def start_with_offsets(peers: Peers, offsets_s: list[float]) -> None:
    """Start each peer at its offset and wait until all listen."""

    async def one(peer: PeerProcess, offset_s: float) -> None:
        await asyncio.sleep(offset_s)
        peer.start()
        await peer.listening()

    await asyncio.gather(*map(one, peers.peers, offsets_s))


async def play(hosts: Lan, folder: Path, rng: random.Random) -> str:
    """One round. Returns what came of it, raises AssertionError when they do not agree."""
    offsets_s = [rng.uniform(0.0, OFFSET_MAX_S) for _ in range(3)]
    async with Peers([peer_on(hosts, number, folder) for number in (1, 2, 3)]) as peers:
        await start_with_offsets(peers, offsets_s)
        started_s = time.monotonic()
        states = await peers.until("one cluster, three voters", voting(3), limit_s=AGREE_LIMIT_S)
        took_s = time.monotonic() - started_s
    starts = ", ".join(f"{offset:.1f}" for offset in offsets_s)
    return f"starts at {starts} s: {states[0]['cluster_id'][:8]} agreed {took_s:.1f} s later"


async def run(rounds: int, seed: int) -> int:
    agreed = 0
    for number in range(1, rounds + 1):
        rng = random.Random(f"{seed}/{number}")
        with lan(3) as hosts, tempfile.TemporaryDirectory() as folder:
            try:
                print(f"round {number}: {await play(hosts, Path(folder), rng)}", flush=True)
                agreed += 1
            except AssertionError as error:
                print(f"round {number}: {error}", flush=True)
    print(f"seed {seed}: {agreed} of {rounds} rounds agreed")
    return 0 if agreed == rounds else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    reason = missing()
    if reason:
        sys.exit(reason)
    sys.exit(asyncio.run(run(given.rounds, given.seed)))
