"""Feature levels: how versions of the code share one log.

Owns the level of this code, what a command needs, and who holds the cluster back. `LEVEL` grows by
one with each release that changes what the log or the state can hold, or how `apply` decides. Each
member states the level of the code it runs in its own record, so that one that is off counts with
its last word. The cluster works at the lowest, raised by the planner, and never lowered. How to add
a command: aivailable/DESIGN.md, "Versions in one cluster". Pure.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aivailable.advice import REMOVE
from aivailable.core.state.commands import KIND_LEVELS
from aivailable.core.state.node_names import shown_name
from aivailable.core.state.records import VALUE_LEVELS, Member
from aivailable.wire.schema import late_fields

LEVEL: Final = 2
"""What this code can do: it follows a cluster at this level and at every lower one."""
FIRST_LEVEL: Final = 1
"""Of whatever declares no level: all that the first release knew."""
NAMED_MAX = 5
"""Members named in one message."""


def needed(value: Any) -> int:
    """The lowest level at which every member understands this body, record or state: of its kind,
    and of each later field or enum value in it that is in use."""
    if isinstance(value, (tuple, list)):
        return max(map(needed, value), default=FIRST_LEVEL)
    if isinstance(value, Mapping):
        return max(map(needed, value.values()), default=FIRST_LEVEL)
    if isinstance(value, enum.StrEnum):
        return VALUE_LEVELS.get((type(value), value.value), FIRST_LEVEL)
    if not dataclasses.is_dataclass(value):
        return FIRST_LEVEL
    kind: Any = type(value)
    level = KIND_LEVELS.get(kind, FIRST_LEVEL)
    late = late_fields(kind)
    for entry in dataclasses.fields(kind):
        used = getattr(value, entry.name)
        if entry.name in late:
            since, default = late[entry.name]
            if used == default:
                continue
            level = max(level, since)
        level = max(level, needed(used))
    return level


def lowest(members: Iterable[Member]) -> int:
    """The level that all of these can do."""
    return min((member.feature_max for member in members), default=FIRST_LEVEL)


def holding_back(members: Mapping[str, Member], level: int) -> tuple[Member, ...]:
    """Whose last word was a lower level than `level`, by id."""
    return tuple(members[node] for node in sorted(members) if members[node].feature_max < level)


def waited_for(members: Mapping[str, Member]) -> tuple[Member, ...]:
    """Who runs older code than the newest member: the cluster's level waits for them."""
    newest = max((member.feature_max for member in members.values()), default=FIRST_LEVEL)
    return holding_back(members, newest)


def why_not_yet(members: Mapping[str, Member], level: int, current: int) -> str:
    """Why what needs `level` is refused at the level `current`, and what to do."""
    text = f"this needs feature level {level}, and the cluster works at {current}"
    slow = holding_back(members, level)
    if not slow:
        return f"{text}: every member can do it, so it will in a moment; try again"
    names = ", ".join(_named(members, member) for member in slow[:NAMED_MAX])
    more = f" and {len(slow) - NAMED_MAX} more" if len(slow) > NAMED_MAX else ""
    return (
        f"{text}: held back by {names}{more}; install the newer version there, or take out who"
        f" never comes back with {REMOVE}"
    )


def too_old_for(level: int) -> str:
    """To whoever runs this code in a cluster, or wants to join one, at `level`."""
    return _install(
        f"this node's version does feature level {LEVEL}, and its cluster works at {level}"
    )


def unknown_kind(kind: str) -> str:
    """This code met a command in the log that it does not know, though its level allows it."""
    return _install(f"the log holds a change of a kind that this version does not know ({kind!r})")


def newcomer_too_old(stated: int, level: int) -> str:
    """To a node that asks to be let in."""
    return (
        f"this cluster works at feature level {level}, and the newcomer's version does {stated}:"
        " install the version that the members run, and start it again"
    )


def _named(members: Mapping[str, Member], member: Member) -> str:
    off = ", off" if member.away or member.down else ""
    return f"{shown_name(members, member.node)} ({member.version or 'unknown version'}{off})"


def _install(problem: str) -> str:
    return (
        f"{problem}: install the version that the other members run and start it again; nothing in"
        " --home was changed"
    )
