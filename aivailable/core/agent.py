"""What one node does so that its workers match what is placed on it.

Owns the decision of each step; starts, fetches and kills nothing. Level-triggered: it is given the
whole picture after every change of the state or of a worker, and asks for the same action again
until the picture has changed. The shell must therefore treat a transfer that is under way, and a
report that is under way, as asked for already.

Not to be confused with `peer.serving.agent`, the shell that takes these steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from aivailable.core.backoff import delay_s
from aivailable.core.ids import Digest, NodeId, ReplicaId
from aivailable.core.planning.placement import file_words
from aivailable.core.planning.planner import copies_wanted
from aivailable.core.state.commands import ReportCopy, ReportReplica
from aivailable.core.state.records import Replica, Status
from aivailable.core.state.state import State

DRAIN_DEADLINE_MS = 60_000
"""Requests still running so long after their replica stopped accepting are cut."""
WORKER_ATTEMPTS_MAX = 3
"""Starts in a row that may fail before the replica is reported as failed."""
WORKER_STABLE_MS = 60_000
"""A worker that was ready for so long starts its count of failures anew."""
RESTART_BASE_S = 1.0
RESTART_CAP_S = 30.0


@dataclass(frozen=True, slots=True)
class LocalWorker:
    """What this node knows of its own attempt at one replica. Times: ms, monotonic.

    `status`: fetching (a transfer, no process), loading, ready, draining (accepts nothing new),
    failed (no process; another try at `next_try_ms`).
    """

    replica: ReplicaId
    status: Status
    requests_in_flight: int = 0
    since_ms: int = 0
    """When it took on this status."""
    attempts: int = 0
    """Failures in a row."""
    next_try_ms: int = 0
    reason: str = ""
    used_bytes: Mapping[str, int] = field(default_factory=dict)
    """Measured after load, by device id; of a failed load what it would have needed."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """A file of a replica placed here. Who is asked for it, the transfer decides."""

    replica: ReplicaId
    digest: Digest


@dataclass(frozen=True, slots=True)
class FetchCopy:
    """One more safe copy; of lower urgency than Fetch."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Launch:
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class StopAccepting:
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class Kill:
    """End the worker or the transfer and forget the LocalWorker."""

    replica: ReplicaId
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    body: ReportReplica | ReportCopy


Action = Fetch | FetchCopy | Launch | StopAccepting | Kill | Report


def reconcile(
    node: NodeId,
    state: State,
    workers: tuple[LocalWorker, ...],
    held_digests: Collection[Digest],
    now_ms: int,
) -> tuple[Action, ...]:
    """The steps due now. `now_ms`: monotonic, the clock of LocalWorker.

    `held_digests` must be complete: what it lacks is reported as lost, so the shell calls this
    only once its store has been read. A claim ends only by a report of `gone` or `failed`, which
    is made when no process is left.
    """
    local = {worker.replica: worker for worker in workers}
    placed = state.replicas_on(node)
    mine = [replica.replica for replica in placed]
    actions: list[Action] = [
        Kill(name, "no longer placed here") for name in sorted(local) if name not in mine
    ]
    for replica in placed:
        worker = local.get(replica.replica)
        if replica.drain:
            actions += _drain(replica, worker, now_ms)
        elif worker is None:
            actions += _start(node, state, replica, held_digests)
        else:
            actions += _keep(node, state, replica, worker, held_digests, now_ms)
    if node in state.members:
        actions += _copies(node, state, held_digests)
    return tuple(actions)


def after_failure(
    worker: LocalWorker,
    reason: str,
    now_ms: int,
    jitter: float,
    needed_bytes: Mapping[str, int] | None = None,
) -> LocalWorker:
    """The worker's entry after its process died or its file could not be fetched.

    `jitter` in [0, 1). Failures count in a row: a worker that was ready for WORKER_STABLE_MS
    starts anew. `needed_bytes`: by device, when it had claimed less; the same again is in vain.
    """
    served = worker.status in (Status.READY, Status.DRAINING)
    stable = served and now_ms - worker.since_ms >= WORKER_STABLE_MS
    attempts = 1 if stable else worker.attempts + 1
    wait_s = delay_s(attempts, base_s=RESTART_BASE_S, cap_s=RESTART_CAP_S, jitter=jitter)
    return LocalWorker(
        replica=worker.replica,
        status=Status.FAILED,
        since_ms=now_ms,
        attempts=attempts,
        next_try_ms=now_ms + round(wait_s * 1000),
        reason=reason,
        used_bytes=needed_bytes or {},
    )


