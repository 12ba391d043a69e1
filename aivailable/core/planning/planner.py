"""What the controller proposes next: a fixpoint of state and liveness.

Owns the decision which members are down, which replicas go and where new ones come, and the
explanation of what cannot be done. Proposes only: `apply` checks everything again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby

from aivailable.core.cluster.liveness import Liveness, is_alive, missing_members, never_heard
from aivailable.core.ids import Digest, NodeId, replica_id
from aivailable.core.planning.capacity import CapacityLedger, Placed, is_current
from aivailable.core.planning.idle_policy import ReplicaUsage
from aivailable.core.planning.memory_pressure import crowded_out
from aivailable.core.planning.packing import Fresh, Packing
from aivailable.core.planning.placement import explain, refusal
from aivailable.core.planning.preemption import victims
from aivailable.core.planning.scaling import grows, most_wanted
from aivailable.core.state.commands import (
    Body,
    CloseWindow,
    Drain,
    Lapse,
    MarkDown,
    Place,
    RaiseFeatureLevel,
)
from aivailable.core.state.keys import RECORDS_LEVEL, without_brought
from aivailable.core.state.learned_memory import sized
from aivailable.core.state.levels import lowest
from aivailable.core.state.records import Deployment, Replica, Role, Status
from aivailable.core.state.state import State

PASSES_MAX = 64
"""Each but the last changes something; what is left over is planned after it is applied."""

SEAT_LAPSE_MS = 300_000
"""Who was let in and never linked is a member no more after this long: a link takes seconds."""

_UNSTARTED = frozenset({Status.PLACED, Status.FETCHING})
"""No process yet, so nobody is served."""


def plan(state: State, liveness: Liveness, *, window_expired: bool = False) -> tuple[Body, ...]:
    """Every change due now. Applying them, liveness unchanged, leaves nothing to do.

    `window_expired`: this node's monotonic clock says that the open join window has run out.
    """
    planning = _Planning(state, liveness)
    planning.run(window_expired)
    return planning.bodies()


def explanations(state: State, liveness: Liveness) -> Mapping[str, str]:
    """By deployment: why it does not have the replicas that it should. Absent = nothing to say."""
    planning = _Planning(state, liveness)
    planning.run(window_expired=False)
    return planning.notes()


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
    coming: dict[Digest, set[NodeId]] = {}
    for replica in state.replicas.values():
        for digest in state.files_for(replica):
            coming.setdefault(digest, set()).add(replica.node)
    homes: dict[Digest, tuple[NodeId, ...]] = {}
    for digest, users in _users_of_files(state).items():
        copies = max(entry.copies for entry in users)
        having = {node for node in state.holders(digest) if node in state.members}
        having |= coming.get(digest, set())
        # A companion is of use where its model is.
        beside = {node for entry in users for node in homes.get(entry.digest, ())}
        candidates = sorted(
            (node for node in state.members if node not in having and not state.members[node].down),
            key=lambda node: (
                node not in beside,
                _no_host(state, node),
                held[node],
                _no_voter(state, node),
                node,
            ),
        )
        chosen = candidates[: max(0, min(copies, len(state.members)) - len(having))]
        for node in chosen:
            wanted.append((node, digest))
            held[node] += 1
        homes[digest] = (*sorted(having), *chosen)
    return tuple(wanted)


def _users_of_files(state: State) -> dict[Digest, list[Deployment]]:
    """By digest, those that need the file: the models' first, then the companions'."""
    models: dict[Digest, list[Deployment]] = {}
    companions: dict[Digest, list[Deployment]] = {}
    for name in sorted(state.deployments):
        deployment = state.deployments[name]
        for digest in state.files_of(deployment):
            found = models if digest == deployment.digest else companions
            found.setdefault(digest, []).append(deployment)
    by_digest = {digest: models[digest] for digest in sorted(models)}
    return by_digest | {
        digest: companions[digest] for digest in sorted(companions) if digest not in models
    }


class _Planning:
    """One planning pass over a projection: the state as it will be when the answer is applied.

    What is placed is tentative until the end (`Fresh`): it may still be moved to fit more.
    """

    def __init__(self, state: State, liveness: Liveness) -> None:
        self._state = state
        self._liveness = liveness
        self._bodies: list[Body] = []
        self._reserved: list[Replica] = []
        self._waits: dict[str, str] = {}
        self._refused: dict[str, Deployment] = {}
        self._ledger = CapacityLedger(state, liveness)
        self._packing = Packing(self._ledger)
        self._usage = ReplicaUsage(state, liveness)
        self._order: list[Deployment] = []

    def bodies(self) -> tuple[Body, ...]:
        """The commands, in the order in which they are proposed; places by importance."""
        numbers = dict(self._state.replica_numbers)
        bodies = list(self._bodies)
        rank = {deployment.name: index for index, deployment in enumerate(self._order)}
        order = sorted(
            self._packing.fresh.values(), key=lambda e: (rank[e.deployment.name], e.placed.node)
        )
        for tentative in order:
            # What is automatic takes only what nobody else was given or waits for.
            self._packing.grow(tentative.replica)
            fresh = self._packing.fresh[tentative.replica]
            name, generation = fresh.deployment.name, fresh.deployment.generation
            numbers[name] = numbers.get(name, 0) + 1
            replica = replica_id(name, generation, numbers[name])
            node, claims = fresh.placed.node, fresh.placed.claims
            grown = fresh.context, fresh.slots
            bodies.append(Place(replica, name, generation, node, claims, *grown))
        return tuple(bodies)

    def notes(self) -> dict[str, str]:
        """By deployment: why it lacks replicas."""
        notes = dict(self._waits)
        for deployment in self._refused.values():
            notes[deployment.name] = self._unplaceable(deployment)
        return notes

    def run(self, window_expired: bool) -> None:
        state = self._state
        if state.cluster is None:
            return
        if window_expired and state.window.open:
            self._bodies.append(CloseWindow(state.window.serial))
        self._raise_feature_level()
        self._lapse()
        self._mark()
        self._ledger = CapacityLedger(self._state, self._liveness)
        self._packing = Packing(self._ledger)
        for replica in self._ledger.all():
            if replica.deployment not in state.deployments:
                self._drain(replica, "not deployed any more")
        self._clear()
        self._order = sorted(
            sized(state),
            key=lambda entry: (-entry.priority, -entry.need_bytes, entry.name),
        )
        for _ in range(PASSES_MAX):
            if not self._pass():
                break

    def _clear(self) -> None:
        """What owners and other programs want back goes whatever it is good for."""
        settings = self._state.settings
        crowded = crowded_out(
            self._ledger, self._liveness, self._usage, self._state.deployments, settings
        )
        for replica in self._ledger.all():
            if self._usage.is_paused(replica.node):
                self._drain(replica, "its owner wants the machine for a while")
            elif replica in crowded:
                self._drain(replica, "other programs leave its device no memory")

    def _pass(self) -> bool:
        """Settle each deployment in turn; whether that changed anything. What a later one drains
        may be room for an earlier one, so passes are repeated until one changes nothing;
        reservations and notes are of one pass."""
        bodies, fresh = len(self._bodies), dict(self._packing.fresh)
        for reserved in self._reserved:
            self._ledger.take(reserved)
        self._reserved.clear()
        self._waits.clear()
        self._refused.clear()
        for _, group in groupby(self._order, key=lambda entry: entry.priority):
            equals = list(group)
            for deployment in equals:  # Everybody's first replica comes before a second one.
                self._settle(deployment, min(1, self._wanted(deployment)))
            for deployment in equals:
                self._settle(deployment, self._wanted(deployment))
        self._exchange()
        for deployment in self._order:
            self._retire(deployment)
        self._grow()
        return len(self._bodies) > bodies or self._packing.fresh != fresh

    def _raise_feature_level(self) -> None:
        level = lowest(self._state.members.values())
        if level > self._state.feature_level:
            self._bodies.append(RaiseFeatureLevel(level))

    def _lapse(self) -> None:
        """Who was let in and never came. One that ever came has told its devices."""
        state = self._state
        if state.feature_level < RECORDS_LEVEL:
            return
        for node in never_heard(self._liveness, sorted(state.members), SEAT_LAPSE_MS):
            keys = without_brought(state.keys, node)
            came = node in state.inventories or state.members[node].role is Role.VOTER
            if came or keys is None:
                continue
            self._bodies.append(Lapse(node))
            members = {key: entry for key, entry in state.members.items() if key != node}
            state = replace(state, members=members, keys=keys)
        self._state = state

    def _mark(self) -> None:
        """Down when a majority misses it; up again when we hear it and no majority misses it."""
        state, after_ms = self._state, self._state.settings.down_after_ms
        missing = missing_members(self._liveness, sorted(state.members), after_ms)
        members, lost = dict(state.members), set()
        for node in sorted(members):
            member, missed = members[node], node in missing
            if missed != member.down and (missed or is_alive(self._liveness, node, after_ms)):
                self._bodies.append(MarkDown(node, missed))
                members[node] = replace(member, down=missed)
                if missed:
                    lost.add(node)
        kept = {key: entry for key, entry in state.replicas.items() if entry.node not in lost}
        self._state = replace(state, members=members, replicas=kept)

    def _settle(self, deployment: Deployment, count: int) -> None:
        """Bring one deployment to `count` replicas, moving as little as possible."""
        if deployment.name in self._refused or deployment.name in self._waits:
            return
        while len(self._current(deployment)) < count:
            found = self._ledger.find(deployment)
            if found is not None:
                self._packing.add(deployment, found)
            elif not self._packing.squeeze(deployment) and not self._make_room(deployment):
                return

    def _exchange(self) -> None:
        """What this plan places may be smaller than what it has to refuse."""
        if not self._packing.fresh:
            return
        changed = True
        while changed:
            changed = False
            for deployment in tuple(self._refused.values()):
                counts = {entry.name: len(self._current(entry)) for entry in self._order}
                given_up = self._packing.exchange(deployment, counts)
                if given_up is None:
                    continue
                changed = True
                if counts[deployment.name] + 1 >= self._wanted(deployment):
                    del self._refused[deployment.name]
                self._refused[given_up.name] = given_up
        for deployment in tuple(self._refused.values()):
            del self._refused[deployment.name]
            self._settle(deployment, self._wanted(deployment))

    def _grow(self) -> None:
        """One more of what is busy, where there is room that nobody else waits for."""
        able = [entry for entry in self._order if entry.replicas_max > 1]
        current = {entry.name: self._current(entry) for entry in able}
        for deployment in most_wanted(able, current, self._usage):
            if deployment.name in self._waits or deployment.name in self._refused:
                continue
            if grows(deployment, current[deployment.name], self._usage, self._state.settings):
                found = self._ledger.find(deployment)
                if found is not None:
                    self._packing.add(deployment, found)

    def _wanted(self, deployment: Deployment) -> int:
        """Replicas that it shall have: `min`, and one on demand."""
        return self._usage.wanted(deployment, self._ledger.of(deployment.name))

    def _current(self, deployment: Deployment) -> list[Replica]:
        """Replicas that count towards the target: up to date, on a node that is not draining."""
        return [
            replica
            for replica in self._ledger.of(deployment.name)
            if is_current(replica, deployment) and not self._leaving(replica)
        ]

    def _leaving(self, replica: Replica) -> bool:
        member = self._state.members.get(replica.node)
        return member is not None and member.draining

    def _outdated(self, deployment: Deployment) -> list[Replica]:
        """Replicas to be replaced that have not been told to go yet; idle ones first."""
        replicas = [
            replica
            for replica in self._ledger.of(deployment.name)
            if not replica.drain and (not is_current(replica, deployment) or self._leaving(replica))
        ]
        return sorted(replicas, key=lambda entry: entry.status is Status.READY)

    def _make_room(self, deployment: Deployment) -> bool:
        """A replica fits nowhere now. What is draining may make room; else the replicas that it
        replaces are drained first, else less important ones: as few as suffice, and only if that
        helps. The room is then reserved, so that nobody else is placed into it meanwhile. True:
        there is room at once, since what gives way was only planned."""
        going = [entry for entry in self._ledger.all() if entry.drain]
        for replica in going:
            self._ledger.take(replica)
        to_drain: list[Replica] = []
        answer = self._ledger.find(deployment)
        for replica in self._outdated(deployment) if answer is None else ():
            to_drain.append(replica)
            self._ledger.take(replica)
            answer = self._ledger.find(deployment)
            if answer is not None:
                break
        for replica in to_drain:
            self._ledger.put(replica)
        if answer is None:
            to_drain, answer = victims(
                self._ledger, deployment, self._state.deployments, self._usage
            )
        for replica in going:
            self._ledger.put(replica)
        if answer is None:
            self._refused[deployment.name] = deployment
            self._drop_unstarted(deployment)
            return False
        planned = [replica for replica in to_drain if replica.replica in self._packing.fresh]
        for replica in planned:
            self._packing.drop(replica.replica)
        if planned and self._ledger.find(deployment) is not None:
            return True
        running = [replica for replica in to_drain if replica not in planned]
        self._reserve(deployment, answer, running, going)
        return False

    def _reserve(
        self,
        deployment: Deployment,
        answer: Placed,
        to_drain: list[Replica],
        going: list[Replica],
    ) -> None:
        for replica in to_drain:
            if replica.node == answer.node:  # What goes elsewhere makes no room here.
                self._drain(replica, f"makes room for {deployment.name}")
        first = sorted(r.replica for r in (*going, *to_drain) if r.node == answer.node)
        waits_for = ", ".join(first) or "a replica"
        self._waits[deployment.name] = f"waits for room: {waits_for} must go first"
        reserved = Fresh(f"{deployment.name}#reserved", deployment, answer).in_ledger()
        self._reserved.append(reserved)
        self._ledger.put(reserved)

    def _unplaceable(self, deployment: Deployment) -> str:
        have, want = len(self._current(deployment)), self._wanted(deployment)
        refused = refusal(self._state, self._liveness, deployment, self._ledger)
        count = f"{have} of {want} replicas placed: " if have else ""
        old = ", ".join(entry.replica for entry in self._outdated(deployment))
        still = f"; {old} goes on meanwhile" if old else ""
        return f"{count}{explain(refused)}{still}"

    def _drop_unstarted(self, deployment: Deployment) -> None:
        """Nothing new starts on a draining node, also when there is no other place; what already
        runs there serves until one is found or the operator ends it."""
        for replica in self._outdated(deployment):
            if self._leaving(replica) and replica.status in _UNSTARTED:
                self._drain(replica, "its node drains")

    def _retire(self, deployment: Deployment) -> None:
        """Old replicas go as new ones become ready, superfluous ones at once, and idle ones when
        their time is over."""
        current, wanted = self._current(deployment), self._wanted(deployment)
        ready = sum(replica.status is Status.READY for replica in current)
        waiting = [r for r in self._outdated(deployment) if r.status is Status.READY]
        for replica in self._outdated(deployment):
            replaced = len(current) >= wanted
            if replica.status is not Status.READY and replaced:
                self._drain(replica, "replaced")
        for replica in waiting[: max(0, ready + len(waiting) - wanted)]:
            self._drain(replica, "replaced")
        keep_order = sorted(current, key=lambda entry: entry.status is not Status.READY)
        for replica in keep_order[deployment.replicas_max :]:
            self._drain(replica, f"more than {deployment.replicas_max}")
        for replica in self._usage.surplus(deployment, keep_order[: deployment.replicas_max]):
            idle_s = self._usage.idle_ms(replica) // 1000
            self._drain(replica, f"idle for {idle_s} s")

    def _drain(self, replica: Replica, why: str) -> None:
        if replica.drain:
            return
        self._bodies.append(Drain(replica.replica, why))
        self._ledger.put(replace(replica, drain=True))


def _no_host(state: State, node: NodeId) -> bool:
    inventory = state.inventories.get(node)
    return inventory is None or not inventory.devices


def _no_voter(state: State, node: NodeId) -> bool:
    return state.members[node].role is not Role.VOTER
