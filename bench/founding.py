"""Time from `aivailable up` to member: three machines together, and one into a cluster."""

from __future__ import annotations

import asyncio
import time

from bench.lab import form, lab
from bench.report import Figure, Options, options, progress, report


async def together() -> float:
    """Seconds from starting three peers at once until each is a member and three vote."""
    async with lab(3) as peers:
        started_s = time.monotonic()
        await form(peers)
        return time.monotonic() - started_s


async def joining() -> float:
    """Seconds from starting a fourth peer until it is a member of a cluster of three."""
    async with lab(4) as peers:
        await form(peers, peers.peers[:3])
        fourth = peers.peers[3]
        started_s = time.monotonic()
        fourth.start()
        await fourth.listening()
        await peers.until(
            "it is a member",
            lambda states: states[0]["phase"] == "member" and len(states[0]["nodes"]) == 4,
            [fourth],
        )
        return time.monotonic() - started_s


async def measure(given: Options) -> list[Figure]:
    new, into = [], []
    for number in range(1, given.rounds + 1):
        new.append(await together())
        into.append(await joining())
        progress(given, f"round {number}: together {new[-1]:.2f} s, joining {into[-1]:.2f} s")
    return [
        Figure("up to three voters, three nodes started together", "s", new, "lower"),
        Figure("up to member of an existing cluster", "s", into, "lower"),
    ]


if __name__ == "__main__":
    GIVEN = options("founding", rounds=7, quick_rounds=1)
    report("founding", GIVEN, asyncio.run(measure(GIVEN)))
