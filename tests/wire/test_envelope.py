"""Envelopes: the quick reader, the careful one behind it, and one verdict of the two."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest

from aivailable.errors import SchemaError
from aivailable.wire.envelope import Registry
from aivailable.wire.generation import Cancel, Failed, Generate, Tokens
from aivailable.wire.peer import PEER, FileChunk, Heartbeat
from aivailable.wire.schema import INT_MAX, Shape, shape, to_json
from aivailable.wire.worker import FROM_WORKER, Step

TOKENS = Tokens("r", (1, 2), " a")


def envelope(kind: Any, fields: Any) -> bytes:
    packed: bytes = msgpack.packb([kind, fields])
    return packed


def test_kinds_may_follow_each_other_in_any_order() -> None:
    told = [TOKENS, TOKENS, Cancel("r"), Generate("r", "m"), TOKENS, FileChunk(1, b"\xcf\xff", 3)]
    assert [PEER.decode(PEER.encode(message)) for message in told] == told


def test_messages_that_come_with_every_token_need_no_second_look() -> None:
    assert shape(Tokens) == shape(Step) == Shape()
    assert not shape(Generate).direct


def test_a_kind_of_a_newer_version_is_none() -> None:
    assert PEER.decode(envelope("unheard_of", {"x": 1})) is None
    with pytest.raises(SchemaError, match="not msgpack"):
        PEER.decode(envelope("unheard_of", {"x": 1})[:-1])


def test_a_head_in_a_longer_form_than_it_needs_is_read() -> None:
    data = PEER.encode(TOKENS)
    assert PEER.decode(b"\xdc\x00\x02\xd9\x06tokens" + data[8:]) == TOKENS


@pytest.mark.parametrize(
    "data", [b"", b"\x92", b"\xc0", b"\x93", envelope(1, {}), envelope("tokens", {})[:-1]]
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(SchemaError):
        PEER.decode(data)


@pytest.mark.parametrize(
    ("registry", "kind", "fields", "path"),
    [
        (PEER, "tokens", {"request_id": "r", "ids": [1, 2**63], "text": ""}, r"tokens\.ids\[1\]"),
        (PEER, "tokens", {"request_id": "r", "ids": [-(2**63)], "text": ""}, r"tokens\.ids\[0\]"),
        (PEER, "tokens", {"request_id": "r", "ids": [True], "text": ""}, r"tokens\.ids\[0\]"),
        (PEER, "tokens", {"request_id": "r", "ids": []}, r"tokens\.text: missing"),
        (PEER, "raft", {"data": "aGk="}, r"raft\.data"),
        (PEER, "call", {"call_id": 2**63, "method": "m"}, r"call\.call_id: integer out of range"),
        (PEER, "call", {"call_id": 1, "method": "m", "arguments": {"k": 1}}, r"call\.arguments\.k"),
        (PEER, "generate", {"request_id": "r", "deployment": "m", "stop": "x"}, r"generate\.stop"),
        (FROM_WORKER, "step", {"tokens": [{"request_id": 7}]}, r"step\.tokens\[0\]\.request_id"),
        (FROM_WORKER, "step", {"waiting": 1.0}, r"step\.waiting"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(registry: Registry, kind: str, fields: Any, path: str) -> None:
    with pytest.raises(SchemaError, match=path):
        registry.decode(envelope(kind, fields))


def test_the_largest_numbers_are_read() -> None:
    edge = Heartbeat("n", "i", INT_MAX, -INT_MAX, term=2**62)
    assert PEER.decode(PEER.encode(edge)) == edge
    assert PEER.decode(PEER.encode(Failed("r", "c", "m", -INT_MAX))) == Failed(
        "r", "c", "m", -INT_MAX
    )


def test_of_double_keys_the_last_counts() -> None:
    """Also when the first is wrong."""
    good = PEER.encode(Cancel("b"))
    assert good.endswith(b"\x81\xaarequest_id\xa1b")
    double = good[:-14] + b"\x82\xaarequest_id\x07" + good[-13:]
    assert PEER.decode(double) == Cancel("b")


@pytest.mark.parametrize(
    "tail",
    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000],
)
def test_claimed_lengths_and_depths_cost_nothing(tail: bytes) -> None:
    for head in (b"\x92\xa6tokens", b"\x92\xa6tokens\x81\xa3ids", b"\x92\xa8generate\x81\xa5tools"):
        with pytest.raises(SchemaError):
            PEER.decode(head + tail)


def test_only_messages_of_the_registry_are_encoded() -> None:
    with pytest.raises(TypeError, match="Step"):
        PEER.encode(Step())
    with pytest.raises(TypeError):
        PEER.encode(Tokens("r", (1,), object()))  # type: ignore[arg-type]


def test_json_is_what_browsers_read() -> None:
    shown = {"b": TOKENS.ids, "a": float("nan"), "text": "é\U0001f600", "c": Cancel("r")}
    expected = '{"b":[1,2],"a":null,"text":"é\U0001f600","c":{"request_id":"r"}}'
    assert to_json(shown).decode() == expected
    assert to_json({"half": "\ud83d", "c": Cancel("x")}) == b'{"half":"?","c":{"request_id":"x"}}'
    assert msgspec.json.decode(to_json({"n": 1e16})) == {"n": 1e16}
