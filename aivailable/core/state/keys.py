"""API keys as the state holds them: where each came from, how many there may be, which end.

Owns the one rule of what ends with a member, whoever asks: `remove`, `recover`, or the list that
`remove` shows before. A key came through a node when that node brought it, or proposed it, or when
it was made with a key that came through it: whoever held the node could have made it. Keys that
another member brought are that member's own, also where our node let it in. What was recorded below
RECORDS_LEVEL names only who brought it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from aivailable.advice import KEY_LIST
from aivailable.core.ids import KeyId, NodeId
from aivailable.core.state.records import ApiKey, Scope
from aivailable.core.state.state import State

RECORDS_LEVEL: Final = 2
"""From this feature level on keys record where they come from, and removed nodes stay out."""
REVOKED_KEPT_MAX: Final = 256
"""Revoked keys remembered, so that a late repeat does not bring one back; the oldest go first."""
KEYS_PER_NODE_MAX: Final = 512
"""Valid keys made through one node: one member alone cannot use up those of all."""
BROUGHT_PER_MEMBER_MAX: Final = 4
"""Valid keys that one member brought, each time that it was let in with another one."""
OPERATOR_PREFIX: Final = "operator:"


@dataclass(frozen=True, slots=True)
class KeyEndings:
    """What becomes of the keys that came through a node which is removed."""

    ends: tuple[KeyId, ...]
    stays: tuple[KeyId, ...]
    problem: str = ""
    """Why it must not be done so, and what to say instead; "" = it may."""


def asking_key(actor: str) -> KeyId:
    """The key with which an operator asked; "" when it was none (the node itself, the planner)."""
    key = actor.removeprefix(OPERATOR_PREFIX) if actor.startswith(OPERATOR_PREFIX) else ""
    return key if len(key) == 8 else ""


def valid(keys: Mapping[str, ApiKey]) -> int:
    """How many count: revoked ones do not."""
    return sum(not key.revoked for key in keys.values())


def made_through(keys: Mapping[str, ApiKey], node: NodeId) -> int:
    """Valid keys that operators made at this node."""
    return sum(not key.revoked and key.via == node and not key.node for key in keys.values())


def brought_by(keys: Mapping[str, ApiKey], node: NodeId) -> int:
    return sum(not key.revoked and key.node == node for key in keys.values())


def came_through(state: State, node: NodeId) -> tuple[KeyId, ...]:
    """The valid keys that came through this node, sorted. Revoked ones count as makers."""
    others = [key for key in state.keys.values() if not key.node or key.node not in state.members]
    found = {key.key_id for key in state.keys.values() if key.node == node}
    found |= {key.key_id for key in others if key.via == node}
    more = found
    while more:
        more = {key.key_id for key in others if key.by in more} - found
        found |= more
    return tuple(key for key in sorted(found) if not state.keys[key].revoked)


def endings(
    state: State,
    nodes: Collection[NodeId],
    keep: Collection[KeyId] = (),
    end: Collection[KeyId] = (),
) -> KeyEndings:
    """Which keys end with these members: the admin keys that came through them, unless kept, and
    those that are named. The last admin key ends only when it is named."""
    through = sorted({key for node in nodes for key in came_through(state, node)})
    unknown = [key for key in sorted({*keep, *end}) if key not in state.keys]
    default = [
        key for key in through if state.keys[key].scope is Scope.ADMIN and key not in (*keep, *end)
    ]
    ends = tuple(sorted({*default, *(key for key in end if key in state.keys)}))
    stays = tuple(key for key in through if key not in ends)
    problem = ""
    if unknown:
        problem = f"no key {unknown[0]}; see {KEY_LIST}"
    elif set(keep) & set(end):
        problem = f"key {sorted(set(keep) & set(end))[0]} cannot both stay and end"
    elif default and not _admins(state.keys, ends):
        problem = (
            f"no admin key would be left: say which one stays with --keep-key {default[0]}, or"
            f" that it ends with --revoke-key {default[0]}"
        )
    return KeyEndings(ends, stays, problem)


def is_last_admin(keys: Mapping[str, ApiKey], key_id: KeyId) -> bool:
    """Whether nobody could change the cluster any more without this key."""
    key = keys.get(key_id)
    if key is None or key.revoked or key.scope is not Scope.ADMIN:
        return False
    return not _admins(keys, (key_id,))


def ended(keys: Mapping[str, ApiKey], ends: Collection[KeyId], version: int) -> dict[str, ApiKey]:
    """The keys once these are revoked, as of the state's `version`; the oldest revoked are gone."""
    after = {
        key: replace(entry, revoked=True, revoked_version=version)
        if key in ends and not entry.revoked
        else entry
        for key, entry in keys.items()
    }
    revoked = sorted((entry.revoked_version, key) for key, entry in after.items() if entry.revoked)
    for _, key in revoked[: max(0, len(revoked) - REVOKED_KEPT_MAX)]:
        del after[key]
    return after


def without_brought(keys: Mapping[str, ApiKey], node: NodeId) -> dict[str, ApiKey] | None:
    """The keys without those that this node brought; None when no admin key would be left."""
    after = {key: entry for key, entry in keys.items() if entry.node != node}
    return after if _admins(after, ()) else None


def _admins(keys: Mapping[str, ApiKey], without: Collection[KeyId]) -> int:
    return sum(
        not key.revoked and key.scope is Scope.ADMIN and key.key_id not in without
        for key in keys.values()
    )
