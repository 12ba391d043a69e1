"""Feature levels: what needs one, who holds the cluster back, and what is refused unread."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack
import pytest
from fixtures.states import Cluster, founded, member

from aivailable.core.cluster.liveness import Liveness
from aivailable.core.planning.planner import plan
from aivailable.core.state import codec, invariants, levels, machine, state
from aivailable.core.state.codec import COMMAND_FORMAT, decode_command, encode_command
from aivailable.core.state.commands import (
    Admit,
    RaiseFeatureLevel,
    Remove,
    SetDraining,
    UpdateMember,
)
from aivailable.core.state.invariants import violations
from aivailable.core.state.levels import LEVEL, needed, waited_for, why_not_yet
from aivailable.core.state.machine import CODE_TOO_OLD, apply, apply_bytes
from aivailable.core.state.state import State, decode_state, encode_state
from aivailable.errors import CodeTooOld, SchemaError
from aivailable.wire.schema import from_plain, pack, since, to_plain

NEXT = LEVEL + 1


class Colour(enum.StrEnum):
    RED = "red"
    LATE = "late"


@dataclass(frozen=True, slots=True)
class Part:
    colour: Colour = Colour.RED
    later: tuple[str, ...] = field(default=(), metadata=since(3))


@dataclass(frozen=True, slots=True)
class Whole:
    parts: tuple[Part, ...] = ()
    by_name: Any = field(default_factory=dict)
    later: str = field(default="", metadata=since(2))
    list_: Any = field(default_factory=dict, metadata=since(4))


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is one level further on: SetDraining came with it, and so did Colour.LATE."""
    for module in (machine, state, codec, invariants):
        monkeypatch.setattr(module, "LEVEL", NEXT)
    monkeypatch.setattr(levels, "KIND_LEVELS", {SetDraining: NEXT})
    monkeypatch.setattr(levels, "VALUE_LEVELS", {(Colour, "late"): NEXT})


def entry(kind: str, body: object, *, level: int, seq: int = 900) -> bytes:
    """A log entry as another version may have written it."""
    plain = [COMMAND_FORMAT, kind, body, ["n1", seq], "operator:k", "why", 1, None, level]
    packed = msgpack.packb(plain)
    assert isinstance(packed, bytes)
    return packed


def update(node: str, level: int) -> UpdateMember:
    return UpdateMember(node, node, (), 1, 2, "9", 1, 1, level, "i")


def at_next(members: int = 2) -> Cluster:
    """Every member says that it can do more, and the cluster works there."""
    cluster = founded(members)
    for node in sorted(cluster.state.members):
        cluster.must(update(node, NEXT), by=node)
    cluster.must(RaiseFeatureLevel(NEXT))
    return cluster


def test_later_fields_are_no_bytes_until_they_are_used() -> None:
    assert to_plain(Whole((Part(),))) == {"parts": [{"colour": "red"}], "by_name": {}}
    used = Whole((Part(later=("a",)),), later="x")
    assert from_plain(Whole, to_plain(used)) == used
    assert from_plain(Whole, to_plain(used), level=2) == replace(used, parts=(Part(),))
    assert from_plain(Whole, to_plain(used), level=1) == Whole((Part(),))
    # What an older version cannot read does not matter to it.
    assert from_plain(Whole, {"later": 7}, level=1) == Whole()
    with pytest.raises(SchemaError, match="later"):
        from_plain(Whole, {"later": 7}, level=2)


def test_a_value_needs_the_level_of_its_latest_part(newer: None) -> None:
    assert needed(Whole((Part(),), {"a": Part()})) == 1
    assert needed(Whole(later="x")) == 2
    assert needed(Whole((Part(),), {"a": Part(later=("b",))})) == 3
    assert needed(Whole(list_={"a": 1})) == 4
    assert needed(Part(Colour.LATE)) == NEXT
    assert needed("late") == 1, "text is no value of the enum"
    assert needed(SetDraining("n1", True)) == NEXT


def test_the_first_release_needs_no_level() -> None:
    """Whoever adds a kind, a field or a value declares it; what the first one had declares none."""
    cluster = founded(2)
    assert all(needed(command.body) == 1 for command in cluster.log)
    assert all(len(msgpack.unpackb(encode_command(command))) == 8 for command in cluster.log)


def test_a_command_states_what_it_needs(newer: None) -> None:
    command = founded().command(SetDraining("n1", True))
    assert decode_command(encode_command(command)) == replace(command, level=NEXT)


def test_what_needs_more_is_refused_unread_and_remembered() -> None:
    before = founded(2).state
    payload = entry("no_such_kind", {"what": ["ever"]}, level=NEXT)
    after, outcome = apply_bytes(before, payload)
    assert (outcome.accepted, outcome.code) == (False, "feature_level")
    assert "host-n1" in outcome.message
    assert replace(after, version=before.version, outcomes=before.outcomes) == before
    assert violations(after) == ()
    again, repeated = apply_bytes(after, payload)
    assert repeated == outcome
    assert again == replace(after, version=after.version + 1)


