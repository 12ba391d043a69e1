"""Time from the controller's death until the next command is committed and acknowledged.

Two deaths: `kill -9`, where the kernel closes its connections and the others notice at once, and
a freeze (SIGSTOP), which looks to them like a machine without power: only silence tells.
"""

from __future__ import annotations

import asyncio
import signal
import time

import aiohttp

from bench.lab import form, lab
from bench.report import Figure, Options, options, progress, report

LIMIT_S = 60.0
ASK_LIMIT_S = 30.0


async def one(number: int, how: signal.Signals) -> tuple[float, float]:
    """(seconds until another controls, seconds until a command is committed) after the death."""
    async with lab(3) as peers:
        await form(peers)
        state = await peers.state(peers.peers[0])
        seen = await peers.states()
        at = next(n for n, one in enumerate(seen) if one["here"] == state["controller"])
        dying = peers.peers[at]
        rest = [peer for peer in peers.peers if peer is not dying]
        killed_s = time.monotonic()
        assert dying.process is not None
        dying.process.send_signal(how)

        async def committed() -> float:
            body = {"scope": "user", "label": f"round {number}"}
            while time.monotonic() < killed_s + LIMIT_S:
                try:
                    answer = await peers.ask(
                        rest[0], "POST", "/cluster/v1/keys", body, limit_s=ASK_LIMIT_S
                    )
                except (aiohttp.ClientError, TimeoutError):
                    continue
                if answer.status == 201:
                    return time.monotonic() - killed_s
            raise TimeoutError("no command was committed")

        async def controlled() -> float:
            seen = await peers.until(
                "another controls",
                lambda states: states[0]["controller"] not in (None, state["controller"]),
                rest[1:],
                LIMIT_S,
            )
            took_s = time.monotonic() - killed_s
            assert seen[0]["term"] > state["term"]
            return took_s

        try:
            return await asyncio.gather(controlled(), committed())
        finally:
            dying.kill()


async def measure(given: Options) -> list[Figure]:
    figures = []
    for how, name in ((signal.SIGKILL, "kill -9"), (signal.SIGSTOP, "freeze")):
        control, commit = [], []
        for number in range(1, given.rounds + 1):
            controlled_s, committed_s = await one(number, how)
            control.append(controlled_s)
            commit.append(committed_s)
            progress(
                given,
                f"{name}, round {number}: control {controlled_s:.2f} s, commit {committed_s:.2f} s",
            )
        figures += [
            Figure(f"{name} of the controller to the next committed command", "s", commit, "lower"),
            Figure(f"{name} of the controller to another controller", "s", control, "lower"),
        ]
    return figures


if __name__ == "__main__":
    GIVEN = options("failover", rounds=11, quick_rounds=2)
    report("failover", GIVEN, asyncio.run(measure(GIVEN)))
