"""What the controller proposes next: a fixpoint of state and liveness.

Owns the decision which members are down, which replicas go and where new ones come, and the
explanation of what cannot be done. Proposes only: `apply` checks everything again. Called by
`peer.controller` after every change, and by `core.view` for explanations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aivailable.core.commands import Body, CloseWindow, Drain, MarkDown, Place, RaiseFeatureLevel
from aivailable.core.ids import Digest, NodeId, replica_id
from aivailable.core.levels import lowest
from aivailable.core.liveness import Liveness, is_alive, missing_by_majority
from aivailable.core.placement import Placed, Refused, explain, is_current, place
from aivailable.core.records import Deployment, Replica, Role, Status
from aivailable.core.state import State

PASSES_MAX = 64
"""Each but the last adds a command; what is left over is planned after these are applied."""

_UNSTARTED = frozenset({Status.PLACED, Status.FETCHING})
"""No process yet, so nobody is served."""


def plan(
    state: State, liveness: Liveness, now_ms: int, *, window_expired: bool = False
) -> tuple[Body, ...]:
    """Every change due now. Applying them, liveness unchanged, leaves nothing to do.

    `now_ms` is part of the contract for rules of time; none of today's decisions depends on it.
    `window_expired`: this node's monotonic clock says that the open join window has run out.
    """
    return _Planning(state, liveness).run(window_expired).bodies()


def explanations(state: State, liveness: Liveness) -> Mapping[str, str]:
    """By deployment: why it does not have the replicas that it should. Absent = nothing to say."""
    return _Planning(state, liveness).run(window_expired=False).notes


def copies_wanted(state: State) -> tuple[tuple[NodeId, Digest], ...]:
    """(node, digest) for every verified copy that is missing and not under way for a replica.

    Decided from the replicated state alone, so that all nodes choose the same ones: a node that
    has just started and hears nobody must not fetch everything. A member that is down still
    counts as a holder: a reboot loses no file. Each node's agent acts on its own lines.
    """
    wanted: list[tuple[NodeId, Digest]] = []
    held = dict.fromkeys(state.members, 0)
    for digest in sorted(state.copies):
        for node in state.copies[digest]:
            held[node] = held.get(node, 0) + 1
    for digest in sorted({deployment.digest for deployment in state.deployments.values()}):
        if digest not in state.models:
            continue
        copies = max(entry.copies for entry in state.deployments.values() if entry.digest == digest)
        having = {node for node in state.holders(digest) if node in state.members}
        having |= {entry.node for entry in state.replicas.values() if entry.digest == digest}
        candidates = sorted(
            (node for node in state.members if node not in having and not state.members[node].down),
            key=lambda node: (_no_host(state, node), held[node], _no_voter(state, node), node),
        )
        for node in candidates[: max(0, min(copies, len(state.members)) - len(having))]:
            wanted.append((node, digest))
            held[node] += 1
    return tuple(wanted)


class _Planning:
    """One planning pass over a projection: the state as it will be when the answer is applied."""

    def __init__(self, state: State, liveness: Liveness) -> None:
        self._state = state
        self._liveness = liveness
        self._bodies: list[Body] = []
        self._reserved: list[str] = []
        self.notes: dict[str, str] = {}

    def bodies(self) -> tuple[Body, ...]:
        return tuple(self._bodies)

    def run(self, window_expired: bool) -> _Planning:
        if self._state.cluster is None:
            return self
        if window_expired and self._state.window.open:
            self._bodies.append(CloseWindow(self._state.window.serial))
        self._raise_feature_level()
        for node in sorted(self._state.members):
            self._mark(node)
        for key in sorted(self._state.replicas):
            if self._state.replicas[key].deployment not in self._state.deployments:
                self._drain(self._state.replicas[key])
        for _ in range(PASSES_MAX):
            before = len(self._bodies)
            self._pass()
            if len(self._bodies) == before:
                break
        return self

    def _pass(self) -> None:
        """Settle each deployment in turn. What a later one drains may be room for an earlier one,
        so passes are repeated until one changes nothing; reservations and notes are of one pass.
        """
        self.notes.clear()
        kept = {key: r for key, r in self._state.replicas.items() if key not in self._reserved}
        self._state = replace(self._state, replicas=kept)
        self._reserved.clear()
        for deployment in sorted(
            self._state.deployments.values(),
            key=lambda entry: (-entry.priority, -entry.need_bytes, entry.name),
        ):
            self._settle(deployment)

    def _raise_feature_level(self) -> None:
        level = lowest(self._state.members.values())
        if level > self._state.feature_level:
            self._bodies.append(RaiseFeatureLevel(level))

    def _mark(self, node: NodeId) -> None:
        """Down when a majority misses it; up again when we hear it and no majority misses it."""
        state, member = self._state, self._state.members[node]
        after_ms = state.settings.down_after_ms
        missed = missing_by_majority(self._liveness, sorted(state.members), node, after_ms)
        if missed and not member.down:
            self._set_down(node, True)
        elif member.down and not missed and is_alive(self._liveness, node, after_ms):
            self._set_down(node, False)

    def _set_down(self, node: NodeId, down: bool) -> None:
        self._bodies.append(MarkDown(node, down))
        state = self._state
        replicas = {
            key: entry for key, entry in state.replicas.items() if not (down and entry.node == node)
        }
        member = replace(state.members[node], down=down)
        self._state = replace(state, members={**state.members, node: member}, replicas=replicas)

    def _settle(self, deployment: Deployment) -> None:
        """Bring one deployment to its number of replicas, moving as little as possible."""
        while len(self._current(deployment)) < deployment.replicas_min:
            answer = place(self._state, self._liveness, deployment)
            if isinstance(answer, Refused):
                self._make_room(deployment, answer)
                break
            self._place(deployment, answer)
        self._retire(deployment)

    def _current(self, deployment: Deployment) -> tuple[Replica, ...]:
        """Replicas that count towards the target: up to date, on a node that is not draining."""
        return tuple(
            replica
            for replica in self._state.replicas_of(deployment.name)
            if is_current(replica, deployment) and not self._leaving(replica)
        )

    def _leaving(self, replica: Replica) -> bool:
        member = self._state.members.get(replica.node)
        return member is not None and member.draining

    def _outdated(self, deployment: Deployment) -> tuple[Replica, ...]:
        """Replicas to be replaced that have not been told to go yet; idle ones first."""
        current = {replica.replica for replica in self._current(deployment)}
        replicas = [
            replica
            for replica in self._state.replicas_of(deployment.name)
            if not replica.drain and replica.replica not in current
        ]
        return tuple(sorted(replicas, key=lambda entry: entry.status is Status.READY))

    def _make_room(self, deployment: Deployment, refused: Refused) -> None:
        """A replica fits nowhere now. What is draining may make room; else the replicas that it
        replaces are drained first, as few as suffice, and only if that helps. The room is then
        reserved, so that no other deployment is placed into it meanwhile."""
        going = {key for key, entry in self._state.replicas.items() if entry.drain}
        to_drain: list[Replica] = []
        answer = self._place_without(deployment, going)
        for replica in self._outdated(deployment):
            if isinstance(answer, Placed):
                break
            going.add(replica.replica)
            to_drain.append(replica)
            answer = self._place_without(deployment, going)
        if isinstance(answer, Refused):
            self.notes[deployment.name] = self._unplaceable(deployment, refused)
            self._drop_unstarted(deployment)
            return
        for replica in to_drain:
            if replica.node == answer.node:  # What goes elsewhere makes no room here.
                self._drain(replica)
        waits_for = ", ".join(
            key for key in sorted(going) if self._state.replicas[key].node == answer.node
        )
        self.notes[deployment.name] = f"waits for room: {waits_for or 'a replica'} must go first"
        reservation = f"{deployment.name}#reserved"
        self._reserved.append(reservation)
        self._project_replica(deployment, reservation, answer)

    def _place_without(self, deployment: Deployment, going: set[str]) -> Placed | Refused:
        return place(self._state, self._liveness, deployment, going)

    def _unplaceable(self, deployment: Deployment, refused: Refused) -> str:
        have, want = len(self._current(deployment)), deployment.replicas_min
        count = f"{have} of {want} replicas placed: " if have else ""
        old = ", ".join(entry.replica for entry in self._outdated(deployment))
        still = f"; {old} goes on meanwhile" if old else ""
        return f"{count}{explain(refused)}{still}"

    def _drop_unstarted(self, deployment: Deployment) -> None:
        """Nothing new starts on a draining node, also when there is no other place; what already
        runs there serves until one is found or the operator ends it."""
        for replica in self._outdated(deployment):
            if self._leaving(replica) and replica.status in _UNSTARTED:
                self._drain(replica)

    def _retire(self, deployment: Deployment) -> None:
        """Old replicas go as new ones become ready, superfluous ones at once."""
        current = self._current(deployment)
        ready = sum(replica.status is Status.READY for replica in current)
        waiting = [r for r in self._outdated(deployment) if r.status is Status.READY]
        for replica in self._outdated(deployment):
            replaced = len(current) >= deployment.replicas_min
            if replica.status is not Status.READY and replaced:
                self._drain(replica)
        for replica in waiting[: max(0, ready + len(waiting) - deployment.replicas_min)]:
            self._drain(replica)
        keep_order = sorted(current, key=lambda entry: entry.status is not Status.READY)
        for replica in keep_order[deployment.replicas_max :]:
            self._drain(replica)

    def _drain(self, replica: Replica) -> None:
        if replica.drain:
            return
        self._bodies.append(Drain(replica.replica))
        drained = replace(replica, drain=True)
        self._state = replace(
            self._state, replicas={**self._state.replicas, replica.replica: drained}
        )

    def _place(self, deployment: Deployment, placed: Placed) -> None:
        number = self._state.replica_numbers.get(deployment.name, 0) + 1
        name = replica_id(deployment.name, deployment.generation, number)
        self._bodies.append(
            Place(name, deployment.name, deployment.generation, placed.node, placed.claims)
        )
        self._project_replica(deployment, name, placed)
        self._state = replace(
            self._state,
            replica_numbers={**self._state.replica_numbers, deployment.name: number},
        )

    def _project_replica(self, deployment: Deployment, name: str, placed: Placed) -> None:
        replica = Replica(
            replica=name,
            deployment=deployment.name,
            digest=deployment.digest,
            generation=deployment.generation,
            node=placed.node,
            claims=placed.claims,
            context=deployment.context,
            slots=deployment.slots,
        )
        self._state = replace(self._state, replicas={**self._state.replicas, name: replica})


def _no_host(state: State, node: NodeId) -> bool:
    inventory = state.inventories.get(node)
    return inventory is None or not inventory.devices


def _no_voter(state: State, node: NodeId) -> bool:
    return state.members[node].role is not Role.VOTER
