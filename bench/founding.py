"""Time from `up` to member: alone, three together, and one into an existing cluster.

Counted from the start of the process (the last one's, for three together) until every started
peer says that it is a member of a cluster with a controller. "Whole" adds: three voters, and
everyone has heard everyone's heartbeat and devices. Each peer is on a host of its own where there
is the right to make network namespaces. Else all share the loopback and its one mDNS port, where
answers meant for one peer reach another, and joining takes a second more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from bench.lan import lan, missing, places
from bench.peers import Cluster, Peer, Place, members, on_loopback, whole
from bench.report import Figure, Wanted, report, wanted

ROUNDS = 9
ROUNDS_QUICK = 2
TOGETHER = 3
BOUNDS_S = {"alone": 5.0, "three together": 8.0, "into an existing cluster": 3.0}
"""Medians; issue 3's acceptance."""
NO_OTHER = "nothing else founds such a cluster without configuration"


def main() -> None:
    asked = wanted("founding", "time from `up` to member")
    rounds = ROUNDS_QUICK if asked.quick else ROUNDS
    reason = missing()
    if reason:
        asked.say(f"all peers on the loopback: {reason}")
        _measure(asked, rounds, on_loopback)
        return
    with lan(TOGETHER + 1) as hosts:
        _measure(asked, rounds, places(hosts))


def _measure(asked: Wanted, rounds: int, where: Callable[[int], Place]) -> None:
    alone: list[float] = []
    together: list[float] = []
    formed: list[float] = []
    into: list[float] = []
    for number in range(rounds):
        with Cluster(places=where) as cluster:
            alone.append(_member_s(cluster, cluster.start(1)))
        with Cluster(places=where) as cluster:
            started = cluster.start(TOGETHER)
            cluster.until("three are members of one cluster", lambda seen: members(seen), started)
            together.append(_since_s(started))
            cluster.until("three voters", lambda seen: whole(seen, TOGETHER), started)
            formed.append(_since_s(started))
            into.append(_member_s(cluster, cluster.start(1)))
        asked.say(
            f"round {number + 1} of {rounds}: alone {alone[-1]:.2f} s, three {together[-1]:.2f} s,"
            f" whole {formed[-1]:.2f} s, into an existing one {into[-1]:.2f} s"
        )
    for (name, bound_s), values in zip(BOUNDS_S.items(), (alone, together, into), strict=True):
        median_s = statistics.median(values)
        verdict = "within" if median_s <= bound_s else "OVER"
        asked.say(f"{name}: median {median_s:.2f} s, {verdict} the bound of {bound_s:g} s")
    report(
        "founding",
        [
            Figure("alone: up to founded", "s", tuple(alone), NO_OTHER),
            Figure("three together: up to all members", "s", tuple(together), NO_OTHER),
            Figure("three together: up to three voters", "s", tuple(formed), NO_OTHER),
            Figure("one into an existing cluster", "s", tuple(into), NO_OTHER),
        ],
        asked,
    )


def _member_s(cluster: Cluster, started: list[Peer]) -> float:
    cluster.until("a member", members, started)
    return _since_s(started)


def _since_s(started: list[Peer]) -> float:
    return time.monotonic() - max(peer.started_s for peer in started)


if __name__ == "__main__":
    main()
