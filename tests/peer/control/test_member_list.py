"""Whom a node links to: the newest word counts, wherever it came from."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping

import pytest
from fixtures.cluster_parts import FakeCalls, FakeView
from fixtures.cluster_state import cluster, device
from fixtures.peer_ports import FakeLinks
from fixtures.states import Cluster
from fixtures.virtual_time import elapse, run

from aivailable.core.state.records import Role
from aivailable.core.state.state import State
from aivailable.errors import SchemaError
from aivailable.peer.control import member_list
from aivailable.peer.control.member_list import LEADERLESS_MS, Told, keep_asking, seen, told
from aivailable.peer.joining.cluster_file import ClusterFile, seats_of


def state(names: str, version: int) -> State:
    made = cluster({name: (device(),) for name in names})
    return State(members=made.members, version=version)


def file(names: str, version: int) -> ClusterFile:
    seats = tuple(seat for seat in seats_of(state(names, version)) if seat.node != "a")
    return ClusterFile("c1", "lab", Role.VOTER, ("a",), seats, version)


def nodes(file: ClusterFile) -> str:
    return "".join(seat.node for seat in file.seats)


def test_an_old_state_applied_after_a_restart_drops_nobody() -> None:
    kept = file("abcde", 21)
    assert seen(kept, state("ab", 3), "a") == kept
    assert nodes(seen(kept, state("abcd", 21), "a")) == "bcd"


def test_a_newer_list_is_taken_from_whoever_tells_it() -> None:
    stale = file("ab", 3)
    fresh = told(stale, Told(30, seats_of(state("abde", 30))), "a")
    assert nodes(fresh) == "bde"
    assert told(fresh, Told(29, ()), "a") == fresh
    assert seen(fresh, state("ab", 4), "a") == fresh, "what is replayed meanwhile is older"


def view(of: State, leaderless_ms: int = 0) -> FakeView:
    return FakeView("a", Cluster(of), leaderless_ms=leaderless_ms)


async def answer_of(told_state: State) -> Mapping[str, str]:
    return await member_list.methods(view(told_state))[member_list.METHOD]("a", {})


@pytest.mark.parametrize(("leaderless_ms", "asks"), [(LEADERLESS_MS, True), (0, False)])
def test_only_a_node_without_a_leader_asks(leaderless_ms: int, asks: bool) -> None:
    async def scenario() -> None:
        answers = {
            "b": {"told": base64.b64encode(b"no list").decode()},
            "c": await answer_of(state("abcd", 9)),
        }
        links = FakeLinks(peers=["b", "c"])
        calls, learnt = FakeCalls(answers), list[Told]()
        task = asyncio.ensure_future(
            keep_asking(calls, links, view(state("a", 1), leaderless_ms), learnt.append)  # type: ignore[arg-type]
        )
        await elapse(member_list.ASK_PERIOD_S * 1.5)
        task.cancel()
        assert [node for node, *_ in calls.asked] == (["b", "c"] if asks else [])
        assert [news.version for news in learnt] == ([9] if asks else [])

    run(scenario())


@pytest.mark.parametrize("values", [{}, {"told": "***"}, {"told": "AAAA"}])
def test_what_is_no_list_is_refused(values: Mapping[str, str]) -> None:
    with pytest.raises(SchemaError):
        member_list._news(values)
