"""The table of handlers, one per command kind, for `core.state.machine`.

The handlers themselves are in `core.state.changes.members` (who belongs, settings, control),
`core.state.changes.keys` and `core.state.changes.models` (catalogue, deployments, replicas).
"""

from __future__ import annotations

from collections.abc import Mapping

from aivailable.core.state.changes.change import Change, Handler, Reject
from aivailable.core.state.changes.deployments import DEPLOYMENT_HANDLERS
from aivailable.core.state.changes.keys import KEY_HANDLERS
from aivailable.core.state.changes.members import MEMBER_HANDLERS
from aivailable.core.state.changes.merging import MERGING_HANDLERS
from aivailable.core.state.changes.models import MODEL_HANDLERS
from aivailable.core.state.changes.replicas import REPLICA_HANDLERS
from aivailable.core.state.commands import Command
from aivailable.core.state.state import State

HANDLERS: Mapping[type, Handler] = {
    **MEMBER_HANDLERS,
    **KEY_HANDLERS,
    **MERGING_HANDLERS,
    **MODEL_HANDLERS,
    **DEPLOYMENT_HANDLERS,
    **REPLICA_HANDLERS,
}
"""Every kind of `commands.KINDS` has a handler (a test checks it)."""

__all__ = ["HANDLERS", "Change", "Reject", "change"]


def change(state: State, command: Command) -> Change | Reject:
    """Dispatch by kind, after the rules of `core.state.machine` that hold for every kind."""
    return HANDLERS[type(command.body)](state, command, command.body)
