"""`apply`: how one command changes the state. Total, deterministic, idempotent by command id.

Refusing is a return value: an exception inside a replicated method would be retried for ever on
every node (defect D10 in raft/DESIGN.md). The handlers, one per command kind, are in
`core.state.changes.handlers`.

Versions that share a log decide alike: what needs a higher feature level than the state has is
refused by its envelope, unread. What the state allows and this code cannot do has the outcome
CODE_TOO_OLD: nothing is changed, and the node must stop there.

Not to be confused with `raft.machine`, the port through which Raft drives the state.
"""

from __future__ import annotations

from dataclasses import replace

from aivailable.core.ids import CommandId, short
from aivailable.core.state.changes.handlers import Change, Reject, change
from aivailable.core.state.codec import Envelope, open_envelope, read_body
from aivailable.core.state.commands import KINDS, PLANNER_KINDS, Command, Found
from aivailable.core.state.levels import LEVEL, too_old_for, unknown_kind, why_not_yet
from aivailable.core.state.records import CommandOutcome, Event, OutcomeTable
from aivailable.core.state.state import EVENTS_MAX, OUTCOMES_PER_PROPOSER_MAX, State
from aivailable.errors import SchemaError

ACCEPTED = CommandOutcome(accepted=True)
CODE_TOO_OLD = "code_too_old"
EVENT_REASON_MAX_CHARS = 300
EVENT_ACTOR_MAX_CHARS = 64
OUTCOME_MESSAGE_MAX_CHARS = 300
"""A refusal may quote what was proposed; what is kept of it is bounded."""
OUTCOMES_TOTAL_MAX = 8 * 1024
"""Shared by all proposers of a large cluster, so that its state stays small."""


def apply_bytes(state: State, payload: bytes) -> tuple[State, CommandOutcome]:
    """Apply a log entry. An entry that is no command is counted and refused, never raised.

    CODE_TOO_OLD: the state is the one given, and no later entry may be applied by this code.
    """
    try:
        envelope = open_envelope(payload)
        early = _too_early(state, envelope.level)
        if early is not None:
            known = _known(state, envelope.command_id)
            return (_counted(state), known) if known else _refused(state, envelope, early)
        stop = _beyond_this_code(envelope)
        if stop:
            return state, CommandOutcome(False, CODE_TOO_OLD, stop)
        command = read_body(envelope)
    except SchemaError as error:
        return _counted(state), CommandOutcome(False, "malformed", str(error))
    return apply(state, command)


def _beyond_this_code(envelope: Envelope) -> str:
    """Why this code must stop here; "" = it need not."""
    if envelope.level > LEVEL:
        return too_old_for(envelope.level)
    return "" if envelope.kind in KINDS else unknown_kind(envelope.kind)


def apply(state: State, command: Command) -> tuple[State, CommandOutcome]:
    """The next state and what became of the command. Equal inputs give equal outputs.

    CODE_TOO_OLD: as `apply_bytes`.
    """
    repeat = outcome_of(state, command)
    if repeat is not None:
        return _counted(state), repeat
    result = (
        _too_early(state, command.level) or _admissible(state, command) or change(state, command)
    )
    if isinstance(result, Reject):
        return _refused(state, command, result)
    if result.state.feature_level > LEVEL:
        return state, CommandOutcome(False, CODE_TOO_OLD, too_old_for(result.state.feature_level))
    after = _recorded(state, command, result)
    return _remembered(after, command.command_id, ACCEPTED), ACCEPTED


def outcome_of(state: State, command: Command) -> CommandOutcome | None:
    """What this command id already came to; None when it is new.

    Ids at or below the table's floor are too old to tell: refused as `expired`.
    """
    return _known(state, command.command_id)


def _known(state: State, command_id: CommandId) -> CommandOutcome | None:
    table = state.outcomes.get(command_id.proposer)
    if table is None:
        return None
    if command_id.seq <= table.floor:
        return CommandOutcome(False, "expired", "this command id is too old to be answered")
    for seq, outcome in table.outcomes:
        if seq == command_id.seq:
            return outcome
    return None


def _too_early(state: State, level: int) -> Reject | None:
    """Not every member can apply it yet. Decided by the envelope alone, so by all alike."""
    if level <= state.feature_level:
        return None
    return Reject("feature_level", why_not_yet(state.members, level, state.feature_level))


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


def _refused(
    state: State, asked: Command | Envelope, reject: Reject
) -> tuple[State, CommandOutcome]:
    outcome = CommandOutcome(False, reject.code, reject.message[:OUTCOME_MESSAGE_MAX_CHARS])
    return _remembered(_counted(state), asked.command_id, outcome), outcome


def _remembered(state: State, command_id: CommandId, outcome: CommandOutcome) -> State:
    """Keep the outcome for repeats; forget the oldest beyond the limit.

    Only members get a table, so that strangers cannot grow the state.
    """
    proposer, seq = command_id.proposer, command_id.seq
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
