"""Handlers: founding, admission, roles, the join window, liveness marks, keys, settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aivailable.advice import ADMIT, KEY_LIST
from aivailable.core.ids import short
from aivailable.core.state.changes.change import Change, Handler, Reject
from aivailable.core.state.commands import (
    Admit,
    CloseWindow,
    Command,
    Found,
    MarkDown,
    PutKey,
    PutSettings,
    RaiseFeatureLevel,
    Remove,
    ReportInventory,
    RevokeKey,
    SayAway,
    SetDraining,
    SetRole,
    SetWindow,
    TakeControl,
    UpdateMember,
)
from aivailable.core.state.levels import newcomer_too_old, why_not_yet
from aivailable.core.state.merging import listing, without_awaited
from aivailable.core.state.records import ApiKey, Cluster, Control, JoinWindow, Member, Role
from aivailable.core.state.settings import SETTINGS, problem
from aivailable.core.state.state import BYTES_MAX, State

MEMBERS_MAX = 256
KEYS_MAX = 1024
WINDOW_MAX_S = 7 * 24 * 3600
NAME_MAX_CHARS = 64
CERTIFICATE_MAX_BYTES = 2048
DEVICES_PER_NODE_MAX = 64
ADDRESSES_MAX = 16


def found(state: State, command: Command, body: Found) -> Change | Reject:
    problem = _member_problem(body.founder)
    if problem:
        return Reject("invalid_member", problem)
    if body.founder.feature_max < state.feature_level:
        return Reject("too_old", newcomer_too_old(body.founder.feature_max, state.feature_level))
    keys = _with_keys({}, (replace(body.key, node=body.founder.node),))
    if isinstance(keys, Reject):
        return keys
    founder = replace(body.founder, role=Role.VOTER, joined_at_ms=command.proposed_at_ms)
    window_s = min(max(body.settings.join_window_s, 0), WINDOW_MAX_S)
    after = replace(
        state,
        cluster=Cluster(body.cluster_id, body.name, founder.node, command.proposed_at_ms),
        settings=body.settings,
        members={founder.node: founder},
        keys=keys,
        window=JoinWindow(serial=1, open=window_s > 0, duration_s=window_s),
    )
    return Change(after, "founded", body.name, f"{founder.name} founded the cluster {body.name!r}")


def take_control(state: State, command: Command, body: TakeControl) -> Change | Reject:
    if body.node not in state.members:
        return Reject("not_member", "only a member can control")
    if command.command_id.proposer != body.node:
        return Reject("not_yours", "a node takes control for itself only")
    if state.control is not None and body.term <= state.control.term:
        return Reject("stale_controller", f"term {body.term} is not newer")
    after = replace(state, control=Control(body.node, body.term))
    name = state.members[body.node].name
    return Change(after, "control", body.node, f"{name} controls (term {body.term})")


def admit(state: State, command: Command, body: Admit) -> Change | Reject:
    problem = _member_problem(body.member)
    if problem:
        return Reject("invalid_member", problem)
    if body.member.feature_max < state.feature_level:
        return Reject("too_old", newcomer_too_old(body.member.feature_max, state.feature_level))
    known = state.members.get(body.member.node)
    if known is None:
        if len(state.members) >= MEMBERS_MAX:
            return Reject("full", f"a cluster has at most {MEMBERS_MAX} members")
        if body.tombstone and listing(state, body.member.node, body.tombstone) is None:
            return Reject("not_listed", "no member of a cluster that ended in this one")
        if body.window_serial is not None and (
            not state.window.open or body.window_serial != state.window.serial
        ):
            return Reject("window_closed", f"the join window is closed; type {ADMIT}")
    brought = tuple(replace(key, node=body.member.node) for key in body.keys)
    keys = _with_keys(state.keys, brought)
    if isinstance(keys, Reject):
        return keys
    role = Role.OBSERVER if known is None else known.role
    joined = command.proposed_at_ms if known is None else known.joined_at_ms
    draining = False if known is None else known.draining
    member = replace(body.member, role=role, joined_at_ms=joined, down=False, draining=draining)
    after = replace(
        state,
        members={**state.members, member.node: member},
        keys=keys,
        tombstones=without_awaited(state.tombstones, member.node),
    )
    return Change(after, "joined", member.node, f"{member.name} joined" if known is None else "")


def remove(state: State, _command: Command, body: Remove) -> Change | Reject:
    member = state.members.get(body.node)
    if member is None:
        return Reject("not_member", f"{short(body.node)} is no member")
    if len(state.members) == 1:
        return Reject("last_member", "the last member cannot leave its cluster")
    after = without_replicas(state, body.node)
    after = replace(
        after,
        keys={
            key: replace(entry, revoked=entry.revoked or _expelled(entry, body))
            for key, entry in after.keys.items()
        },
        members={key: entry for key, entry in after.members.items() if key != body.node},
        inventories={k: v for k, v in after.inventories.items() if k != body.node},
        copies=_copies_without(after.copies, body.node),
        failures={k: v for k, v in after.failures.items() if v.node != body.node},
        outcomes={k: v for k, v in after.outcomes.items() if k != body.node},
    )
    return Change(after, "left", body.node, f"{member.name} left the cluster")


def _expelled(key: ApiKey, body: Remove) -> bool:
    return body.revoke_keys and key.node == body.node


def set_role(state: State, _command: Command, body: SetRole) -> Change | Reject:
    member = state.members.get(body.node)
    if member is None:
        return Reject("not_member", f"{short(body.node)} is no member")
    if member.role == body.role:
        return Change(state)
    after = _with_member(state, replace(member, role=body.role))
    return Change(after, "role", body.node, f"{member.name} is now {body.role.value}")


def update_member(state: State, command: Command, body: UpdateMember) -> Change | Reject:
    member = state.members.get(body.node)
    if member is None or command.command_id.proposer != body.node:
        return Reject("not_yours", "a member reports its own addresses only")
    if body.feature_max < state.feature_level:
        return Reject("too_old", newcomer_too_old(body.feature_max, state.feature_level))
    return Change(_with_member(state, with_news(member, body)))


def with_news(member: Member, body: UpdateMember) -> Member:
    """The member's record once its own news are in it."""
    return replace(
        member,
        name=body.name[:NAME_MAX_CHARS] or member.name,
        addresses=body.addresses[:ADDRESSES_MAX],
        link_port=body.link_port,
        api_port=body.api_port,
        version=body.version,
        proto_min=body.proto_min,
        proto_max=body.proto_max,
        feature_max=body.feature_max,
        instance_id=body.instance_id,
        away=False,
    )


