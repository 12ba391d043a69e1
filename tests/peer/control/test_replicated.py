"""The machine that Raft drives: total, restorable, and heard by who waits for it."""

from __future__ import annotations

import asyncio

import pytest
from fixtures.peer_ports import turns
from fixtures.states import equipped
from fixtures.virtual_time import run
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.ids import CommandId
from aivailable.core.state.codec import encode_command
from aivailable.core.state.state import State
from aivailable.errors import SchemaError
from aivailable.peer.control.replicated import ReplicatedState


def replayed() -> ReplicatedState:
    machine = ReplicatedState(lambda before, after: None)
    for command in equipped().log:
        machine.apply(encode_command(command))
    return machine


@given(st.binary(max_size=64))
def test_no_entry_raises_and_every_entry_counts(junk: bytes) -> None:
    machine = ReplicatedState(lambda before, after: None)
    machine.apply(junk)
    assert machine.state.version == 1


def test_a_snapshot_restores_the_same_state_and_tells() -> None:
    machine = replayed()
    told: list[tuple[State, State]] = []
    other = ReplicatedState(lambda before, after: told.append((before, after)))
    other.restore(machine.snapshot())
    assert other.state == machine.state
    assert told == [(State(), machine.state)]
    with pytest.raises(SchemaError):
        other.restore(b"no state")
    assert other.state == machine.state


def test_outcomes_are_known_by_id() -> None:
    machine = replayed()
    for command in equipped().log:
        outcome = machine.outcome(command)
        assert outcome is not None
        assert outcome.accepted
        assert machine.applied(command.command_id)
    assert not machine.applied(CommandId("n1", 999))
    assert not machine.applied(CommandId("stranger", 1))


def test_waiting_for_a_version_ends_with_it() -> None:
    async def scenario() -> None:
        machine = ReplicatedState(lambda before, after: None)
        waiting = asyncio.ensure_future(machine.changed(1))
        machine.apply(b"one")
        await turns()
        assert not waiting.done()
        machine.apply(b"two")
        assert await waiting == 2
        assert await machine.changed(0) == 2

    run(scenario())
