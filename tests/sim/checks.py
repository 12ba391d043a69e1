"""What must hold in every run, judged from outside of the code under test.

Owns the history of each cluster as first seen: version → command and outcome. Every other node and
every replay must repeat it. Fed by a hook around `apply` and by the workload's acknowledgements;
read at the end of a run by sim.run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from sim.loop import Process
from sim.trace import Trace

from aivailable.core.state.codec import decode_command
from aivailable.core.state.commands import TakeControl
from aivailable.core.state.invariants import violations
from aivailable.core.state.records import CommandOutcome
from aivailable.core.state.state import LIVE_STATUSES, State, state_digest
from aivailable.errors import SchemaError

DIGEST_EVERY = 8
"""Every this many versions the whole state is hashed; payload and outcome at each."""
PROBLEMS_MAX = 40
DAMAGE_SAID = "it is set aside, and this node rejoins as an observer"


@dataclass
class History:
    """One cluster's agreed sequence."""

    cluster_id: str
    steps: dict[int, tuple[str, CommandOutcome]] = field(default_factory=dict)
    """Version → (SHA-256 of the payload, outcome)."""
    digests: dict[int, str] = field(default_factory=dict)
    accepted_reasons: dict[str, int] = field(default_factory=dict)
    """Reason of accepted commands → version: how acknowledgements are found again."""
    controllers: dict[int, str] = field(default_factory=dict)
    """Term → node."""
    versions: dict[Process, int] = field(default_factory=dict)
    """Highest version by process."""

    @property
    def length(self) -> int:
        return max(self.steps, default=0)


