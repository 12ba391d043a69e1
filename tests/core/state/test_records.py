"""Names of things and the small questions a state answers."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from fixtures.states import api_key, deployment, equipped, founded

from aivailable.core import ids
from aivailable.core.state.commands import PutDeployment, RevokeKey, SetRole
from aivailable.core.state.records import Role
from aivailable.core.state.state import (
    STATE_FORMAT,
    State,
    decode_state,
    encode_state,
    failure_key,
    state_digest,
)
from aivailable.errors import SchemaError
from aivailable.wire.schema import pack


def test_ids_have_their_documented_shape() -> None:
    node = ids.node_id(b"key")
    assert len(node) == ids.NODE_ID_CHARS
    assert node == node.lower()
    assert ids.short(node) == node[:8]
    assert len(ids.cluster_id(b"\0" * 16)) == 26
    assert ids.replica_id("a/b:c", 2, 7) == "a/b:c#2.7"
    hashed = ids.key_hash("secret")
    assert hashed == hashlib.sha256(b"secret").hexdigest()
    assert ids.key_id(hashed) == hashed[:8]


@pytest.mark.parametrize("count", [0, 15, 17])
def test_a_cluster_id_takes_sixteen_bytes(count: int) -> None:
    with pytest.raises(ValueError, match="16"):
        ids.cluster_id(b"\0" * count)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("smollm2", True),
        ("hf.co/org/model:Q4_K_M", True),
        ("a@b-c.d", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("-a", False),
        ("a b", False),
        ("a\n", False),
        ("é", False),
    ],
)
def test_one_grammar_for_names(name: str, valid: bool) -> None:
    assert ids.valid_deployment_name(name) is valid


def test_a_need_is_the_sum_of_its_parts() -> None:
    assert deployment().need_bytes == 100


def test_names_win_over_aliases() -> None:
    cluster = equipped(1)
    cluster.must(PutDeployment(deployment("first", aliases=("tiny", "x"))))
    named = cluster.state.find_deployment("tiny")
    assert named is not None
    assert named.name == "tiny"
    aliased = cluster.state.find_deployment("x")
    assert aliased is not None
    assert aliased.name == "first"


def test_keys_are_found_by_their_whole_hash_while_valid() -> None:
    cluster = founded()
    key = replace(api_key(), node="n1")
    assert cluster.state.find_key(key.hashed) == key
    assert cluster.state.find_key(key.hashed[:8] + "0" * 56) is None
    assert cluster.state.find_key("") is None
    cluster.must(RevokeKey(key.key_id))
    assert cluster.state.find_key(key.hashed) is None


def test_questions_about_places() -> None:
    cluster = equipped(2)
    first, second = cluster.place(node="n2"), cluster.place(node="n1")
    state = cluster.state
    assert [replica.replica for replica in state.replicas_on("n2")] == [first]
    assert [replica.replica for replica in state.replicas_of("tiny")] == [first, second]
    assert state.device("n1", "d0") is not None
    assert state.device("n1", "d9") is None
    assert state.device("nx", "d0") is None
    assert state.claimed_bytes("n2", "d0") == 100


def test_voters_are_sorted_and_pristine_ends() -> None:
    cluster = founded(2)
    assert cluster.state.voters() == ("n1",)
    cluster.must(SetRole("n2", Role.VOTER))
    assert cluster.state.voters() == ("n1", "n2")
    assert State().pristine
    assert founded().state.pristine
    assert not equipped(1).state.pristine


def test_a_state_survives_its_bytes_and_only_its_own() -> None:
    state = equipped(3).state
    assert decode_state(encode_state(state)) == state
    assert state_digest(state) == state_digest(decode_state(encode_state(state)))
    assert failure_key("tiny", "n1") == "tiny@n1"
    with pytest.raises(SchemaError):
        decode_state(b"junk")


def test_a_state_of_a_newer_format_is_refused() -> None:
    with pytest.raises(SchemaError, match="format"):
        decode_state(pack(State(format=STATE_FORMAT + 1)))