def say_away(state: State, command: Command, body: SayAway) -> Change | Reject:
    member = state.members.get(body.node)
    if member is None or command.command_id.proposer != body.node:
        return Reject("not_yours", "a member says of itself only that it goes")
    after = _with_member(state, replace(member, away=True))
    return Change(after, "away", body.node, f"{member.name} stops and will be back")


def set_window(state: State, _command: Command, body: SetWindow) -> Change | Reject:
    if not 0 <= body.duration_s <= WINDOW_MAX_S:
        return Reject("invalid_duration", f"a window lasts 0 to {WINDOW_MAX_S} seconds")
    window = JoinWindow(state.window.serial + 1, body.duration_s > 0, body.duration_s)
    text = f"join window open for {body.duration_s} s" if window.open else "join window closed"
    return Change(replace(state, window=window), "window", "", text)


def close_window(state: State, _command: Command, body: CloseWindow) -> Change | Reject:
    if not state.window.open or state.window.serial != body.serial:
        return Change(state)
    after = replace(state, window=replace(state.window, open=False))
    return Change(after, "window", "", "join window closed: its time is over")


def mark_down(state: State, _command: Command, body: MarkDown) -> Change | Reject:
    member = state.members.get(body.node)
    if member is None:
        return Reject("not_member", f"{short(body.node)} is no member")
    if member.down == body.down:
        return Change(state)
    after = _with_member(state, replace(member, down=body.down))
    if body.down:
        after = without_replicas(after, body.node)
        return Change(after, "down", body.node, f"{member.name} is down: a majority misses it")
    return Change(after, "up", body.node, f"{member.name} is back")


def set_draining(state: State, _command: Command, body: SetDraining) -> Change | Reject:
    member = state.members.get(body.node)
    if member is None:
        return Reject("not_member", f"{short(body.node)} is no member")
    after = _with_member(state, replace(member, draining=body.draining))
    text = f"{member.name} drains" if body.draining else f"{member.name} serves again"
    return Change(after, "drain", body.node, text)


def report_inventory(state: State, command: Command, body: ReportInventory) -> Change | Reject:
    node = body.inventory.node
    if node not in state.members or command.command_id.proposer != node:
        return Reject("not_yours", "a member reports its own devices only")
    ids = [device.device_id for device in body.inventory.devices]
    if len(ids) > DEVICES_PER_NODE_MAX or len(ids) != len(frozenset(ids)):
        return Reject("invalid_inventory", "too many devices, or two with one id")
    if any(not 0 <= device.total_bytes <= BYTES_MAX for device in body.inventory.devices):
        return Reject("invalid_inventory", f"a device has 0 to {BYTES_MAX} bytes")
    if state.inventories.get(node) == body.inventory:
        return Change(state)
    after = replace(state, inventories={**state.inventories, node: body.inventory})
    after = _without_what_no_longer_fits(after, node)
    return Change(after, "inventory", node, f"{state.members[node].name}: {len(ids)} device(s)")


