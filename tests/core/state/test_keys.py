"""Where keys come from, how many there may be, which end with a member, and who never returns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.states import Cluster, api_key, founded, member, raised
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.state import keys as rules
from aivailable.core.state.changes import keys as limits
from aivailable.core.state.codec import encode_command
from aivailable.core.state.commands import Admit, Adopt, Lapse, PutKey, Remove, RevokeKey
from aivailable.core.state.keys import came_through, endings
from aivailable.core.state.levels import LEVEL
from aivailable.core.state.machine import apply_bytes
from aivailable.core.state.merging import recovered
from aivailable.core.state.records import ApiKey, Scope
from aivailable.core.state.removal import REMOVED_MAX, with_removed
from aivailable.core.state.state import State, decode_state, encode_state, state_digest

USER = Scope.USER


def cluster_of(members: int = 3) -> Cluster:
    return raised(founded(members))


def newcomer(node: str, *keys: ApiKey) -> Admit:
    return Admit(member(node, feature_max=LEVEL), keys, None)


def ids(*names: str) -> tuple[str, ...]:
    return tuple(sorted(api_key(name).key_id for name in names))


def valid(cluster: Cluster, name: str) -> bool:
    return cluster.state.find_key(api_key(name).hashed) is not None


def test_a_key_records_who_proposed_it_and_who_asked_whatever_its_body_says() -> None:
    cluster = cluster_of()
    forged = replace(api_key("made"), node="n1", via="n1", by="deadbeef", label="x" * 999)
    cluster.must(PutKey(forged), by="n2", actor="operator:12345678", level=LEVEL)
    cluster.must(newcomer("n4", replace(api_key("brought"), via="n9")), by="n3", actor="window")
    cluster.must(PutKey(api_key("local")), by="n3", actor="operator:local-user")
    keys = cluster.state.keys
    made, brought, local = (keys[api_key(name).key_id] for name in ("made", "brought", "local"))
    assert (made.node, made.via, made.by) == ("", "n2", "12345678")
    assert (brought.node, brought.via, brought.by) == ("n4", "n3", "")
    assert (local.via, local.by) == ("n3", "")
    assert len(made.label) == limits.KEY_LABEL_MAX_CHARS


def test_what_came_through_a_node_is_what_whoever_held_it_could_have_made() -> None:
    cluster = cluster_of()
    own = api_key("key2").key_id
    cluster.must(PutKey(api_key("direct")), by="n2", actor="operator:00000000")
    cluster.must(PutKey(api_key("elsewhere")), by="n1", actor=f"operator:{own}")
    second = f"operator:{api_key('elsewhere').key_id}"
    cluster.must(PutKey(api_key("second", USER)), by="n3", actor=second)
    cluster.must(newcomer("n4", api_key("brought")), by="n2", actor="window")
    cluster.must(PutKey(api_key("honest")), by="n1", actor=f"operator:{api_key().key_id}")
    expected = ids("key2", "direct", "elsewhere", "second")
    assert came_through(cluster.state, "n2") == expected
    cluster.must(Remove("n4"))
    assert came_through(cluster.state, "n2") == tuple(sorted((*expected, *ids("brought"))))
    cluster.must(RevokeKey(own))
    assert api_key("second").key_id in came_through(cluster.state, "n2"), "also by a revoked one"


def test_admin_keys_end_with_a_removed_member_and_user_keys_when_they_are_named() -> None:
    cluster = cluster_of()
    for name, scope in (("a", Scope.ADMIN), ("b", Scope.ADMIN), ("u", USER), ("v", USER)):
        cluster.must(PutKey(api_key(name, scope)), by="n2")
    found = endings(cluster.state, ("n2",), ids("b"), ids("u"))
    body = Remove("n2", revoke_keys=True, keep_keys=ids("b"), end_keys=ids("u"))
    cluster.must(body, level=LEVEL)
    assert [valid(cluster, name) for name in ("a", "b", "u", "v", "key2")] == [
        *(False, True, False, True, False)
    ]
    assert (found.ends, found.stays) == (ids("a", "key2", "u"), ids("b", "v"))
    assert ids("a")[0] in cluster.state.events[-1].text


def test_a_leavers_keys_stay() -> None:
    cluster = cluster_of()
    cluster.must(PutKey(api_key("a")), by="n2")
    cluster.must(Remove("n2"), by="n2", actor="node:n2")
    assert valid(cluster, "a")
    assert valid(cluster, "key2")
    assert "n2" not in cluster.state.removed
    cluster.must(newcomer("n2"))


def test_the_last_admin_key_ends_only_when_it_is_named() -> None:
    cluster = cluster_of(2)
    first, second = ids("secret")[0], ids("key2")[0]
    cluster.must(RevokeKey(second))
    refused = cluster.propose(RevokeKey(first))
    assert (refused.code, first in refused.message) == ("last_admin_key", True)
    asked = Remove("n1", revoke_keys=True)
    assert cluster.propose(asked, by="n2").code == "keys"
    kept = replace(asked, keep_keys=(first,))
    assert endings(cluster.state, ("n1",), (first,)).problem == ""
    assert endings(cluster.state, ("n1",), (first,), (first,)).problem
    assert endings(cluster.state, ("n1",), ("nothere1",)).problem
    assert cluster.propose(kept, by="n2", level=LEVEL).accepted
    assert valid(cluster, "secret")
    cluster.must(RevokeKey(first, force=True), by="n2", level=LEVEL)
    assert not valid(cluster, "secret")


def test_a_removed_identity_never_comes_in_again() -> None:
    cluster = cluster_of()
    cluster.must(Remove("n2", revoke_keys=True))
    for body in (newcomer("n2"), Admit(member("n2", feature_max=LEVEL), (), 1)):
        refused = cluster.propose(body)
        assert refused.code == "removed"
        assert "aivailable up --new-identity" in refused.message
    assert cluster.propose(Adopt("e" * 26, "lab", ("n2", "n9"), 1)).code == "removed"
    assert decode_state(encode_state(cluster.state)) == cluster.state


def test_removed_nodes_are_bounded() -> None:
    removed: tuple[str, ...] = ()
    for number in range(REMOVED_MAX + 2):
        removed = with_removed(removed, (f"n{number}",))
    assert (len(removed), removed[0]) == (REMOVED_MAX, "n2")
    assert with_removed(("a", "b"), ("a",)) == ("b", "a")


def test_a_join_brings_one_key() -> None:
    cluster = cluster_of()
    assert cluster.propose(newcomer("n4", api_key("a"), api_key("b"))).code == "too_many_keys"
    for number in range(rules.BROUGHT_PER_MEMBER_MAX):
        cluster.must(newcomer("n4", api_key(f"k{number}")))
    assert cluster.propose(newcomer("n4", api_key("more"))).code == "full"
    cluster.must(newcomer("n4", api_key("k0")))


def test_joins_with_many_keys_do_not_fill_the_keys() -> None:
    """22 joins with 45 key hashes each."""
    cluster = cluster_of()
    for join in range(22):
        hashes = [api_key(f"{join} {number}") for number in range(45)]
        assert not cluster.propose(newcomer(f"x{join}", *hashes)).accepted
        cluster.must(newcomer(f"x{join}", hashes[0]))
    assert len(cluster.state.keys) == 3 + 22
    cluster.must(PutKey(api_key("one more")))


def test_one_node_does_not_use_up_the_keys_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEYS_PER_NODE_MAX", 2)
    monkeypatch.setattr(limits, "KEYS_MAX", 9)
    monkeypatch.setattr(limits, "KEYS_RESERVED", 3)
    cluster = cluster_of(2)
    for number in range(2):
        cluster.must(PutKey(api_key(f"a{number}", USER)), by="n2")
    assert cluster.propose(PutKey(api_key("a2", USER)), by="n2").code == "full"
    cluster.must(PutKey(api_key("b0", USER)))
    cluster.must(PutKey(api_key("b1", USER)))
    assert cluster.propose(PutKey(api_key("b2", USER))).code == "full", "the reserve"
    cluster.must(newcomer("n3", api_key("n3")))
    cluster.must(RevokeKey(ids("a0")[0]))
    cluster.must(RevokeKey(ids("a1")[0]))
    cluster.must(PutKey(api_key("a2", USER)), by="n2")


def test_the_oldest_revoked_keys_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "REVOKED_KEPT_MAX", 2)
    cluster = cluster_of()
    for number in range(4):
        cluster.must(PutKey(api_key(f"k{number}", USER)))
        cluster.must(RevokeKey(ids(f"k{number}")[0]))
    revoked = {key.label for key in cluster.state.keys.values() if key.revoked}
    assert revoked == {"k2", "k3"}


def test_a_seat_lapses_with_the_key_that_it_brought() -> None:
    cluster = cluster_of()
    cluster.must(newcomer("ghost", api_key("ghost")))
    cluster.must(Lapse("ghost"), level=LEVEL)
    assert not valid(cluster, "ghost")
    assert api_key("ghost").key_id not in cluster.state.keys
    assert cluster.propose(Lapse("n1"), level=LEVEL).code == "not_idle", "a voter"
    assert cluster.propose(Lapse("ghost"), level=LEVEL).code == "not_member"
    cluster.must(newcomer("ghost", api_key("ghost")))
    cluster.must(RevokeKey(ids("secret")[0]))
    cluster.must(RevokeKey(ids("key2")[0]))
    cluster.must(RevokeKey(ids("key3")[0]))
    assert cluster.propose(Lapse("ghost"), level=LEVEL).code == "keys"


def test_what_a_member_says_of_itself_is_bounded() -> None:
    cluster = cluster_of()
    for wrong in (
        {"link_port": -1},
        {"api_port": 70_000},
        {"version": "9" * 65},
        {"addresses": ("1" * 65,)},
        {"addresses": ("::1",) * 17},
    ):
        body = Admit(member("n9", feature_max=LEVEL, **wrong), (), None)
        assert cluster.propose(body).code == "invalid_member"


def test_below_the_level_old_logs_mean_what_they_meant() -> None:
    """The rules of the first release, through bytes: many keys, revocation of the last one, and
    return after a removal."""
    cluster = founded(2)
    cluster.must(Admit(member("n3"), tuple(api_key(f"k{n}") for n in range(9)), None))
    cluster.must(PutKey(api_key("made")), by="n2")
    cluster.must(Remove("n3", revoke_keys=True))
    cluster.must(Admit(member("n3"), (), None))
    for key in list(cluster.state.keys):
        cluster.must(RevokeKey(key))
    assert all(key.revoked and not (key.via or key.by) for key in cluster.state.keys.values())
    assert cluster.state.removed == ()
    replayed = State()
    for command in cluster.log:
        assert command.level == 1
        replayed, _ = apply_bytes(replayed, encode_command(command))
    assert state_digest(replayed) == state_digest(cluster.state)


def test_recovery_gives_up_who_is_not_expected_for_good() -> None:
    cluster = cluster_of()
    cluster.must(PutKey(api_key("made")), by="n3")
    before = cluster.state
    result = recovered(before, "n1", "n" * 26, actor="operator:k", at_ms=1, expected=("n2",))
    assert (result.gone, result.awaited) == (("host-n2", "host-n3"), ("host-n2",))
    assert result.ended_keys == ids("made", "key3")
    assert result.state.removed == ("n3",)
    assert result.state.tombstones[-1].awaited == ("n2",)
    with pytest.raises(ValueError, match="is not a member"):
        recovered(before, "n1", "n" * 26, actor="a", at_ms=1, expected=("n9",))
    alone = recovered(
        before, "n1", "n" * 26, actor="a", at_ms=1, expected=(), keep_keys=ids("made")
    )
    assert alone.ended_keys == ids("key2", "key3")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["n1", "n2", "n3"]),
            st.sampled_from(["secret", "key2", "key3", "0", "1", "2"]),
            st.sampled_from(list(Scope)),
        ),
        max_size=6,
    ),
    st.sampled_from(["n1", "n2", "n3"]),
)
def test_a_removal_leaves_an_admin_key_and_none_that_came_through(
    made: list[tuple[str, str, Scope]], node: str
) -> None:
    cluster = cluster_of()
    for number, (via, maker, scope) in enumerate(made):
        actor = f"operator:{api_key(maker).key_id}"
        cluster.propose(PutKey(api_key(str(number), scope)), by=via, actor=actor)
    before = came_through(cluster.state, node)
    other = "n1" if node != "n1" else "n2"
    outcome = cluster.propose(Remove(node, revoke_keys=True), by=other)
    keys = cluster.state.keys
    assert any(not key.revoked and key.scope is Scope.ADMIN for key in keys.values())
    if outcome.accepted:
        assert all(keys[key].revoked or keys[key].scope is USER for key in before)
        assert node in cluster.state.removed
