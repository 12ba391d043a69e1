"""Sizes against timers on real sockets: catching up over a link of 100 Mbit/s, and no election.

Three members, each a process on a host of its own (Raft on a real disk, real TLS links; no API),
every cable shaped to 100 Mbit/s. One is cut off while the others commit; then its cable is mended,
and clients go on. Entry by entry: 20,000 commands. By snapshot: the largest state allowed. Counted
is until it has applied what the leader had when the cable was mended; a term that moved meanwhile
ends the bench. Needs root and `tc`.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from aivailable.wire.limits import STATE_MAX_BYTES
from bench.lan import lan, missing, places, shape
from bench.peers import BenchFailed
from bench.report import Figure, report, wanted

from cluster.member_process import Members  # type: ignore[import-not-found]  # isort: skip

HOSTS = 3
MBIT_PER_S = 100
BEHIND = 20_000
BEHIND_SNAPSHOT = 3_000
CLIENTS_FILL = 200
CLIENTS_MEANWHILE = 4
ROUNDS = 5
ROUNDS_QUICK = 1
LOOK_S = 0.02
FORM_LIMIT_S = 30.0
FILL_LIMIT_S = 120.0
CATCH_UP_LIMIT_S = 30.0
NO_OTHER = "issue 3 asks for no election, and sets no time"


def main() -> None:
    asked = wanted("catch_up", "catching up over 100 Mbit/s")
    reason = missing()
    kinds = {"20,000 commands": (1_000_000, BEHIND, 0), "the largest state": (
        2_000, BEHIND_SNAPSHOT, STATE_MAX_BYTES - 1024)}  # fmt: skip
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(0 if reason else ROUNDS_QUICK if asked.quick else ROUNDS):
        for kind, (compact, behind, state_bytes) in kinds.items():
            try:
                took[kind].append(asyncio.run(_round(compact, behind, state_bytes)))
            except subprocess.CalledProcessError as error:
                reason = f"no link can be limited here: {error.stderr!r}"
                break
            asked.say(f"round {number + 1}, {kind}: {took[kind][-1]:.2f} s, no election")
    if reason:
        asked.say(reason)
    figures = [
        Figure(f"{kind} behind, over {MBIT_PER_S} Mbit/s", "s", tuple(values), reason or NO_OTHER)
        for kind, values in took.items()
    ]
    report("catch_up", figures, asked)


async def _round(compact_entries: int, behind: int, state_bytes: int) -> float:
    """Seconds from the mended cable to caught up. Raises BenchFailed on an election."""
    with lan(HOSTS) as hosts, tempfile.TemporaryDirectory(prefix="aivailable-bench-") as folder:
        for number in range(1, HOSTS + 1):
            shape(hosts, number, MBIT_PER_S)
        where = [places(hosts)(number) for number in range(1, HOSTS + 1)]
        group = Members(
            Path(folder), [(place.host, place.prefix) for place in where], compact_entries
        )
        try:
            await group.start()
            return await _caught_up(group, hosts, behind, state_bytes)
        finally:
            await group.end()


async def _caught_up(group: Any, hosts: Any, behind: int, state_bytes: int) -> float:
    for number in range(HOSTS):
        await group.tell(number, f"state {state_bytes}")
        await group.tell(number, f"load {CLIENTS_MEANWHILE}")
    seen = await _until(group, lambda seen: _leader(seen) is not None, FORM_LIMIT_S)
    leader = _leader(seen)
    assert leader is not None
    lagging = next(number for number in range(HOSTS) if number != leader)
    hosts.cut(lagging + 1)
    await group.tell(leader, f"load {CLIENTS_FILL}")
    goal = seen[lagging]["applied"] + behind
    await _until(group, lambda seen: seen[leader]["applied"] >= goal, FILL_LIMIT_S)
    await group.tell(leader, f"load {CLIENTS_MEANWHILE}")
    before = await _reports(group)
    mended_s = time.monotonic()
    hosts.mend(lagging + 1)
    goal = before[leader]["applied"]
    await _until(group, lambda seen: seen[lagging]["applied"] >= goal, CATCH_UP_LIMIT_S)
    took_s = time.monotonic() - mended_s
    after = await _reports(group)
    if {report["term"] for report in after} != {before[leader]["term"]}:
        raise BenchFailed(f"an election: {[report['term'] for report in after]}")
    return took_s


def _leader(seen: list[dict[str, Any]]) -> int | None:
    """Whom all follow, once all have applied something."""
    leaders = {report["leader"] for report in seen}
    if len(leaders) != 1 or not min(report["applied"] for report in seen):
        return None
    return next((n for n, report in enumerate(seen) if report["node"] in leaders), None)


async def _until(group: Any, condition: Any, limit_s: float) -> list[dict[str, Any]]:
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        seen = await _reports(group)
        if condition(seen):
            return seen
        await asyncio.sleep(LOOK_S)
    raise BenchFailed(f"not within {limit_s:g} s: {seen}")


async def _reports(group: Any) -> list[dict[str, Any]]:
    return [await group.tell(number, "standing") for number in range(HOSTS)]


if __name__ == "__main__":
    main()
