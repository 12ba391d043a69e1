"""Clusters that end in others: what stays of a state, and whom a tombstone lets in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.states import Cluster, api_key, equipped, founded, member
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.state.commands import (
    Admit,
    Adopt,
    Dissolve,
    Found,
    PutDeployment,
    Remove,
    SetWindow,
)
from aivailable.core.state.founding import ClusterFacts
from aivailable.core.state.invariants import violations
from aivailable.core.state.merging import (
    TOMBSTONES_MAX,
    Apart,
    EndInOther,
    Meeting,
    facts_of,
    is_unused,
    listing,
    meet,
    recovered,
    wins,
    with_tombstone,
)
from aivailable.core.state.records import Role, Tombstone
from aivailable.core.state.state import State, decode_state, encode_state

NEW = "n" * 26
OLD = "o" * 26


def with_graves(*ended_clusters: Tombstone) -> State:
    return replace(founded().state, tombstones=ended_clusters)


@pytest.mark.parametrize("node", ["n1", "n2", "n3"])
def test_a_recovered_state_is_sound_and_keeps_what_belongs_to_all(node: str) -> None:
    before = equipped(3).state
    result = recovered(before, node, NEW, actor="operator:k", at_ms=5)
    after = result.state
    assert violations(after) == ()
    assert decode_state(encode_state(after)) == after
    assert list(after.members) == [node]
    assert after.members[node].role is Role.VOTER
    assert (after.keys, after.models) == (before.keys, before.models)
    assert (after.deployments, after.settings) == (before.deployments, before.settings)
    assert after.cluster is not None
    assert (after.cluster.cluster_id, after.cluster.founded_by) == (NEW, node)
    assert not after.window.open
    assert after.control is None
    assert all(entry.node == node for entry in after.replicas.values())
    others = tuple(other for other in ("n1", "n2", "n3") if other != node)
    assert result.gone == tuple(f"host-{other}" for other in others)
    assert listing(after, others[0], "c" * 26) is not None
    assert after.events[-1].actor == "operator:k"
    assert after.events[-1].text.endswith(", ".join(result.gone))


def test_a_copy_without_us_founds_nothing() -> None:
    for state in (State(), equipped(3).state):
        with pytest.raises(ValueError, match="holds no cluster"):
            recovered(state, "stranger", NEW, actor="a", at_ms=0)


def test_a_tombstone_admits_whom_it_lists_once_and_without_a_window() -> None:
    cluster = founded()
    cluster.propose(SetWindow(0))
    cluster.state = replace(cluster.state, tombstones=(Tombstone(OLD, "lab", ("n8", "n9")),))
    refused = cluster.propose(Admit(member("n7"), (), None, tombstone=OLD))
    assert refused.code == "not_listed"
    assert cluster.propose(Admit(member("n9"), (), None, tombstone="x")).code == "not_listed"
    assert cluster.propose(Admit(member("n9"), (), None, tombstone=OLD)).accepted
    assert cluster.state.tombstones[0].awaited == ("n8",)
    assert cluster.propose(Remove("n9")).accepted
    again = cluster.propose(Admit(member("n9"), (), None, tombstone=OLD))
    assert again.code == "not_listed", "who was taken out does not come back by a tombstone"


def test_whoever_comes_in_another_way_is_awaited_no_more() -> None:
    cluster = founded()
    cluster.state = replace(cluster.state, tombstones=(Tombstone(OLD, "lab", ("n8",)),))
    assert cluster.propose(Admit(member("n8"), (), window_serial=1)).accepted
    assert cluster.state.tombstones[0].awaited == ()


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=40))
def test_tombstones_are_bounded_and_none_that_awaits_somebody_is_dropped(
    steps: list[tuple[int, bool]],
) -> None:
    ended_clusters: tuple[Tombstone, ...] = ()
    for number, open_ in steps:
        fresh = Tombstone(f"c{number}", "lab", ("n1",) if open_ else ())
        after = with_tombstone(ended_clusters, fresh)
        others = [entry for entry in ended_clusters if entry.cluster_id != fresh.cluster_id]
        if after is None:
            assert len(others) == TOMBSTONES_MAX
            assert all(entry.awaited for entry in others)
            continue
        assert len(after) <= TOMBSTONES_MAX
        assert after[-1] == fresh
        assert [entry for entry in others if entry.awaited and entry not in after] == []
        ended_clusters = after


facts = st.builds(ClusterFacts, st.sampled_from("abc"), st.integers(1, 3), st.booleans())


@given(facts, facts)
def test_of_two_clusters_one_wins(one: ClusterFacts, other: ClusterFacts) -> None:
    if one.cluster_id != other.cluster_id:
        assert wins(one, other) != wins(other, one)


MINE = ClusterFacts("m" * 26, 2, False)
BIG = ClusterFacts("z" * 26, 12, False)


@given(st.builds(Meeting, facts, facts, st.booleans(), st.booleans(), st.booleans()))
def test_nothing_ends_by_itself_unless_unused_and_behind_an_open_window(meeting: Meeting) -> None:
    if isinstance(meet(meeting), EndInOther):
        assert meeting.window_open
        assert meeting.other_open
        assert meeting.unused
        assert not wins(meeting.mine, meeting.other)


@pytest.mark.parametrize("window_open", [False, True])
@pytest.mark.parametrize("unused", [False, True])
def test_a_stranger_with_ten_fake_members_takes_over_nothing(
    window_open: bool, unused: bool
) -> None:
    """An open window of its own and any number of members: ours ends only when it is unused."""
    met = meet(Meeting(MINE, BIG, window_open, True, unused))
    if window_open and unused:
        assert isinstance(met, EndInOther)
    else:
        assert isinstance(met, Apart)
        assert f"aivailable merge {BIG.cluster_id}` here" in met.advice


def test_the_operator_ends_a_cluster_only_on_its_side() -> None:
    used = Meeting(MINE, BIG, False, False, False)
    assert isinstance(meet(used, ordered=True), EndInOther)
    met = meet(Meeting(BIG, MINE, True, True, True), ordered=True)
    assert isinstance(met, Apart)
    assert f"aivailable merge {BIG.cluster_id}` there" in met.advice


def test_a_deployment_or_an_operator_makes_a_cluster_used() -> None:
    assert is_unused(founded().state)
    assert not is_unused(equipped().state)
    cluster = founded()
    cluster.propose(SetWindow(0), actor="operator:k")
    assert not is_unused(cluster.state)


class Pair:
    """Two clusters, "a" and "b", and what each has told the other."""

    def __init__(self, ids: str = "ab") -> None:
        self.sides = [Cluster(), Cluster()]
        self.ids = [letter * 26 for letter in ids]
        self.granted: dict[int, tuple[str, ...]] = {}
        for side, cluster in enumerate(self.sides):
            founder = member(self.node(side, 0))
            found = Found(self.ids[side], "lab", founder, api_key(f"s{side}"))
            assert cluster.propose(found, by=founder.node).accepted

    def node(self, side: int, number: int) -> str:
        return f"{'xy'[side]}{number}"

    def grow(self, side: int) -> None:
        cluster = self.sides[side]
        joiner = member(self.node(side, len(cluster.state.members)))
        cluster.propose(Admit(joiner, (), 1), by=self.node(side, 0))

    def ask(self, side: int) -> None:
        """`side` asks the other to adopt it, and keeps a promise."""
        if self.sides[side].state.dissolved is not None:
            return
        members = tuple(sorted(self.sides[side].state.members))
        body = Adopt(self.ids[side], "lab", members, 1)
        if self.sides[1 - side].propose(body, by=self.node(1 - side, 0)).accepted:
            self.granted[side] = members

    def dissolve(self, side: int) -> bool:
        members = self.granted.get(side)
        if members is None:
            return False
        body = Dissolve(self.ids[1 - side], "lab", members, ())
        return self.sides[side].propose(body, by=self.node(side, 0)).accepted

    def arrive(self, side: int, number: int) -> None:
        nodes = sorted(self.sides[side].state.members)
        node = nodes[number % len(nodes)]
        if self.sides[side].state.dissolved is None:
            return
        other = self.sides[1 - side]
        body = Admit(member(node), (), None, self.ids[side])
        known = node in other.state.members
        assert other.propose(body, by=self.node(1 - side, 0)).accepted or known


@given(
    st.sampled_from(["ab", "ba"]),
    st.lists(
        st.tuples(
            st.sampled_from(["grow", "ask", "ask", "dissolve", "arrive"]),
            st.integers(0, 1),
            st.integers(0, 3),
        ),
        max_size=25,
    ),
)
def test_of_two_clusters_at_most_one_dissolves_and_nobody_is_left_behind(
    ids: str, steps: list[tuple[str, int, int]]
) -> None:
    pair = Pair(ids)
    for step, side, number in steps:
        if step == "arrive":
            pair.arrive(side, number)
        else:
            getattr(pair, step)(side)
        ended = [cluster.state.dissolved is not None for cluster in pair.sides]
        assert sum(ended) <= 1


def test_two_that_adopted_each_other_end_in_the_smaller_id() -> None:
    pair = Pair()
    pair.ask(0)
    pair.ask(1)
    assert not pair.dissolve(0)
    assert pair.dissolve(1)


def test_who_came_after_the_adoption_stops_the_end() -> None:
    pair = Pair()
    pair.ask(1)
    pair.grow(1)
    assert not pair.dissolve(1)
    pair.ask(1)
    assert pair.dissolve(1)


def test_an_ended_cluster_changes_no_more_and_the_other_awaits_all_before_it_may_end() -> None:
    pair = Pair()
    pair.grow(1)
    pair.ask(1)
    assert pair.dissolve(1)
    ended, stays = pair.sides[1], pair.sides[0]
    assert ended.propose(PutDeployment(equipped().state.deployments["tiny"]), by="y0").code == (
        "dissolved"
    )
    third = Dissolve("c" * 26, "lab", tuple(stays.state.members), ())
    assert stays.propose(third, by="x0").code == "not_now"
    pair.arrive(1, 0)
    assert stays.propose(third, by="x0").code == "not_now"
    pair.arrive(1, 1)
    assert listing(stays.state, "y0") is None
    everybody = replace(third, members=tuple(stays.state.members))
    assert stays.propose(everybody, by="x0").accepted


def test_adoption_is_refused_and_explained() -> None:
    pair = Pair()
    cluster = pair.sides[0]
    other = pair.ids[1]
    many = tuple(f"m{number}" for number in range(49))
    cases = [
        (Adopt(pair.ids[0], "lab", ("y0",), 1), "itself"),
        (Adopt("", "lab", ("y0",), 1), "invalid_cluster"),
        (Adopt(other, "lab", (), 1), "too_many"),
        (Adopt(other, "lab", many, 1), "too_many"),
        (Adopt(other, "lab", ("y" * 53,), 1), "invalid_member"),
        (Adopt(other, "lab", ("y0",), 9), "window_closed"),
    ]
    for body, code in cases:
        assert cluster.propose(body, by="x0").code == code
    assert cluster.propose(Adopt(other, "lab", ("y0",), 1), by="x0").accepted
    cluster.propose(SetWindow(0), by="x0")
    again = cluster.propose(Adopt(other, "lab", ("y0",), 1), by="x0")
    assert again.accepted, "asked again after a death: the window may have closed meanwhile"
    assert facts_of(cluster.state, pair.ids[0]).members == 1
