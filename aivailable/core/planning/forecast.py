"""What the planner would come to if something were changed: nothing is proposed or kept.

Owns the projection: the change through the real `apply`, then plan after plan with every agent
doing as told, until nothing is left to do. Decides nothing of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aivailable.core.cluster.liveness import Liveness, fresh_heartbeat, is_alive
from aivailable.core.ids import CommandId, NodeId
from aivailable.core.planning.placement import PlacementRefused, place
from aivailable.core.planning.planner import explanations, plan
from aivailable.core.serving.status import PlanStep
from aivailable.core.state.commands import Body, Command, ReportReplica, SetDraining
from aivailable.core.state.machine import apply
from aivailable.core.state.node_names import shown_name
from aivailable.core.state.records import CommandOutcome, Control, Replica, Status
from aivailable.core.state.state import State

ROUNDS_MAX = 16
"""Plans projected one after the other; a chain of replacements needs about three."""
SEQ_BASE = 1 << 60
"""Sequence numbers of projected commands: no proposer has come so far."""

_STARTING = (Status.PLACED, Status.FETCHING, Status.LOADING)


@dataclass(frozen=True, slots=True)
class Forecast:
    """`after` is the state once all is done; `liveness` what would be heard then."""

    outcome: CommandOutcome
    """What `apply` says to the changes: the first refusal ends it, with nothing planned."""
    after: State
    liveness: Liveness
    notes: Mapping[str, str]
    """By deployment: why it would not have the replicas that it should."""


def forecast(state: State, liveness: Liveness, *changes: Body) -> Forecast:
    """The end of what committing the changes would begin, if every load succeeds."""
    return _Projection(state, liveness).run(changes)


def steps(before: State, end: Forecast) -> tuple[PlanStep, ...]:
    """The plan as a diff: what is kept, what comes, what goes, what cannot be."""
    after = end.after
    found = [
        _step(before, "drain", replica, _why_gone(after, replica))
        for key, replica in sorted(before.replicas.items())
        if key not in after.replicas or after.replicas[key].drain
    ]
    found += [
        _step(after, "keep" if key in before.replicas else "place", replica, "")
        for key, replica in sorted(after.replicas.items())
        if not replica.drain
    ]
    found += [
        PlanStep("lack", name, reason=end.notes[name])
        for name in sorted(end.notes)
        if name in after.deployments
    ]
    return tuple(found)


def usable(state: State, liveness: Liveness, node: NodeId) -> bool:
    """Whether something new could be placed on the node, if there is room."""
    member, inventory = state.members.get(node), state.inventories.get(node)
    heartbeat = fresh_heartbeat(liveness, node, state.settings.down_after_ms)
    return (
        member is not None
        and not member.down
        and not member.draining
        and not (heartbeat is not None and heartbeat.paused_left_s)
        and inventory is not None
        and bool(inventory.devices)
        and is_alive(liveness, node, state.settings.down_after_ms)
    )


def stranded(state: State, liveness: Liveness, node: NodeId) -> tuple[str, ...]:
    """Deployments that run on the node and would have no other place if it were drained: they go
    dark when it is switched off. Sorted."""
    end = forecast(state, liveness, SetDraining(node, True))
    found = []
    for name in sorted({replica.deployment for replica in state.replicas_on(node)}):
        deployment = end.after.deployments.get(name)
        if deployment is None:
            continue
        elsewhere = any(
            not replica.drain and replica.node != node for replica in end.after.replicas_of(name)
        )
        if not elsewhere and isinstance(
            place(end.after, end.liveness, deployment), PlacementRefused
        ):
            found.append(name)
    return tuple(found)


class _Projection:
    def __init__(self, state: State, liveness: Liveness) -> None:
        # Ours is the only hand here, so that the planner's commands are taken.
        self._state = replace(state, control=Control(liveness.here, 1))
        self._liveness = liveness
        self._seq = SEQ_BASE

    def run(self, changes: Sequence[Body]) -> Forecast:
        outcome = CommandOutcome(accepted=True)
        for change in changes:
            if outcome.accepted:
                outcome = self._apply(change, self._liveness.here)
        if outcome.accepted:
            for _ in range(ROUNDS_MAX):
                bodies = plan(self._state, self._liveness)
                moved = [self._apply(body, self._liveness.here).accepted for body in bodies]
                if not self._obey() and not any(moved):
                    break
        notes = explanations(self._state, self._liveness)
        return Forecast(outcome, self._state, self._liveness, notes)

    def _apply(self, body: Body, proposer: NodeId) -> CommandOutcome:
        self._seq += 1
        command = Command(
            CommandId(proposer, self._seq), body, "forecast", control=self._state.control
        )
        self._state, outcome = apply(self._state, command)
        return outcome

    def _obey(self) -> bool:
        """What was placed becomes ready, what drains goes; whether anything did."""
        moved = False
        after_ms = self._state.settings.down_after_ms
        for replica in list(self._state.replicas.values()):
            if not is_alive(self._liveness, replica.node, after_ms):
                continue
            if replica.drain:
                moved = True
                self._report(replica, Status.GONE)
                if replica.status in (Status.READY, Status.DRAINING):
                    self._free(replica, 1)
            elif replica.status in _STARTING:
                moved = True
                self._report(replica, Status.LOADING)
                self._report(replica, Status.READY)
                self._free(replica, -1)
        return moved

    def _report(self, replica: Replica, status: Status) -> None:
        self._apply(ReportReplica(replica.replica, replica.node, status), replica.node)

    def _free(self, replica: Replica, sign: int) -> None:
        """The live free bytes follow, so that free and own use together stay what they were."""
        heard = self._liveness.heard.get(replica.node)
        if heard is None:
            return
        held = {
            claim.device_id: replica.used_bytes.get(claim.device_id, claim.claim_bytes)
            for claim in replica.claims
        }
        loads = tuple(
            replace(load, free_bytes=load.free_bytes + sign * held.get(load.device_id, 0))
            for load in heard.heartbeat.devices
        )
        fresh = replace(heard, heartbeat=replace(heard.heartbeat, devices=loads))
        self._liveness = replace(
            self._liveness, heard={**self._liveness.heard, replica.node: fresh}
        )


def _step(state: State, action: str, replica: Replica, reason: str) -> PlanStep:
    return PlanStep(
        action,
        replica.deployment,
        replica.replica,
        replica.node,
        shown_name(state.members, replica.node),
        tuple(device_name(state, replica.node, claim.device_id) for claim in replica.claims),
        sum(claim.claim_bytes for claim in replica.claims),
        reason,
    )


def device_name(state: State, node: NodeId, device_id: str) -> str:
    """The device as people know it, and which of several."""
    device = state.device(node, device_id)
    return f"{device.name} {device_id}" if device is not None else device_id


def _why_gone(after: State, replica: Replica) -> str:
    deployment = after.deployments.get(replica.deployment)
    if deployment is None:
        return "not deployed any more"
    member = after.members.get(replica.node)
    if member is None or member.down:
        return "its node is down"
    if member.draining:
        return "its node drains"
    return "replaced" if replica.generation != deployment.generation else "makes room"