class Checker:
    """Collects problems; a run is good when there are none."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.histories: dict[str, History] = {}
        self.problems: list[str] = []
        self.leaders: dict[tuple[str, int], str] = {}
        """(cluster, term) → node seen leading in it."""
        self.acked: list[tuple[str, str]] = []
        """(cluster id, reason) of every acknowledged command."""
        self.refusals: list[tuple[str, str]] = []
        self.excused: dict[str, int] = {}
        """Machines whose disk was damaged on purpose → how often they have said so."""

    def logged(self, process: Process, text: str) -> None:
        """A living process logged an error: the program says itself that it failed."""
        if DAMAGE_SAID in text and process.name in self.excused:
            self.excused[process.name] += 1
            self._trace.add(process.name, text)
        else:
            self.problem(f"{process!r} logged {text}")

    def problem(self, text: str) -> None:
        """Keep a violation; the first ones say it all."""
        self._trace.add("checker", f"PROBLEM {text}")
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)

    def applied(
        self, process: Process, payload: bytes, before: State, after: State, outcome: CommandOutcome
    ) -> None:
        """One entry was applied in `process`."""
        if not process.alive:
            return
        cluster_id = "" if after.cluster is None else after.cluster.cluster_id
        history = self.histories.setdefault(cluster_id, History(cluster_id))
        version = after.version
        if version != before.version + 1:
            self.problem(f"{process!r}: version {before.version} → {version} in one step")
        step = (hashlib.sha256(payload).hexdigest(), outcome)
        known = history.steps.get(version)
        self._trace.add(process.name, f"applied {version} {step[0][:8]} {outcome.code or 'ok'}")
        if known is None:
            history.steps[version] = step
            self._learn(history, version, payload, after, outcome)
        elif known != step:
            self.problem(
                f"{process!r} applied {_words(payload)} as version {version} of {cluster_id[:6]},"
                f" where another had {known[0][:8]}"
            )
        self._follow(history, process, before.version, after)

    def restored(self, process: Process, before: State, after: State) -> None:
        """A snapshot replaced the state in `process`."""
        if not process.alive or after.cluster is None:
            return
        cluster_id = after.cluster.cluster_id
        history = self.histories.setdefault(cluster_id, History(cluster_id))
        self._trace.add(process.name, f"restored {after.version}")
        if after.version > history.length:
            self.problem(f"{process!r} restored version {after.version}, which nobody applied")
        if before.version > after.version:
            self.problem(f"{process!r} went back from {before.version} to {after.version}")
        self._compare(history, process, after)
        history.versions[process] = after.version

    def acknowledged(self, cluster_id: str, reason: str) -> None:
        self.acked.append((cluster_id, reason))

    def refused(self, cluster_id: str, reason: str) -> None:
        """A proposer was told that its command had no effect."""
        self.refusals.append((cluster_id, reason))

    def leads(self, process: Process, cluster_id: str, term: int) -> None:
        """A process says that it leads in `term`."""
        known = self.leaders.setdefault((cluster_id, term), process.name)
        if known != process.name:
            self.problem(f"two leaders in term {term}: {known} and {process.name}")

    def judge_promises(self, final: str) -> None:
        """Every acknowledged command is in the history that everybody has now; no refused is."""
        for cluster_id, reason in self.refusals:
            if reason in self.histories[cluster_id].accepted_reasons:
                self.problem(f"{reason} was refused and took effect")
        for cluster_id, reason in self.acked:
            if reason not in self.histories[cluster_id].accepted_reasons:
                self.problem(f"{reason} was acknowledged and is in no history")
            elif cluster_id != final:
                self.problem(f"{reason} was acknowledged by a cluster that is gone")

    def _learn(
        self, history: History, version: int, payload: bytes, after: State, outcome: CommandOutcome
    ) -> None:
        for broken in violations(after):
            self.problem(f"version {version}: {broken}")
        for broken in oversubscribed(after):
            self.problem(f"version {version}: {broken}")
        try:
            command = decode_command(payload)
        except SchemaError as error:
            self.problem(f"version {version} is no command: {error}")
            return
        if not outcome.accepted:
            return
        history.accepted_reasons.setdefault(command.reason, version)
        if isinstance(command.body, TakeControl):
            known = history.controllers.setdefault(command.body.term, command.body.node)
            if known != command.body.node:
                self.problem(f"two controllers in term {command.body.term}")

    def _follow(self, history: History, process: Process, was: int, after: State) -> None:
        last = history.versions.get(process)
        if last is not None and was != last:
            self.problem(f"{process!r} was at version {last} and applied on top of {was}")
        history.versions[process] = after.version
        if after.version % DIGEST_EVERY == 0:
            self._compare(history, process, after)

    def _compare(self, history: History, process: Process, state: State) -> None:
        digest = state_digest(state)
        known = history.digests.setdefault(state.version, digest)
        if known != digest:
            self.problem(f"{process!r} has another state at version {state.version}")


def oversubscribed(state: State) -> tuple[str, ...]:
    """Claims against totals, counted from the records alone: this file's own arithmetic."""
    claimed: dict[tuple[str, str], int] = {}
    for key in sorted(state.replicas):
        replica = state.replicas[key]
        if replica.status in LIVE_STATUSES:
            for claim in replica.claims:
                place = (replica.node, claim.device_id)
                claimed[place] = claimed.get(place, 0) + claim.claim_bytes
    found = []
    for node in sorted(state.inventories):
        for device in state.inventories[node].devices:
            bytes_here = claimed.get((node, device.device_id), 0)
            if bytes_here > device.total_bytes:
                found.append(f"{node[:8]}/{device.device_id} has {bytes_here} bytes claimed")
    return tuple(found)


def hooked_apply(
    checker: Checker,
    process_of: Callable[[], Process | None],
    original: Callable[[State, bytes], tuple[State, CommandOutcome]],
) -> Callable[[State, bytes], tuple[State, CommandOutcome]]:
    """`apply_bytes`, overheard."""

    def apply_bytes(state: State, payload: bytes) -> tuple[State, CommandOutcome]:
        after, outcome = original(state, payload)
        process = process_of()
        if process is None:
            checker.problem("apply ran on behalf of nobody")
        else:
            checker.applied(process, payload, state, after, outcome)
        return after, outcome

    return apply_bytes


def _words(payload: bytes) -> str:
    try:
        command = decode_command(payload)
    except SchemaError:
        return "bytes that are no command"
    return f"{type(command.body).__name__}({command.reason})"
