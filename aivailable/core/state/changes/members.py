"""Handlers: founding, admission, roles, the join window, liveness marks, keys, settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aivailable.advice import ADMIT, REMOVE
from aivailable.core.ids import NodeId, short
from aivailable.core.state.changes.change import Change, Handler, Reject
from aivailable.core.state.changes.keys import with_brought, with_keys
from aivailable.core.state.commands import (
    Admit,
    CloseWindow,
    Command,
    Found,
    Lapse,
    MarkDown,
    PutSettings,
    RaiseFeatureLevel,
    Remove,
    ReportInventory,
    SayAway,
    SetDraining,
    SetRole,
    SetWindow,
    TakeControl,
    UpdateMember,
)
from aivailable.core.state.keys import RECORDS_LEVEL, ended, endings, without_brought
from aivailable.core.state.levels import newcomer_too_old, why_not_yet
from aivailable.core.state.merging import listing, without_awaited
from aivailable.core.state.records import (
    ApiKey,
    Cluster,
    Control,
    JoinWindow,
    Member,
    Role,
)
from aivailable.core.state.removal import removed_for_good, with_removed
from aivailable.core.state.settings import SETTINGS, problem
from aivailable.core.state.state import BYTES_MAX, State

EVENT_TEXT_MAX_CHARS = 300
NEWS_MAX_CHARS = 64
"""Of a version, an instance id or an address in a member's record."""
PORT_MAX = 65535
MEMBERS_MAX = 256
WINDOW_MAX_S = 7 * 24 * 3600
NAME_MAX_CHARS = 64
CERTIFICATE_MAX_BYTES = 2048
DEVICES_PER_NODE_MAX = 64
ADDRESSES_MAX = 16
SPEED_MAX = 1e9
"""Tokens a second of one device: more than any, and such that sums and shares stay numbers."""


def found(state: State, command: Command, body: Found) -> Change | Reject:
    problem = _member_problem(body.founder)
    if problem:
        return Reject("invalid_member", problem)
    if body.founder.feature_max < state.feature_level:
        return Reject("too_old", newcomer_too_old(body.founder.feature_max, state.feature_level))
    first = replace(body.key, node=body.founder.node, via="", by="")
    keys = with_keys(state, (first,))
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
    problem = _member_problem(body.member) or _news_problem(state, body.member)
    if problem:
        return Reject("invalid_member", problem)
    if refusal := removed_for_good(state, body.member.node):
        return Reject("removed", refusal)
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
    keys = with_brought(state, command, body)
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
    after = _without_member(state, body.node)
    if state.feature_level < RECORDS_LEVEL:
        keys = {
            key: replace(entry, revoked=entry.revoked or _expelled(entry, body))
            for key, entry in after.keys.items()
        }
        return Change(replace(after, keys=keys), "left", body.node, _left(member))
    if not body.revoke_keys:
        return Change(after, "left", body.node, _left(member))
    found = endings(state, (body.node,), body.keep_keys, body.end_keys)
    if found.problem:
        return Reject("keys", found.problem)
    after = replace(
        after,
        keys=ended(state.keys, found.ends, state.version + 1),
        removed=with_removed(state.removed, (body.node,)),
    )
    text = f"{member.name} was removed for good"
    if found.ends:
        text += f"; ended with it: key {', '.join(found.ends)}"
    return Change(after, "left", body.node, text[:EVENT_TEXT_MAX_CHARS])


def lapse(state: State, _command: Command, body: Lapse) -> Change | Reject:
    member = state.members.get(body.node)
    if member is None:
        return Reject("not_member", f"{short(body.node)} is not a member")
    if member.role is Role.VOTER or body.node in state.inventories:
        return Reject(
            "not_idle", f"{member.name} has been here: {REMOVE.of(body.node)} takes it out"
        )
    keys = without_brought(state.keys, body.node)
    if keys is None:
        return Reject("keys", "the last admin key does not end by itself")
    after = replace(_without_member(state, body.node), keys=keys)
    text = f"{member.name} was let in and never linked: its seat lapses"
    return Change(after, "left", body.node, text)


def _without_member(state: State, node: NodeId) -> State:
    after = without_replicas(state, node)
    return replace(
        after,
        members={key: entry for key, entry in after.members.items() if key != node},
        inventories={k: v for k, v in after.inventories.items() if k != node},
        copies=_copies_without(after.copies, node),
        failures={k: v for k, v in after.failures.items() if v.node != node},
        outcomes={k: v for k, v in after.outcomes.items() if k != node},
    )


def _left(member: Member) -> str:
    return f"{member.name} left the cluster"


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
    problem = _news_problem(state, body)
    if problem:
        return Reject("invalid_member", problem)
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
    speeds = [s for d in body.inventory.devices for s in (d.speed, d.prefill_speed)]
    if not all(0.0 <= speed <= SPEED_MAX for speed in speeds):  # Nor is it "not a number".
        return Reject("invalid_inventory", f"a device computes 0 to {SPEED_MAX:g} tokens a second")
    if state.inventories.get(node) == body.inventory:
        return Change(state)
    after = replace(state, inventories={**state.inventories, node: body.inventory})
    after = _without_what_no_longer_fits(after, node)
    return Change(after, "inventory", node, f"{state.members[node].name}: {len(ids)} device(s)")


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


def _member_problem(member: Member) -> str:
    if not member.node or not member.certificate:
        return "a member has an id and a certificate"
    if len(member.certificate) > CERTIFICATE_MAX_BYTES:
        return f"a certificate has at most {CERTIFICATE_MAX_BYTES} bytes"
    if not 0 < len(member.name) <= NAME_MAX_CHARS:
        return f"a name has 1 to {NAME_MAX_CHARS} characters"
    return ""


def _news_problem(state: State, news: Member | UpdateMember) -> str:
    """What a member says of itself is bounded before the state keeps it."""
    if state.feature_level < RECORDS_LEVEL:
        return ""
    if not all(0 <= port <= PORT_MAX for port in (news.link_port, news.api_port)):
        return f"a port is 0 to {PORT_MAX}"
    words = (news.version, news.instance_id, *news.addresses[:ADDRESSES_MAX])
    if any(len(word) > NEWS_MAX_CHARS for word in words):
        return f"a version, an instance or an address has at most {NEWS_MAX_CHARS} characters"
    if isinstance(news, Member) and len(news.addresses) > ADDRESSES_MAX:
        return f"a member has at most {ADDRESSES_MAX} addresses"
    return ""


MEMBER_HANDLERS: Mapping[type[Any], Handler] = {
    Found: found,
    TakeControl: take_control,
    Admit: admit,
    Remove: remove,
    Lapse: lapse,
    SetRole: set_role,
    UpdateMember: update_member,
    SayAway: say_away,
    SetWindow: set_window,
    CloseWindow: close_window,
    MarkDown: mark_down,
    SetDraining: set_draining,
    ReportInventory: report_inventory,
    PutSettings: put_settings,
    RaiseFeatureLevel: raise_feature_level,
}
