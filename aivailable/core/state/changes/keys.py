"""Handlers: making and revoking keys, and what a newcomer brings. The rules are in core.state.keys.

Not to be confused with `core.state.keys`, which holds the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aivailable.advice import KEY_CREATE_ADMIN, KEY_LIST, KEY_REVOKE_FORCE
from aivailable.core.ids import NodeId
from aivailable.core.state.changes.change import Change, Handler, Reject
from aivailable.core.state.commands import Admit, Command, PutKey, RevokeKey
from aivailable.core.state.keys import (
    BROUGHT_PER_MEMBER_MAX,
    KEYS_PER_NODE_MAX,
    RECORDS_LEVEL,
    asking_key,
    brought_by,
    ended,
    is_last_admin,
    made_through,
    valid,
)
from aivailable.core.state.records import ApiKey
from aivailable.core.state.state import State

KEYS_MAX = 1024
"""Valid ones."""
KEYS_RESERVED = 256
"""Of them, for those that members bring, one for each member: keys that operators make
never take their place."""
KEY_LABEL_MAX_CHARS = 96


def put_key(state: State, command: Command, body: PutKey) -> Change | Reject:
    key, proposer = body.key, command.command_id.proposer
    if state.feature_level >= RECORDS_LEVEL:
        key = _recorded(state, command, key, "")
        if not key.revoked and key.key_id not in state.keys:
            if made_through(state.keys, proposer) >= KEYS_PER_NODE_MAX:
                return Reject(
                    "full", f"at most {KEYS_PER_NODE_MAX} keys are made at one node; revoke some"
                )
            if valid(state.keys) >= KEYS_MAX - KEYS_RESERVED:
                return Reject("full", "the rest is for members' own keys; revoke some")
    keys = with_keys(state, (key,))
    if isinstance(keys, Reject):
        return keys
    after = replace(state, keys=ended(keys, (), 0) if key.revoked else keys)
    return Change(after, "key", body.key.key_id, f"key {body.key.key_id} ({body.key.scope.value})")


def revoke_key(state: State, _command: Command, body: RevokeKey) -> Change | Reject:
    key = state.keys.get(body.key_id)
    if key is None:
        return Reject("unknown_key", f"no key {body.key_id}; see {KEY_LIST}")
    if state.feature_level < RECORDS_LEVEL:
        keys = {**state.keys, key.key_id: replace(key, revoked=True)}
    elif is_last_admin(state.keys, key.key_id) and not body.force:
        return Reject(
            "last_admin_key",
            f"{key.key_id} is the last admin key: make another one first with"
            f" {KEY_CREATE_ADMIN}, or end it with {KEY_REVOKE_FORCE.of(key.key_id)}",
        )
    else:
        keys = ended(state.keys, (key.key_id,), state.version + 1)
    after = replace(state, keys=keys)
    return Change(after, "key", key.key_id, f"key {key.key_id} revoked")


def with_brought(state: State, command: Command, body: Admit) -> dict[str, ApiKey] | Reject:
    """The keys with what the newcomer brings."""
    node = body.member.node
    if state.feature_level < RECORDS_LEVEL:
        return with_keys(state, tuple(replace(key, node=node) for key in body.keys))
    if len(body.keys) > 1:
        return Reject("too_many_keys", "a node that joins brings one key")
    fresh = [key for key in body.keys if key.key_id not in state.keys]
    if fresh and brought_by(state.keys, node) >= BROUGHT_PER_MEMBER_MAX:
        return Reject("full", f"a member brings at most {BROUGHT_PER_MEMBER_MAX} keys")
    brought = (_recorded(state, command, key, node) for key in body.keys)
    return with_keys(state, tuple(brought))


def _recorded(state: State, command: Command, key: ApiKey, brought: NodeId) -> ApiKey:
    """The key with where it comes from: by the command, whatever its body says."""
    return replace(
        key,
        label=key.label[:KEY_LABEL_MAX_CHARS],
        node=brought,
        via=command.command_id.proposer,
        by="" if brought else asking_key(command.actor),
        revoked_version=state.version + 1 if key.revoked else 0,
    )


def with_keys(state: State, new: tuple[ApiKey, ...]) -> dict[str, ApiKey] | Reject:
    merged = dict(state.keys)
    for key in new:
        if key.key_id != key.hashed[:8] or len(key.hashed) != 64:
            return Reject("invalid_key", "a key record holds the SHA-256 of the key")
        known = merged.get(key.key_id)
        if known is not None and known.hashed != key.hashed:
            return Reject("key_id_taken", "another key has this id; make a new one")
        if known is None:
            merged[key.key_id] = key
    counted = valid(merged) if state.feature_level >= RECORDS_LEVEL else len(merged)
    if counted > KEYS_MAX:
        return Reject("full", f"a cluster has at most {KEYS_MAX} keys; revoke some")
    return merged


KEY_HANDLERS: Mapping[type[Any], Handler] = {PutKey: put_key, RevokeKey: revoke_key}
