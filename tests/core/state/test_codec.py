"""Commands as bytes: both ways, with every refusal named."""

from __future__ import annotations

import msgpack
import pytest
from fixtures.states import Cluster, found

from aivailable.core.ids import CommandId
from aivailable.core.state.codec import COMMAND_FORMAT, decode_command, encode_command
from aivailable.core.state.commands import KINDS, Command, SetWindow
from aivailable.core.state.records import Control
from aivailable.errors import SchemaError
from aivailable.wire.limits import COMMAND_MAX_BYTES

COMMAND = Command(CommandId("n1", 3), SetWindow(9), "operator:k", "why", 12, Control("n1", 4))


def entry(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "format": COMMAND_FORMAT,
        "kind": "set_window",
        "body": {"duration_s": 9},
        "id": ["n1", 3],
        "actor": "operator:k",
        "reason": "why",
        "at": 12,
        "control": {"node": "n1", "term": 4},
    }
    packed = msgpack.packb(list({**fields, **changes}.values()))
    assert isinstance(packed, bytes)
    return packed


def test_the_layout_is_pinned() -> None:
    """Bytes in a log outlive a release: this entry must decode for ever."""
    assert encode_command(COMMAND) == entry()
    assert decode_command(entry()) == COMMAND


def test_a_newer_writer_may_add_fields_at_the_end_and_in_bodies() -> None:
    later = entry(body={"duration_s": 9, "later": 1}, level=1, extra=["new"])
    assert decode_command(later) == COMMAND


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"format": 2}, "format"),
        ({"format": None}, "format"),
        ({"kind": "no_such"}, "no_such"),
        ({"kind": 7}, "7"),
        ({"kind": ["set_window"]}, "kind"),
        ({"body": {}}, "duration_s"),
        ({"body": {"duration_s": "9"}}, "duration_s"),
        ({"body": {"duration_s": True}}, "duration_s"),
        ({"body": {"duration_s": 2**63}}, "duration_s"),
        ({"body": None}, "set_window"),
        ({"id": ["n1", 0]}, "command_id"),
        ({"id": ["n1", True]}, "command_id"),
        ({"id": ["n1", 2**63]}, "command_id"),
        ({"id": [1, 1]}, "command_id"),
        ({"id": "n1"}, "command_id"),
        ({"actor": 3}, "actor"),
        ({"reason": b"x"}, "reason"),
        ({"control": {"node": "n1"}}, "term"),
        ({"level": 0}, "level"),
        ({"level": "2"}, "level"),
        ({"level": True}, "level"),
    ],
)
def test_what_is_no_command_is_named(changes: dict[str, object], names: str) -> None:
    with pytest.raises(SchemaError, match=names):
        decode_command(entry(**changes))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\xc0", b"\x90", b"\x81\x01\x02", b"\xdd\xff\xff\xff\xff"]
)
def test_junk_is_refused(data: bytes) -> None:
    with pytest.raises(SchemaError):
        decode_command(data)


@pytest.mark.parametrize("at", [2**63, -(2**63), True, None, "now"])
def test_a_time_for_people_never_breaks_a_command(at: object) -> None:
    decoded = decode_command(entry(at=at))
    assert decoded.proposed_at_ms == 0


def test_deep_nesting_is_refused_not_recursed() -> None:
    deep: list[object] = []
    for _ in range(400):
        deep = [deep]
    with pytest.raises(SchemaError):
        decode_command(entry(body=deep))
    with pytest.raises(SchemaError):
        decode_command(b"\x91" * 30_000 + b"\xc0")


def test_sizes_are_limited_both_ways() -> None:
    big = Cluster().command(SetWindow(1), actor="x" * COMMAND_MAX_BYTES)
    with pytest.raises(SchemaError, match="over"):
        encode_command(big)
    with pytest.raises(SchemaError, match="over"):
        decode_command(b"\0" * (COMMAND_MAX_BYTES + 1))


def test_every_kind_has_one_name_and_founding_fits() -> None:
    assert len(frozenset(KINDS.values())) == len(KINDS)
    command = Cluster().command(found())
    assert decode_command(encode_command(command)) == command
