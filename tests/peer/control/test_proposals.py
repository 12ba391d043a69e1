"""Command numbers never repeat, and a proposal says what became of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fixtures.peer_ports import lone_home
from fixtures.states import founded
from fixtures.virtual_time import run
from hypothesis import given
from hypothesis import strategies as st
from sim.ports import SimClock

from aivailable.core.state.codec import decode_command
from aivailable.core.state.commands import SetWindow
from aivailable.errors import ConfigError, ProposalRejected, ProposalUnknown
from aivailable.peer.control.proposals import (
    REASON_MAX_CHARS,
    SEQUENCE_BLOCK,
    SEQUENCE_FILE,
    CommandNumbers,
    Proposer,
)
from aivailable.peer.control.replicated import ReplicatedState


@given(st.lists(st.integers(0, 2 * SEQUENCE_BLOCK + 3), min_size=1, max_size=5))
def test_numbers_grow_across_restarts_and_block_borders(lives: list[int]) -> None:
    home = lone_home()
    last = 0
    for count in lives:
        sequence = CommandNumbers(home)
        for _ in range(count):
            number = sequence.take()
            assert number > last
            last = number


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_a_disk_that_refuses_costs_no_repeat(refusals: list[bool]) -> None:
    """What was not reserved in home is not given out: a restart would give it out again."""
    home = lone_home()
    taken: list[int] = []
    for refuses in refusals:
        sequence = CommandNumbers(home)
        home.fails = int(refuses)
        for _ in range(3):
            try:
                taken.append(sequence.take())
            except OSError:
                continue
    assert len(taken) == len(set(taken))
    assert taken == sorted(taken)


def test_a_block_is_one_write() -> None:
    home = lone_home()
    sequence = CommandNumbers(home)
    sequence.take()
    stored = home.files[SEQUENCE_FILE]
    for _ in range(SEQUENCE_BLOCK - 1):
        sequence.take()
    assert home.files[SEQUENCE_FILE] == stored
    sequence.take()
    assert home.files[SEQUENCE_FILE] != stored


def test_a_damaged_file_is_a_config_error_with_a_remedy() -> None:
    home = lone_home()
    home.save(SEQUENCE_FILE, b"\xff garbage")
    with pytest.raises(ConfigError, match=r"'sequence'.*backup"):
        CommandNumbers(home)


class FakeRaft:
    """Applies at once, or raises."""

    def __init__(self, replicated: ReplicatedState) -> None:
        self.replicated = replicated
        self.error: Exception | None = None
        self.payloads: list[bytes] = []
        self.loses_outcome = False
        self.leader: str | None = "leader"

    async def propose(self, payload: bytes, *, applied: Any, deadline_s: float) -> None:
        self.payloads.append(payload)
        if self.error is not None:
            raise self.error
        assert not applied()
        self.replicated.apply(payload)
        assert applied()
        if self.loses_outcome:
            self.replicated.state = replace(self.replicated.state, outcomes={})


def proposer() -> tuple[Proposer, FakeRaft]:
    replicated = ReplicatedState(lambda before, after: None)
    cluster = founded()
    # Another process of n1 proposed before; ours goes on after what its home reserved.
    replicated.state = cluster.state
    raft = FakeRaft(replicated)
    home = lone_home()
    home.save(SEQUENCE_FILE, b"5000")
    made = Proposer("n1", CommandNumbers(home), SimClock(), raft, replicated)  # type: ignore[arg-type]
    return made, raft


def test_an_accepted_command_returns_once_it_is_applied_here() -> None:
    async def scenario() -> None:
        made, raft = proposer()
        await made.propose(SetWindow(0), actor="operator:k", reason="r" * 999)
        assert not raft.replicated.state.window.open
        command = decode_command(raft.payloads[0])
        assert (command.command_id.proposer, command.command_id.seq) == ("n1", 5000)
        assert len(command.reason) == REASON_MAX_CHARS

    run(scenario())


def test_a_refused_command_raises_with_its_code() -> None:
    async def scenario() -> None:
        made, _ = proposer()
        with pytest.raises(ProposalRejected) as caught:
            await made.propose(SetWindow(-5), actor="operator:k", reason="")
        assert caught.value.code

    run(scenario())


def test_unknown_stays_unknown() -> None:
    async def scenario() -> None:
        made, raft = proposer()
        raft.error = ProposalUnknown("deadline")
        with pytest.raises(ProposalUnknown):
            await made.propose(SetWindow(0), actor="operator:k", reason="")
        raft.error, raft.loses_outcome = None, True
        with pytest.raises(ProposalUnknown, match="not known"):
            await made.propose(SetWindow(0), actor="operator:k", reason="")
        first, second = (decode_command(data).command_id.seq for data in raft.payloads)
        assert second == first + 1

    run(scenario())


def test_without_a_leader_the_reason_is_named() -> None:
    async def scenario() -> None:
        made, raft = proposer()
        raft.error, raft.leader = ProposalUnknown("deadline"), None
        with pytest.raises(ProposalUnknown, match="no majority"):
            await made.propose(SetWindow(0), actor="operator:k", reason="")

    run(scenario())