def _start(
    node: NodeId, state: State, replica: Replica, held: Collection[Digest]
) -> tuple[Action, ...]:
    """Launch it, or fetch all that is not here."""
    lacking = _lacking(state, replica, held)
    if not lacking:
        return (Launch(replica.replica),)
    fetches = []
    for digest in lacking:
        if not _held_elsewhere(node, state, digest):
            what = file_words(state.deployments.get(replica.deployment), digest)
            return (_report(replica, Status.FAILED, f"no other node holds {what}"),)
        fetches.append(Fetch(replica.replica, digest))
    return tuple(fetches)


def _lacking(state: State, replica: Replica, held: Collection[Digest]) -> list[Digest]:
    return [digest for digest in state.files_for(replica) if digest not in held]


def _keep(
    node: NodeId,
    state: State,
    replica: Replica,
    worker: LocalWorker,
    held: Collection[Digest],
    now_ms: int,
) -> tuple[Action, ...]:
    if worker.status is Status.FAILED:
        if worker.used_bytes or worker.attempts >= WORKER_ATTEMPTS_MAX:
            return (_report(replica, Status.FAILED, worker.reason, worker.used_bytes),)
        due = _start(node, state, replica, held) if now_ms >= worker.next_try_ms else ()
        return (*due, *_transition(replica, Status.LOADING, worker))
    if worker.status is Status.FETCHING and not _lacking(state, replica, held):
        return (Launch(replica.replica),)
    if worker.status in (Status.FETCHING, Status.LOADING, Status.READY):
        return _transition(replica, worker.status, worker)
    return ()


def _transition(replica: Replica, status: Status, worker: LocalWorker) -> tuple[Action, ...]:
    """Report what differs, one allowed step at a time (core.state.changes.models.FORWARD)."""
    if replica.status is status:
        return ()
    if status is Status.READY and replica.status is not Status.LOADING:
        status = Status.LOADING
    if status is Status.FETCHING and replica.status is Status.READY:
        status = Status.LOADING
    if status is Status.READY:
        return (_report(replica, status, "", worker.used_bytes),)
    return (_report(replica, status, worker.reason),)


def _drain(replica: Replica, worker: LocalWorker | None, now_ms: int) -> tuple[Action, ...]:
    if worker is None:
        return (_report(replica, Status.GONE, "drained"),)
    if worker.status not in (Status.READY, Status.DRAINING):
        return (Kill(replica.replica, "drained before it was ready"),)
    told = () if replica.status is Status.DRAINING else (_report(replica, Status.DRAINING, ""),)
    if worker.status is Status.READY:
        return (StopAccepting(replica.replica), *told)
    if worker.requests_in_flight == 0:
        return (Kill(replica.replica, "drained"),)
    if now_ms - worker.since_ms >= DRAIN_DEADLINE_MS:
        return (Kill(replica.replica, "drain deadline passed"),)
    return told


def _copies(node: NodeId, state: State, held: Collection[Digest]) -> list[Action]:
    """Tell the cluster what is held here of its files, and fetch what should be."""
    actions: list[Action] = []
    for digest in sorted(state.files()):
        known, have = node in state.holders(digest), digest in held
        if known != have:
            actions.append(Report(ReportCopy(node, digest, have)))
    for where, digest in copies_wanted(state):
        if where == node and digest not in held and _held_elsewhere(node, state, digest):
            actions.append(FetchCopy(digest))
    return actions


def _held_elsewhere(node: NodeId, state: State, digest: Digest) -> bool:
    """Whether another member holds the file, also one that is down: it may come back."""
    return any(key != node and key in state.members for key in state.holders(digest))


def _report(
    replica: Replica, status: Status, reason: str, used: Mapping[str, int] | None = None
) -> Report:
    return Report(ReportReplica(replica.replica, replica.node, status, reason, used or {}))
