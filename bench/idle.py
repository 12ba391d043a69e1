"""Idle cost of a peer in a cluster of three: processor time and resident memory.

Each peer is watched over the same interval after the cluster has come to rest. Nobody asks it
anything meanwhile, not even for its state.
"""

from __future__ import annotations

import time

import psutil

from bench.peers import Cluster
from bench.report import Figure, report, wanted

PEERS = 3
SETTLE_S = 10.0
INTERVAL_S = 20.0
ROUNDS = 6
ROUNDS_QUICK = 1
NO_OTHER = "no comparable service is installed by this package"


def main() -> None:
    asked = wanted("idle", "processor time and memory of an idle peer")
    rounds = ROUNDS_QUICK if asked.quick else ROUNDS
    percents: list[float] = []
    resident_mib: list[float] = []
    with Cluster() as cluster:
        cluster.start(PEERS)
        cluster.until_whole()
        time.sleep(SETTLE_S)
        watched = [psutil.Process(p.process.pid) for p in cluster.peers if p.process is not None]
        for number in range(rounds):
            before = [_used_s(process) for process in watched]
            started_s = time.monotonic()
            time.sleep(INTERVAL_S)
            passed_s = time.monotonic() - started_s
            for process, used_s in zip(watched, before, strict=True):
                percents.append((_used_s(process) - used_s) / passed_s * 100)
                resident_mib.append(process.memory_info().rss / 2**20)
            asked.say(f"interval {number + 1} of {rounds} done")
    report(
        "idle",
        [
            Figure("idle processor time of a peer", "% of a core", tuple(percents), NO_OTHER),
            Figure("resident memory of a peer", "MiB", tuple(resident_mib), NO_OTHER),
        ],
        asked,
    )


def _used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
