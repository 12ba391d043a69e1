"""Clusters that end in others: what stays of a state, and whom a tombstone lets in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.states import equipped, founded, member
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.commands import Admit, Remove, SetWindow
from aivailable.core.invariants import violations
from aivailable.core.merging import TOMBSTONES_MAX, listing, recovered, with_tombstone
from aivailable.core.records import Role, Tombstone
from aivailable.core.state import State, decode_state, encode_state

NEW = "n" * 26
OLD = "o" * 26


def with_graves(*graves: Tombstone) -> State:
    return replace(founded().state, tombstones=graves)


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


def test_whoever_comes_by_another_door_is_awaited_no_more() -> None:
    cluster = founded()
    cluster.state = replace(cluster.state, tombstones=(Tombstone(OLD, "lab", ("n8",)),))
    assert cluster.propose(Admit(member("n8"), (), window_serial=1)).accepted
    assert cluster.state.tombstones[0].awaited == ()


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=40))
def test_tombstones_are_bounded_and_none_that_awaits_somebody_is_dropped(
    steps: list[tuple[int, bool]],
) -> None:
    graves: tuple[Tombstone, ...] = ()
    for number, open_ in steps:
        fresh = Tombstone(f"c{number}", "lab", ("n1",) if open_ else ())
        after = with_tombstone(graves, fresh)
        others = [entry for entry in graves if entry.cluster_id != fresh.cluster_id]
        if after is None:
            assert len(others) == TOMBSTONES_MAX
            assert all(entry.awaited for entry in others)
            continue
        assert len(after) <= TOMBSTONES_MAX
        assert after[-1] == fresh
        assert [entry for entry in others if entry.awaited and entry not in after] == []
        graves = after
