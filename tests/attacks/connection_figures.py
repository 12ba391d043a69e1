"""What an honest client sees beside connections that ask nothing (S4) and slow bodies (S5).

By hand: `PYTHONPATH=.:tests:tests/attacks python -m connection_figures`. The figures of this
change and of the version before it are in `results.txt`.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
from fixtures.homes import Homes
from fixtures.peers import PeerProcess, Peers, voting
from test_connections import (
    SILENT,
    SLOW_BODIES,
    narrowed,
    opened,
    said_bytes,
    slow_body,
    still_open,
    user_key,
)

TRIES = 20
SPAN_S = 30.0


async def tries(peers: Peers, peer: PeerProcess, key: str, path: str) -> str:
    """How many of the askings within the span were answered, and how fast."""
    took: list[float] = []
    failed: dict[str, int] = {}
    ends_s = time.monotonic() + SPAN_S
    for _ in range(TRIES):
        if time.monotonic() > ends_s:
            break
        began_s = time.monotonic()
        try:
            answer = await peers.ask(peer, "GET", path, key=key)
            why = "" if answer.status == 200 else str(answer.status)
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            why = type(error).__name__
        if why:
            failed[why] = failed.get(why, 0) + 1
        else:
            took.append(time.monotonic() - began_s)
    speed = f", median {statistics.median(took):.3f} s, worst {max(took):.3f} s" if took else ""
    return f"{path}: {len(took)} answered, failed {failed or 'none'}{speed}"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Peers() as peers:
            await Homes(Path(folder) / "homes").start(peers, Path(folder), 3, "cpu:64MiB")
            peer = await narrowed(peers)
            greedy, modest = await user_key(peers, "greedy"), await user_key(peers, "modest")
            await peers.until("all know the keys", voting(3))
            attacks = (("S4", SILENT, b""), ("S5", SLOW_BODIES, slow_body(greedy)))
            for name, count, first in attacks:
                before, cpu_s, began_s = said_bytes(peer), peer.cpu_s(), time.monotonic()
                async with opened(peer, count, first) as some:
                    for path in ("/healthz", "/v1/models"):
                        print(name, await tries(peers, peer, modest, path))
                    await asyncio.sleep(max(0.0, SPAN_S - (time.monotonic() - began_s)))
                    span_s = time.monotonic() - began_s
                    said = (said_bytes(peer) - before) / 1024
                    share = (peer.cpu_s() - cpu_s) / span_s
                    print(
                        f"{name} after {span_s:.0f} s: {still_open(some)} of {count} open, "
                        f"{said:.0f} KiB said, {share:.0%} of a core"
                    )
                await asyncio.sleep(3.0)


if __name__ == "__main__":
    asyncio.run(main())
