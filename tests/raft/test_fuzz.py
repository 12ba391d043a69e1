"""Whatever the bytes: journal, snapshot and messages answer with their one declared error."""

from __future__ import annotations

import contextlib
import zlib
from typing import Any

import msgpack
from hypothesis import example, given
from hypothesis import strategies as st

from aivailable.errors import SchemaError
from aivailable.raft import codec
from aivailable.raft.journal import Journal, _pack
from aivailable.raft.library import NO_OP
from aivailable.raft.snapshot import _MAGIC, unseal
from aivailable.raft.store import Durability, MemoryStore, StoreDamaged, StoreTooNew

NESTED = b"\x91" * 600 + b"\xc0"
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=6)
    | st.sampled_from((*codec.KINDS, "add", "A", NO_OP)),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)
RECORDS = st.lists(
    st.tuples(st.integers(0, 7), VALUES, VALUES, VALUES).map(list)
    | st.tuples(st.integers(0, 7), st.integers(0, 9), st.integers(0, 3), st.binary()).map(list)
    | VALUES,
    max_size=8,
)


def opened(data: bytes) -> None:
    """A journal that opens is a whole one: its entries count up by one."""
    with contextlib.suppress(StoreDamaged, StoreTooNew):
        journal = Journal(data, Durability(MemoryStore()), voters=("A",))
        indices = [entry[1] for entry in journal.log]
        assert indices == list(range(indices[0], indices[-1] + 1) if indices else ())
        assert all(isinstance(node, str) for node, _ in journal.base_voters)


@given(st.binary(max_size=400))
@example(b"")
@example(b"\xa7R" + bytes(8))
@example(b"\xa7R" + b"\xff" * 8)
def test_journal_from_any_bytes(data: bytes) -> None:
    opened(data)


@given(RECORDS)
@example([[3, 5]])
@example([[0, 1, 1, b"x"], [3, 2**63]])
@example([[0, True, 1, b"x"]])
@example([[5, 1, 0, "AB"]])
@example([[5, 1, 0, [["A", -1]]]])
@example([[5, 2, 0, []]])
@example([[1, 4, 4]])
def test_journal_from_sound_records_of_any_shape(records: list[Any]) -> None:
    opened(b"".join(_pack(record) for record in records))


@given(st.binary(max_size=100))
@example(NESTED)
@example(b"\xc7\x03\xff\x00\x00\x00")
def test_journal_from_a_sound_record_of_any_bytes(body: bytes) -> None:
    head = _pack([0])[:2] + len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little")
    opened(head + body)


def unsealed(data: bytes) -> None:
    with contextlib.suppress(StoreDamaged, StoreTooNew):
        snapshot = unseal(data)
        assert snapshot.last[1] > 0


def sealed(body: bytes) -> bytes:
    return _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


@given(st.binary(max_size=100))
@example(b"")
@example(NESTED)
def test_snapshot_from_any_bytes(data: bytes) -> None:
    unsealed(data)
    unsealed(sealed(data))


@given(VALUES)
@example([1, b"", [b"", 1, 1], [b"x", 1, 1], []])
@example([1, b"", [b"x", 2, 1], [b"x", 1, 1], ["A"]])
@example([2])
@example([True, b"", [b"x", 2, 1], [b"x", 1, 1], []])
def test_snapshot_from_any_sound_value(value: Any) -> None:
    unsealed(sealed(msgpack.packb(value)))


def decoded(data: bytes) -> None:
    """What decodes is well-formed: it encodes again, to a message that decodes to the same."""
    try:
        term, message, incarnation = codec.decode(data)
    except SchemaError:
        return
    again = codec.encode(term, message, incarnation)
    assert codec.decode(again) == (term, message, incarnation)


@given(st.binary(max_size=200))
@example(b"")
@example(NESTED)
@example(b"\xc7\x03\xff\x00\x00\x00")
@example(b"\x81\x90\x00")
def test_message_from_any_bytes(data: bytes) -> None:
    decoded(data)


@given(
    VALUES
    | st.sampled_from(list(codec.KINDS)).flatmap(
        lambda kind: st.tuples(
            st.integers(0, 3),
            st.integers(0, 3),
            st.just(kind),
            st.lists(
                st.integers(-1, 9) | st.booleans() | VALUES,
                min_size=len(codec.KINDS[kind]),
                max_size=len(codec.KINDS[kind]),
            ),
        )
    )
)
@example([0, 0, "append_entries", [1, 1, 0, 0, [[b"", 1, 1]]]])
@example([0, 0, ["append_entries"], []])
@example([2**63, 0, "receiving", []])
@example([0, -1, "receiving", []])
@example([0, 0, "snapshot", [1, 1, [b"x", True, 1]]])
def test_message_from_any_value(value: Any) -> None:
    decoded(msgpack.packb(value))
