"""What the first version wrote is read for ever, and written again in the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest
from fixtures import write_v1
from fixtures.written import V1, table

from aivailable.core.state.codec import decode_command, encode_command
from aivailable.core.state.commands import KINDS
from aivailable.core.state.machine import apply_bytes
from aivailable.core.state.state import State, decode_state, encode_state
from aivailable.peer.control.member_list import Told
from aivailable.peer.joining.cluster_file import ClusterFile
from aivailable.peer.membership.carryover import Carryover
from aivailable.raft import codec
from aivailable.raft.journal import Journal
from aivailable.raft.library import REGULAR
from aivailable.raft.snapshot import seal, unseal
from aivailable.raft.store import Durability, MemoryStore
from aivailable.wire.schema import pack, unpack

COMMANDS, STATES, MESSAGES, RAFT = map(table, ("commands", "states", "messages", "raft"))


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str) -> None:
    assert encode_command(decode_command(COMMANDS[name])) == COMMANDS[name]


def test_every_kind_of_the_first_version_is_there() -> None:
    assert {name.split(".")[0] for name in COMMANDS} - {"log"} <= set(KINDS)
    assert len(RAFT) == 14


@pytest.mark.parametrize("name", [name for name in STATES if name != "told"])
def test_states(name: str) -> None:
    assert encode_state(decode_state(STATES[name])) == STATES[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str) -> None:
    registry = write_v1.REGISTRIES[name.split(".")[0]]
    message = registry.decode(MESSAGES[name])
    assert message is not None
    then, now = (msgpack.unpackb(data) for data in (MESSAGES[name], registry.encode(message)))
    assert within(then, now), "what the first version said is said as it did"


def within(then: Any, now: Any) -> bool:
    """Equal, but that maps may have fields that came later: a message between two peers, unlike
    the log, may tell more than the other side asks for."""
    if isinstance(then, dict):
        return isinstance(now, dict) and all(
            key in now and within(value, now[key]) for key, value in then.items()
        )
    if isinstance(then, list):
        return (
            isinstance(now, list)
            and len(then) == len(now)
            and all(within(old, new) for old, new in zip(then, now, strict=True))
        )
    return type(then) is type(now) and bool(then == now)


def test_what_is_within_what() -> None:
    assert within({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}], "d": 3})
    for now in ({"a": [{"b": 2}]}, {"a": []}, {"a": [{"b": 1.0}]}, {"a": [{"c": 1}]}, []):
        assert not within({"a": [{"b": 1}]}, now)


@pytest.mark.parametrize("name", RAFT)
def test_raft_messages(name: str) -> None:
    term, message, incarnation = codec.decode(RAFT[name])
    assert codec.encode(term, message, incarnation) == RAFT[name]


def test_the_files_of_a_home() -> None:
    for name, kind in (("cluster", ClusterFile), ("belongings", Carryover)):
        data = (V1 / "home" / name).read_bytes()
        assert pack(unpack(kind, data)) == data
    assert pack(unpack(Told, STATES["told"])) == STATES["told"]


def test_journal_and_snapshot_lead_to_the_state_that_was_there() -> None:
    sealed = (V1 / "home" / "raft" / "snapshot").read_bytes()
    snapshot = unseal(sealed)
    assert seal(snapshot) == sealed
    state = decode_state(snapshot.state)
    assert encode_state(state) == snapshot.state
    journal = Journal(
        (V1 / "home" / "raft" / "journal").read_bytes(), Durability(MemoryStore()), voters=()
    )
    log = [command[1:] for command, _, _ in journal.log if command[:1] == REGULAR]
    for payload in log[-3:]:
        state, outcome = apply_bytes(state, payload)
        assert outcome.accepted
    replayed = State()
    for payload in log:
        replayed, _ = apply_bytes(replayed, payload)
    assert encode_state(state) == encode_state(replayed) == STATES["used"]


def test_the_script_that_wrote_it_still_runs(tmp_path: Path) -> None:
    write_v1.write(tmp_path)
    names = [path.relative_to(V1) for path in V1.rglob("*") if path.is_file()]
    assert all((tmp_path / name).stat().st_size > 0 for name in names)
