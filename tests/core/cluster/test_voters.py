"""Voters: one step at a time towards 1, 3 or 5."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.cluster_state import cluster, liveness
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.cluster.liveness import Liveness
from aivailable.core.cluster.voters import (
    SEAT_KEPT_AWAY_S,
    SEAT_KEPT_SILENT_S,
    Demote,
    Promote,
    RecordRole,
    Step,
    TransferFirst,
    next_step,
    target_voters,
)
from aivailable.core.state.records import Role
from aivailable.core.state.state import State


def members(names: str, voters: str = "a", down: str = "") -> State:
    state = cluster(dict.fromkeys(names, ()))
    return replace(
        state,
        members={
            name: replace(
                entry,
                role=Role.VOTER if name in voters else Role.OBSERVER,
                down=name in down,
            )
            for name, entry in state.members.items()
        },
    )


def walk(
    state: State,
    heard: Liveness,
    voters: list[str],
    caught_up: str,
    down_s: float = SEAT_KEPT_SILENT_S,
) -> list[Step]:
    """Do every step until none is due; `a` leads all the way, all have been down for `down_s`."""
    steps: list[Step] = []
    down = dict.fromkeys(state.members, down_s)
    while (step := next_step(state, heard, voters, tuple(caught_up), "a", down)) is not None:
        steps.append(step)
        assert len(steps) < 50, steps
        if isinstance(step, Promote):
            voters.append(step.node)
        elif isinstance(step, Demote):
            assert step.node != "a"
            voters.remove(step.node)
        elif isinstance(step, RecordRole):
            fresh = replace(state.members[step.node], role=step.role)
            state = replace(state, members={**state.members, step.node: fresh})
        else:
            raise AssertionError("the leader is a member")
    return steps


@pytest.mark.parametrize(
    ("count", "target"), [(0, 1), (1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (9, 5)]
)
def test_targets(count: int, target: int) -> None:
    assert target_voters(count) == target


def test_from_one_to_three_one_right_after_the_other() -> None:
    steps = walk(members("abc"), liveness("abc"), ["a"], "bc")
    assert steps == [
        Promote("b"),
        RecordRole("b", Role.VOTER),
        Promote("c"),
        RecordRole("c", Role.VOTER),
    ]


@pytest.mark.parametrize(
    ("names", "heard", "caught_up"), [("ab", "ab", "b"), ("abc", "ab", "bc"), ("abc", "abc", "b")]
)
def test_never_starts_towards_a_pair(names: str, heard: str, caught_up: str) -> None:
    assert walk(members(names), liveness(heard), ["a"], caught_up) == []


def test_a_pair_on_the_way_takes_its_third_as_soon_as_it_can() -> None:
    state = members("abc", "ab")
    assert next_step(state, liveness("ab"), ("a", "b"), ("c",), "a", {}) is None
    assert next_step(state, liveness("abc"), ("a", "b"), ("c",), "a", {}) == Promote("c")


def test_a_removed_voter_is_expelled_and_a_pair_of_members_goes_back_to_one() -> None:
    steps = walk(members("ab", "ab"), liveness("ab"), ["a", "b", "c"], "")
    assert steps == [Demote("c"), Demote("b"), RecordRole("b", Role.OBSERVER)]


def test_the_leader_is_never_demoted_whatever_its_id() -> None:
    heard = liveness("abcd", here="d")
    step = next_step(members("abcd", "abcd"), heard, tuple("abcd"), (), "d", {})
    assert step == Demote("c")
    alone = replace(heard, heard={}, linked=())
    assert next_step(members("ad", "ad"), alone, ("a", "d"), (), "d", {}) == Demote("a")


def test_a_removed_leader_hands_over_first() -> None:
    state = members("bc", "bc")
    heard = liveness("bc", here="a")
    assert next_step(state, heard, ("a", "b", "c"), (), "a", {}) == TransferFirst()
    state = members("bc", "b")
    assert next_step(state, liveness("", here="a"), ("a", "b"), (), "a", {}) == TransferFirst()


def test_a_reboot_loses_no_seat_and_a_night_neither() -> None:
    state = members("abcd", "abc", down="c")
    heard = liveness("abd")
    assert walk(state, heard, ["a", "b", "c"], "d", SEAT_KEPT_SILENT_S - 1) == []
    away = replace(state.members["c"], away=True)
    night = replace(state, members={**state.members, "c": away})
    assert walk(night, heard, ["a", "b", "c"], "d", SEAT_KEPT_AWAY_S - 1) == []
    assert walk(night, heard, ["a", "b", "c"], "d", SEAT_KEPT_AWAY_S) != []


def test_a_voter_that_is_down_is_replaced_only_by_one_that_can_take_over() -> None:
    state = members("abcd", "abc", down="c")
    assert walk(state, liveness("ab"), ["a", "b", "c"], "d") == []
    assert walk(state, liveness("abd"), ["a", "b", "c"], "") == []
    assert walk(state, liveness("abd"), ["a", "b", "c"], "d") == [
        Promote("d"),
        RecordRole("d", Role.VOTER),
        Demote("c"),
        RecordRole("c", Role.OBSERVER),
    ]


def test_a_silent_voter_that_is_not_down_keeps_its_vote() -> None:
    assert walk(members("abcd", "abc"), liveness("abd"), ["a", "b", "c"], "d") == []


@given(
    st.integers(1, 7),
    st.sets(st.sampled_from("bcdefg")),
    st.sets(st.sampled_from("bcdefgh")),
    st.sets(st.sampled_from("bcdefg")),
)
def test_every_walk_ends_and_all_live_reach_the_target(
    count: int, down: set[str], raft: set[str], unheard: set[str]
) -> None:
    names = "abcdefg"[:count]
    heard = liveness(name for name in names if name == "a" or name not in unheard)
    voters = ["a", *sorted(raft)]
    walk(members(names, down="".join(down)), heard, voters, names)
    assert "a" in voters
    assert all(name in names for name in voters)
    if not (down | unheard) & set(names):
        assert len(voters) == target_voters(count)