def put_key(state: State, _command: Command, body: PutKey) -> Change | Reject:
    keys = _with_keys(state.keys, (body.key,))
    if isinstance(keys, Reject):
        return keys
    after = replace(state, keys=keys)
    return Change(after, "key", body.key.key_id, f"key {body.key.key_id} ({body.key.scope.value})")


def revoke_key(state: State, _command: Command, body: RevokeKey) -> Change | Reject:
    key = state.keys.get(body.key_id)
    if key is None:
        return Reject("unknown_key", f"no key {body.key_id}; see {KEY_LIST}")
    after = replace(state, keys={**state.keys, key.key_id: replace(key, revoked=True)})
    return Change(after, "key", key.key_id, f"key {key.key_id} revoked")


def put_settings(state: State, _command: Command, body: PutSettings) -> Change | Reject:
    wrong = problem(body.settings)
    if wrong:
        return Reject("invalid_settings", wrong)
    before = state.settings
    texts = [
        f"{one.key} is {getattr(body.settings, one.key)}"
        for one in SETTINGS
        if getattr(body.settings, one.key) != getattr(before, one.key)
    ]
    if not texts:
        return Change(state)
    return Change(replace(state, settings=body.settings), "settings", "", "; ".join(texts))


def raise_feature_level(
    state: State, _command: Command, body: RaiseFeatureLevel
) -> Change | Reject:
    if body.level <= state.feature_level:
        return Change(state)
    if any(member.feature_max < body.level for member in state.members.values()):
        return Reject("too_old", why_not_yet(state.members, body.level, state.feature_level))
    after = replace(state, feature_level=body.level)
    return Change(after, "feature_level", "", f"the cluster works at feature level {body.level}")


def without_replicas(state: State, node: str) -> State:
    """The node is gone, and its claims with it."""
    kept = {key: entry for key, entry in state.replicas.items() if entry.node != node}
    return replace(state, replicas=kept)


def _without_what_no_longer_fits(state: State, node: str) -> State:
    """A device that came back smaller than its claims (another `--devices`, a repartitioned card)
    loses its replicas: the node's own word on its devices is the last one."""
    too_small = [
        device.device_id
        for device in state.inventories[node].devices
        if state.claimed_bytes(node, device.device_id) > device.total_bytes
    ]
    kept = {
        key: entry
        for key, entry in state.replicas.items()
        if entry.node != node or not any(c.device_id in too_small for c in entry.claims)
    }
    return replace(state, replicas=kept)


def _with_member(state: State, member: Member) -> State:
    return replace(state, members={**state.members, member.node: member})


def _copies_without(copies: Mapping[str, tuple[str, ...]], node: str) -> dict[str, tuple[str, ...]]:
    kept = {digest: tuple(n for n in nodes if n != node) for digest, nodes in copies.items()}
    return {digest: nodes for digest, nodes in kept.items() if nodes}


def _with_keys(keys: Mapping[str, ApiKey], new: tuple[ApiKey, ...]) -> dict[str, ApiKey] | Reject:
    merged = dict(keys)
    for key in new:
        if key.key_id != key.hashed[:8] or len(key.hashed) != 64:
            return Reject("invalid_key", "a key record holds the SHA-256 of the key")
        known = merged.get(key.key_id)
        if known is not None and known.hashed != key.hashed:
            return Reject("key_id_taken", "another key has this id; make a new one")
        if known is None:
            merged[key.key_id] = key
    if len(merged) > KEYS_MAX:
        return Reject("full", f"a cluster has at most {KEYS_MAX} keys; revoke some")
    return merged


def _member_problem(member: Member) -> str:
    if not member.node or not member.certificate:
        return "a member has an id and a certificate"
    if len(member.certificate) > CERTIFICATE_MAX_BYTES:
        return f"a certificate has at most {CERTIFICATE_MAX_BYTES} bytes"
    if not 0 < len(member.name) <= NAME_MAX_CHARS:
        return f"a name has 1 to {NAME_MAX_CHARS} characters"
    return ""


MEMBER_HANDLERS: Mapping[type[Any], Handler] = {
    Found: found,
    TakeControl: take_control,
    Admit: admit,
    Remove: remove,
    SetRole: set_role,
    UpdateMember: update_member,
    SayAway: say_away,
    SetWindow: set_window,
    CloseWindow: close_window,
    MarkDown: mark_down,
    SetDraining: set_draining,
    ReportInventory: report_inventory,
    PutKey: put_key,
    RevokeKey: revoke_key,
    PutSettings: put_settings,
    RaiseFeatureLevel: raise_feature_level,
}
