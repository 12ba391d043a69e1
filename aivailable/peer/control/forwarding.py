"""Which commands the leader puts into the log for another member.

Owns that rule, asked for every command that a member forwards. `apply` decides again; what it would
refuse anyway stays out of the log, so that nobody fills it. How much a member may forward is
`raft.allowance`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aivailable.core.ids import NodeId
from aivailable.core.state.codec import decode_command
from aivailable.core.state.commands import (
    PLANNER_KINDS,
    AdoptReplica,
    Found,
    RegisterModel,
    ReportCopy,
    ReportInventory,
    ReportReplica,
    SayAway,
    TakeControl,
    UpdateMember,
)
from aivailable.core.state.state import State
from aivailable.errors import AivailableError

OF_LEADER = PLANNER_KINDS | {TakeControl, Found}
"""Only a leader plans and controls, and only a founder founds: such a command is never
forwarded, but by one that has just lost the lead, whose word is stale."""

SUBJECTS: Mapping[type[Any], Callable[[Any], NodeId]] = {
    UpdateMember: lambda body: body.node,
    SayAway: lambda body: body.node,
    ReportInventory: lambda body: body.inventory.node,
    ReportCopy: lambda body: body.node,
    ReportReplica: lambda body: body.node,
    AdoptReplica: lambda body: body.node,
    RegisterModel: lambda body: body.holder,
}
"""News of a node, which it tells of itself only. All other kinds are an operator's, who may ask
any member."""


def may_forward(state: State, node: NodeId, payload: bytes) -> bool:
    """Whether this member may propose this: its own command, of a kind that is not the leader's,
    which every member can read, and about itself where it is a node's news."""
    try:
        command = decode_command(payload)
    except AivailableError:
        return False
    kind = type(command.body)
    if command.command_id.proposer != node or kind in OF_LEADER:
        return False
    subject = SUBJECTS.get(kind)
    about_itself = subject is None or subject(command.body) == node
    return about_itself and command.level <= state.feature_level
