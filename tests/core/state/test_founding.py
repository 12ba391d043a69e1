"""Founding: who founds, who joins, who gives up; with many nodes there is one cluster."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.state.founding import (
    FOUNDER_TURN_S,
    ClusterFacts,
    FoundCluster,
    Join,
    Seeking,
    WaitFor,
    decide,
    gives_up,
)


@dataclass(frozen=True)
class Seen:
    short_node: str
    cluster_prefix: str = ""
    cluster_name: str = "lab"
    window_open: bool = True


def seeking(now_s: float, *, unreachable: tuple[str, ...] = ()) -> Seeking:
    """Node m, which began at 100 s and looks around for 3 s."""
    return Seeking("m", "lab", 100.0, 3.0, now_s, unreachable)


def test_alone_it_looks_around_and_then_founds() -> None:
    assert decide(seeking(100.0), ()) == WaitFor("looking for a cluster named 'lab'", 103.0)
    assert decide(seeking(103.0), ()) == FoundCluster()


def test_an_open_window_is_joined_at_once() -> None:
    there = Seen("z", "c9")
    assert decide(seeking(100.0), (Seen("a"), there)) == Join(there)


def test_a_closed_window_is_knocked_at_after_looking_around() -> None:
    closed, opened = Seen("a", "c1", window_open=False), Seen("z", "c9")
    assert isinstance(decide(seeking(101.0), (closed,)), WaitFor)
    assert decide(seeking(103.0), (closed,)) == Join(closed)
    assert decide(seeking(103.0), (closed, opened)) == Join(opened)


def test_other_names_itself_and_unreachable_nodes_do_not_count() -> None:
    others = (Seen("a", "c1", "other"), Seen("b", "", "other"), Seen("m"))
    assert decide(seeking(103.0), others) == FoundCluster()
    gone = (Seen("a", "c1"), Seen("b"))
    assert decide(seeking(103.0, unreachable=("a", "b")), gone) == FoundCluster()


def test_the_lowest_seeker_founds_and_the_next_when_it_does_not() -> None:
    assert decide(seeking(103.0), (Seen("x"), Seen("z"))) == FoundCluster()
    before = (Seen("a"), Seen("b"), Seen("z"))
    waits = decide(seeking(103.0), before)
    assert waits == WaitFor("a is about to found the cluster", 103.0 + 2 * FOUNDER_TURN_S)
    assert decide(seeking(123.0), before) == FoundCluster()
    assert decide(seeking(113.0), before[1:]) == FoundCluster()


def test_only_a_pristine_cluster_of_one_gives_up() -> None:
    small, smaller = ClusterFacts("c2", 1, True), ClusterFacts("c1", 1, True)
    used, pair = ClusterFacts("c3", 1, False), ClusterFacts("c4", 2, False)
    assert gives_up(small, smaller)
    assert not gives_up(smaller, small)
    assert gives_up(smaller, used)
    assert gives_up(smaller, pair)
    assert not gives_up(used, pair)
    assert not gives_up(pair, used)
    assert not gives_up(small, small)


facts = st.builds(
    ClusterFacts, st.sampled_from(["c1", "c2", "c3"]), st.integers(1, 3), st.booleans()
)


@given(facts, facts)
def test_never_do_both_give_up(one: ClusterFacts, other: ClusterFacts) -> None:
    assert not (gives_up(one, other) and gives_up(other, one))


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=5),
    st.lists(st.floats(0, 1), min_size=5, max_size=5),
)
def test_nodes_that_hear_one_another_end_in_one_cluster(
    starts: list[float], jitters: list[float]
) -> None:
    """Each acts every tenth of a second on what all have announced."""
    names = "abcde"[: len(starts)]
    cluster_of: dict[str, str] = {}
    for tick in range(1200):
        now = tick / 10
        for name, start, jitter in zip(names, starts, jitters, strict=False):
            if now < start or name in cluster_of:
                continue
            seen = tuple(
                Seen(other, cluster_of.get(other, ""))
                for other, began in zip(names, starts, strict=False)
                if other != name and began <= now
            )
            step = decide(Seeking(name, "lab", start, 3 + jitter, now), seen)
            if isinstance(step, FoundCluster):
                cluster_of[name] = f"c-{name}"
            elif isinstance(step, Join):
                cluster_of[name] = step.sighting.cluster_prefix
    assert len(cluster_of) == len(names)
    assert len(set(cluster_of.values())) == 1
