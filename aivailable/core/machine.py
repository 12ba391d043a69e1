"""`apply`: how one command changes the state. Total, deterministic, idempotent by command id.

Refusing is a return value: an exception inside a replicated method would be retried for ever on
every node (RAFT.md, D10). The handlers, one per command kind, are in `core.changes`.
"""

from __future__ import annotations

from dataclasses import replace

from aivailable.core.changes import Change, Reject, change
from aivailable.core.codec import decode_command
from aivailable.core.commands import PLANNER_KINDS, Command, Found
from aivailable.core.ids import short
from aivailable.core.records import Event, Outcome, OutcomeTable
from aivailable.core.state import EVENTS_MAX, OUTCOMES_PER_PROPOSER_MAX, State
from aivailable.errors import SchemaError

ACCEPTED = Outcome(accepted=True)
EVENT_REASON_MAX_CHARS = 300
EVENT_ACTOR_MAX_CHARS = 64
OUTCOME_MESSAGE_MAX_CHARS = 300
"""A refusal may quote what was proposed; what is kept of it is bounded."""
OUTCOMES_TOTAL_MAX = 8 * 1024
"""Shared by all proposers of a large cluster, so that its state stays small."""


def apply_bytes(state: State, payload: bytes) -> tuple[State, Outcome]:
    """Apply a log entry. An entry that is no command is counted and refused, never raised."""
    try:
        command = decode_command(payload)
    except SchemaError as error:
        return _counted(state), Outcome(False, "malformed", str(error))
    return apply(state, command)


def apply(state: State, command: Command) -> tuple[State, Outcome]:
    """The next state and what became of the command. Equal inputs give equal outputs."""
    repeat = outcome_of(state, command)
    if repeat is not None:
        return _counted(state), repeat
    result = _admissible(state, command) or change(state, command)
    if isinstance(result, Reject):
        outcome = Outcome(False, result.code, result.message[:OUTCOME_MESSAGE_MAX_CHARS])
        after = _counted(state)
    else:
        outcome = ACCEPTED
        after = _recorded(state, command, result)
    return _remembered(after, command, outcome), outcome


def outcome_of(state: State, command: Command) -> Outcome | None:
    """What this command id already came to; None when it is new.

    Ids at or below the table's floor are too old to tell: refused as `expired`.
    """
    table = state.outcomes.get(command.command_id.proposer)
    if table is None:
        return None
    if command.command_id.seq <= table.floor:
        return Outcome(False, "expired", "this command id is too old to be answered")
    for seq, outcome in table.outcomes:
        if seq == command.command_id.seq:
            return outcome
    return None


def _admissible(state: State, command: Command) -> Reject | None:
    """The rules that hold for every kind: founded, a member's word, the controller's term."""
    proposer = command.command_id.proposer
    if state.cluster is None:
        if not isinstance(command.body, Found):
            return Reject("not_founded", "the cluster is not founded yet")
        return None
    if isinstance(command.body, Found):
        return Reject("founded", f"the cluster {state.cluster.name!r} is founded already")
    if state.dissolved is not None:
        return Reject("dissolved", f"this cluster has ended in {short(state.dissolved.into)}")
    if proposer not in state.members:
        return Reject("not_member", "only members may change the cluster")
    if type(command.body) in PLANNER_KINDS and (
        command.control is None
        or command.control != state.control
        or command.control.node != proposer
    ):
        return Reject("stale_controller", "another controller has taken over")
    return None


def _counted(state: State) -> State:
    return replace(state, version=state.version + 1)


def _recorded(state: State, command: Command, result: Change) -> State:
    """The handler's state with version, history and the operator's mark brought up to date."""
    after = replace(
        result.state,
        version=state.version + 1,
        operator_touched=state.operator_touched or command.actor.startswith("operator"),
    )
    if not result.text:
        return after
    event = Event(
        version=after.version,
        kind=result.kind,
        subject=result.subject,
        actor=command.actor[:EVENT_ACTOR_MAX_CHARS],
        reason=command.reason[:EVENT_REASON_MAX_CHARS],
        at_ms=command.proposed_at_ms,
        text=result.text,
    )
    return replace(after, events=(*after.events, event)[-EVENTS_MAX:])


def _remembered(state: State, command: Command, outcome: Outcome) -> State:
    """Keep the outcome for repeats; forget the oldest beyond the limit.

    Only members get a table, so that strangers cannot grow the state.
    """
    proposer, seq = command.command_id.proposer, command.command_id.seq
    if proposer not in state.members:
        return state
    table = state.outcomes.get(proposer, OutcomeTable())
    kept = tuple(sorted((*table.outcomes, (seq, outcome)), key=lambda entry: entry[0]))
    floor = table.floor
    limit = min(OUTCOMES_PER_PROPOSER_MAX, OUTCOMES_TOTAL_MAX // len(state.members))
    if len(kept) > limit:
        floor = kept[-limit - 1][0]
        kept = kept[-limit:]
    return replace(
        state, outcomes={**state.outcomes, proposer: OutcomeTable(floor=floor, outcomes=kept)}
    )