def test_code_that_knows_it_refuses_it_in_the_same_way(newer: None) -> None:
    cluster = founded(2)
    before = cluster.state
    command = cluster.command(SetDraining("n2", True))
    known, outcome = apply_bytes(before, encode_command(command))
    unread = entry("unheard_of", None, level=NEXT, seq=command.command_id.seq)
    assert apply_bytes(before, unread) == (known, outcome)
    assert apply(before, replace(command, level=NEXT)) == (known, outcome)
    cluster = at_next()
    assert cluster.propose(SetDraining("n2", True), level=NEXT).accepted


def test_a_level_that_is_too_low_for_the_kind_is_no_command(newer: None) -> None:
    body = {"node": "n1", "draining": True}
    after, outcome = apply_bytes(founded().state, entry("set_draining", body, level=1))
    assert outcome.code == "malformed"
    assert not after.members["n1"].draining


@pytest.mark.parametrize("level", [LEVEL, NEXT])
def test_code_that_cannot_go_on_stops_where_it_is(level: int) -> None:
    """An unknown kind at an allowed level, and a level that is beyond this code."""
    before = replace(founded().state, feature_level=level)
    after, outcome = apply_bytes(before, entry("no_such_kind", {}, level=level))
    assert after is before
    assert outcome.code == CODE_TOO_OLD
    assert "install the version" in outcome.message


def test_code_that_is_older_than_a_raise_stops_there() -> None:
    cluster = founded(2)
    for node in ("n1", "n2"):
        cluster.must(update(node, NEXT), by=node)
    before = cluster.state
    command = cluster.command(RaiseFeatureLevel(NEXT))
    after, outcome = apply_bytes(before, encode_command(command))
    assert after is before
    assert outcome.code == CODE_TOO_OLD
    assert f"works at {NEXT}" in outcome.message


def test_who_is_off_or_does_not_vote_counts_with_its_last_word(newer: None) -> None:
    cluster = founded(3)
    alone = Liveness("n1", 0.0, ("n1",), {}, 0.0)
    for node in ("n1", "n2"):
        cluster.must(update(node, NEXT), by=node)
    off = replace(cluster.state.members["n3"], away=True, down=True)
    cluster.state = replace(cluster.state, members={**cluster.state.members, "n3": off})
    assert RaiseFeatureLevel(NEXT) not in plan(cluster.state, alone)
    refused = cluster.propose(RaiseFeatureLevel(NEXT))
    assert refused.code == "too_old"
    assert "host-n3 (unknown version, off)" in refused.message
    assert [one.node for one in waited_for(cluster.state.members)] == ["n3"]
    cluster.must(Remove("n3"))
    assert RaiseFeatureLevel(NEXT) in plan(cluster.state, alone)
    assert waited_for(cluster.state.members) == ()


def test_older_code_neither_comes_in_nor_comes_back(newer: None) -> None:
    cluster = at_next()
    late = Admit(member("n9", feature_max=LEVEL), (), window_serial=1)
    assert cluster.propose(late).code == "too_old"
    known = Admit(member("n2", feature_max=LEVEL), (), window_serial=None)
    assert cluster.propose(known).code == "too_old"
    assert cluster.propose(update("n2", LEVEL), by="n2").code == "too_old"
    cluster.must(Admit(member("n9", feature_max=NEXT), (), window_serial=1))
    cluster.must(RaiseFeatureLevel(LEVEL))
    assert cluster.state.feature_level == NEXT, "it never goes down"


def test_before_the_level_rises_a_member_may_go_back(newer: None) -> None:
    cluster = founded(2)
    cluster.must(update("n2", NEXT), by="n2")
    cluster.must(update("n2", LEVEL), by="n2")
    cluster.must(update("n1", NEXT))
    assert cluster.propose(RaiseFeatureLevel(NEXT)).code == "too_old"


def test_a_state_of_a_higher_level_is_not_even_looked_at() -> None:
    newer_state = replace(founded().state, feature_level=NEXT)
    with pytest.raises(CodeTooOld, match="install the version"):
        decode_state(encode_state(newer_state))
    with pytest.raises(CodeTooOld):
        decode_state(pack({"feature_level": NEXT, "members": "in another shape"}))
    with pytest.raises(SchemaError):
        decode_state(pack({"feature_level": "9"}))


def test_a_state_that_uses_more_than_its_level_is_unsound(
    newer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = founded(2).state
    assert violations(sound) == ()
    raised = replace(sound, feature_level=NEXT)
    assert any("cannot do feature level" in text for text in violations(raised))
    monkeypatch.setattr(invariants, "needed", lambda state: NEXT)
    assert any("uses feature level" in text for text in violations(sound))


def test_the_reason_names_a_few_and_what_to_do() -> None:
    members = {f"n{n}": member(f"n{n}", version="0.1") for n in range(9)}
    text = why_not_yet(members, NEXT, LEVEL)
    assert "host-n0 (0.1), " in text
    assert "host-n5" not in text
    assert "and 4 more" in text
    assert "`aivailable remove NODE`" in text
    assert "try again" in why_not_yet({"n1": member(feature_max=NEXT)}, NEXT, LEVEL)
    assert waited_for({}) == ()
    assert State().feature_level == 1
