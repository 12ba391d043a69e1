"""What a peer costs while nothing is asked of it: processor time and resident memory."""

from __future__ import annotations

import asyncio
import time

from bench.lab import form, lab
from bench.report import Figure, Options, options, progress, report

SETTLE_S = 5.0
QUICK_WATCH_S = 10.0
WATCH_S = 60.0


async def measure(given: Options) -> list[Figure]:
    watch_s = QUICK_WATCH_S if given.quick else WATCH_S
    cpu, memory = [], []
    async with lab(3) as peers:
        await form(peers)
        await asyncio.sleep(SETTLE_S)
        for number in range(1, given.rounds + 1):
            before = [peer.cpu_s() for peer in peers.peers]
            started_s = time.monotonic()
            await asyncio.sleep(watch_s)
            elapsed_s = time.monotonic() - started_s
            for peer, then_s in zip(peers.peers, before, strict=True):
                cpu.append(100.0 * (peer.cpu_s() - then_s) / elapsed_s)
                memory.append(peer.rss_bytes() / 2**20)
            progress(given, f"round {number}: {cpu[-3:]} % of a core, {memory[-3:]} MiB")
    return [
        Figure("processor of an idle peer (three members)", "% of a core", cpu, "lower"),
        Figure("resident memory of an idle peer", "MiB", memory, "lower"),
    ]


if __name__ == "__main__":
    GIVEN = options("idle", rounds=3, quick_rounds=1)
    report("idle", GIVEN, asyncio.run(measure(GIVEN)))
