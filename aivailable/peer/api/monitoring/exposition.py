"""The page that Prometheus reads: what this node counts, and what the cluster looks like from here.

Owns the names, help texts and labels of every series; it must not count anything itself. The only
importer of prometheus_client. Nothing is registered in that library's global registry: several
nodes may run in one process, and each has a page of its own. Served by `health`.

Devices and replicas are those of this node: a Prometheus that reads every node sees each of them
once. Deployments, members and voters are as this node sees the whole cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics

from aivailable import __version__
from aivailable.core.serving.histogram import Histogram
from aivailable.core.serving.status import (
    ClusterStatus,
    DeploymentStatus,
    DeviceStatus,
    ReplicaStatus,
)
from aivailable.peer.api.monitoring.metrics import OTHER, Metrics
from aivailable.peer.service import NodeFigures

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = openmetrics.CONTENT_TYPE_LATEST
_generate_openmetrics: Callable[[CollectorRegistry], bytes] = openmetrics.generate_latest
DEVICES_SHOWN_MAX = 64
"""Devices of this node with series of their own; the bytes of further ones are summed as OTHER."""
REPLICAS_SHOWN_MAX = 64
"""Replicas of this node with series of their own; further ones are summed as OTHER."""

Row = tuple[Sequence[str], float]


class Observed(Protocol):
    """The part of `service.Observation` that is read at each scrape."""

    def status(self) -> ClusterStatus: ...

    def figures(self) -> NodeFigures: ...


class Stalls(Protocol):
    """The part of `stalls.LoopWatch` that is shown."""

    stalls: int
    stalled_s: float

    def longest_s(self) -> float: ...


class Page:
    """Reads the node when it is asked, so that no figure is older than the scrape."""

    def __init__(self, service: Observed, metrics: Metrics, stalls: Stalls) -> None:
        self._service = service
        self._metrics = metrics
        self._stalls = stalls
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type: OpenMetrics for a reader that names it among what it
        accepts, as Prometheus does, and the older text form for all others."""
        if "application/openmetrics-text" in accept:
            return _generate_openmetrics(self._registry), OPENMETRICS
        return generate_latest(self._registry), PLAIN

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        status, figures, counts = self._service.status(), self._service.figures(), self._metrics
        own = [replica for replica in status.replicas if replica.node == status.here]
        yield from _cluster(status)
        yield from _requests(counts)
        yield from _speculation(own)
        yield from _keys(counts)
        yield from _devices(status)
        yield from _deployments(status, figures, counts, own)
        yield from _replicas(own, figures)
        yield from _loop(self._stalls)
        yield from _raft(status, figures)


def _cluster(status: ClusterStatus) -> Iterator[Metric]:
    by_status: dict[str, int] = {}
    for replica in status.replicas:
        by_status[replica.status] = by_status.get(replica.status, 0) + 1
    yield _gauge(
        "build_info", "The version that this node runs.", [((__version__,), 1)], ("version",)
    )
    yield _gauge("up", "1 while this node answers.", [((), 1)])
    yield _gauge(
        "quorum",
        "1 while a leader is known and heard, so that changes can be made.",
        [((), int(status.quorum))],
    )
    yield _gauge("members", "Members of the cluster.", [((), len(status.nodes))])
    yield _gauge("voters", "Members that vote.", [((), len(status.voters))])
    yield _gauge(
        "applied_version",
        "Version of the replicated state at this node.",
        [((), status.version)],
    )
    yield _gauge(
        "replicas",
        "Replicas in the whole cluster, by status.",
        [((name,), count) for name, count in sorted(by_status.items())],
        ("status",),
    )


def _requests(counts: Metrics) -> Iterator[Metric]:
    yield _gauge(
        "requests_in_flight", "HTTP requests under way at this node.", [((), counts.in_flight)]
    )
    yield _counter(
        "requests",
        "HTTP requests that this node has taken and that have ended, by outcome.",
        [(labels, count) for labels, count in sorted(counts.requests.items())],
        ("route", "outcome"),
    )
    yield _counter(
        "prompt_tokens",
        "Prompt tokens of the requests that this node has taken.",
        [((), counts.prompt_tokens)],
    )
    yield _counter(
        "cached_prompt_tokens",
        "Those prompt tokens that did not have to be computed anew.",
        [((), counts.cached_tokens)],
    )
    yield _counter(
        "completion_tokens",
        "Tokens answered to the requests that this node has taken.",
        [((), counts.completion_tokens)],
    )
    yield _histogram(
        "time_to_first_token_seconds",
        "Time from the arrival of a request at this node to its first token.",
        [((), counts.first_token)],
    )
    yield _histogram(
        "routing_wait_seconds",
        "Time from the arrival of a request at this node until a replica was chosen for it.",
        [((), counts.routing_waits)],
    )


def _speculation(own: Sequence[ReplicaStatus]) -> Iterator[Metric]:
    drafted = sum(replica.drafted_tokens for replica in own)
    accepted = sum(replica.accepted_tokens for replica in own)
    yield _counter(
        "drafted_tokens",
        "Guesses of speculative decoding that this node's replicas have computed.",
        [((), drafted)],
    )
    yield _counter(
        "accepted_draft_tokens", "Those guesses that turned out to be right.", [((), accepted)]
    )


def _keys(counts: Metrics) -> Iterator[Metric]:
    used = [((name, use.label), use) for name, use in sorted(counts.keys.items())]
    labels = ("key", "label")
    yield _counter(
        "key_requests",
        "Requests by API key: its id, and the label that it was given.",
        [(row, use.requests) for row, use in used],
        labels,
    )
    yield _counter(
        "key_prompt_tokens",
        "Prompt tokens by API key.",
        [(row, use.prompt_tokens) for row, use in used],
        labels,
    )
    yield _counter(
        "key_completion_tokens",
        "Answered tokens by API key.",
        [(row, use.completion_tokens) for row, use in used],
        labels,
    )


def _devices(status: ClusterStatus) -> Iterator[Metric]:
    here = (node for node in status.nodes if node.node == status.here)
    found = [device for node in here for device in node.devices]
    shown, rest = found[:DEVICES_SHOWN_MAX], found[DEVICES_SHOWN_MAX:]
    if rest:
        shown.append(_other_device(rest))

    def family(
        name: str, text: str, read: Callable[[DeviceStatus], float | None]
    ) -> GaugeMetricFamily:
        rows = [((one.device_id, one.name, one.backend), read(one)) for one in shown]
        known = [(labels, value) for labels, value in rows if value is not None]
        return _gauge(name, text, known, ("device", "name", "backend"))

    yield family(
        "device_total_bytes", "Memory of a device of this node.", lambda one: one.total_bytes
    )
    yield family(
        "device_claimed_bytes", "Memory that replicas have claimed.", lambda one: one.claimed_bytes
    )
    yield family("device_free_bytes", "Memory that is free now.", lambda one: one.free_bytes)
    yield family(
        "device_used_by_others_bytes",
        "Memory that other programs use now.",
        lambda one: one.used_by_others_bytes,
    )
    yield family(
        "device_utilization_ratio",
        "Share of the time that the device computes, from 0 to 1.",
        lambda one: one.utilization,
    )
    yield family(
        "device_temperature_celsius",
        "Temperature, where the driver tells it.",
        lambda one: one.temperature_c,
    )
    yield family(
        "device_power_watts", "Power draw, where the driver tells it.", lambda one: one.power_w
    )


def _other_device(rest: Sequence[DeviceStatus]) -> DeviceStatus:
    return DeviceStatus(
        device_id=OTHER,
        name=OTHER,
        backend=OTHER,
        total_bytes=sum(one.total_bytes for one in rest),
        claimed_bytes=sum(one.claimed_bytes for one in rest),
        free_bytes=sum(one.free_bytes or 0 for one in rest),
        used_by_others_bytes=sum(one.used_by_others_bytes for one in rest),
        utilization=max(one.utilization for one in rest),
    )


def _deployments(
    status: ClusterStatus, figures: NodeFigures, counts: Metrics, own: Sequence[ReplicaStatus]
) -> Iterator[Metric]:
    name_of = counts.deployments.of

    def family(name: str, text: str, read: Callable[[DeploymentStatus], int]) -> GaugeMetricFamily:
        rows = [(name_of(one.name), read(one)) for one in status.deployments]
        return _gauge(name, text, _summed(rows), ("deployment",))

    yield family(
        "deployment_replicas_ready",
        "Replicas of a deployment that can take a request now, as this node sees the cluster.",
        lambda one: one.replicas_ready,
    )
    yield family(
        "deployment_replicas_wanted",
        "Replicas that a deployment shall have at least.",
        lambda one: one.replicas_min,
    )
    yield family(
        "deployment_replicas_max",
        "Replicas that a deployment may have at most.",
        lambda one: one.replicas_max,
    )
    yield _counter(
        "deployment_requests",
        "Requests for a deployment that this node has taken and that have ended, by outcome.",
        [(labels, count) for labels, count in sorted(counts.by_deployment.items())],
        ("deployment", "outcome"),
    )
    waiting = [(name_of(one.name), 0) for one in status.deployments]
    waiting += [(name_of(one.deployment), one.waiting) for one in figures.demand]
    waiting += [(name_of(one.deployment), one.waiting) for one in own]
    yield _gauge(
        "deployment_waiting_requests",
        "Requests that wait at this node: for a replica to be ready, or for a slot of one here.",
        _summed(waiting),
        ("deployment",),
    )


_REPLICA_GAUGES: Sequence[tuple[str, str, Callable[[ReplicaStatus], float]]] = (
    ("replica_slots", "Requests that a replica decodes at a time.", lambda one: one.slots),
    ("replica_slots_busy", "Slots that are taken now.", lambda one: one.slots_busy),
    ("replica_waiting_requests", "Requests in the queue of a replica.", lambda one: one.waiting),
    (
        "replica_tokens_per_second",
        "Tokens a second over the last seconds.",
        lambda one: one.tokens_per_s,
    ),
)
_REPLICA_COUNTERS: Sequence[tuple[str, str, Callable[[ReplicaStatus], float]]] = (
    ("replica_requests", "Requests that a worker has taken.", lambda one: one.requests),
    ("replica_steps", "Decode steps.", lambda one: one.steps),
    ("replica_prompt_tokens", "Prompt tokens.", lambda one: one.prompt_tokens),
    (
        "replica_cached_prompt_tokens",
        "Prompt tokens that were not computed anew.",
        lambda one: one.cached_tokens,
    ),
    ("replica_generated_tokens", "Generated tokens.", lambda one: one.generated_tokens),
)


def _replicas(own: Sequence[ReplicaStatus], figures: NodeFigures) -> Iterator[Metric]:
    shown, rest = list(own[:REPLICAS_SHOWN_MAX]), own[REPLICAS_SHOWN_MAX:]
    labels = ("replica", "deployment")
    yield _gauge(
        "replica_status",
        "1 for the status that a replica of this node has now.",
        [((one.replica, one.deployment, one.status), 1) for one in shown],
        (*labels, "status"),
    )
    yield _gauge(
        "replica_load_progress_ratio",
        "How far a replica is with fetching or loading, from 0 to 1.",
        [((one.replica, one.deployment), one.progress) for one in shown],
        labels,
    )
    if rest:
        shown.append(_other_replica(rest))
    for name, text, read in _REPLICA_GAUGES:
        rows = [((one.replica, one.deployment), read(one)) for one in shown]
        yield _gauge(name, text, rows, labels)
    for name, text, read in _REPLICA_COUNTERS:
        rows = [((one.replica, one.deployment), read(one)) for one in shown]
        yield _counter(name, f"{text} Counted since the worker's start.", rows, labels)
    yield _counter(
        "replica_ended_requests",
        "Requests that a worker has ended, by how. Counted since the worker's start.",
        [
            ((one.replica, one.deployment, outcome), count)
            for one in shown
            for outcome, count in (
                ("finished", one.finished),
                ("cancelled", one.cancelled),
                ("failed", one.failed),
            )
        ],
        (*labels, "outcome"),
    )
    waits = figures.queue_waits
    yield _histogram(
        "replica_queue_wait_seconds",
        "Time that requests waited in the queue of a replica for a slot.",
        [
            ((one.replica, one.deployment), waits[one.replica])
            for one in own[:REPLICAS_SHOWN_MAX]
            if one.replica in waits
        ],
        labels,
    )


def _other_replica(rest: Sequence[ReplicaStatus]) -> ReplicaStatus:
    summed = (
        *("slots", "slots_busy", "waiting", "tokens_per_s", "requests", "steps", "prompt_tokens"),
        *("cached_tokens", "generated_tokens", "finished", "cancelled", "failed"),
    )
    sums = {name: sum(getattr(one, name) for one in rest) for name in summed}
    return replace(rest[0], replica=OTHER, deployment=OTHER, **sums)


def _loop(stalls: Stalls) -> Iterator[Metric]:
    yield _gauge(
        "loop_longest_stall_seconds",
        "The longest time in the last five minutes that this node's event loop stood still.",
        [((), stalls.longest_s())],
    )
    yield _counter(
        "loop_stalls",
        "How often the event loop stood still for a tenth of a second or longer.",
        [((), stalls.stalls)],
    )
    yield _counter(
        "loop_stalled_seconds", "How long these stalls took together.", [((), stalls.stalled_s)]
    )


def _raft(status: ClusterStatus, figures: NodeFigures) -> Iterator[Metric]:
    raft = figures.raft
    if raft is None:
        return
    tally = raft.tally
    for name, text, value in (
        ("raft_leading", "1 while this node believes that it leads.", int(raft.leading)),
        ("raft_term", "Raft's term at this node.", status.term),
        ("raft_commit_index", "Where the committed part of the log ends.", raft.commit_index),
        ("raft_last_index", "Where the log of this node ends.", raft.last_index),
        ("raft_log_entries", "Entries kept since the last compaction.", raft.log_length),
    ):
        yield _gauge(name, text, [((), value)])
    for name, text, value in (
        ("raft_faults", "Ticks and messages that broke inside the Raft library.", tally.faults),
        ("raft_malformed_messages", "Messages that could not be read.", tally.malformed),
        ("raft_unsent_messages", "Messages that the link did not take.", tally.unsent),
        (
            "raft_messages_not_of_voters",
            "Messages that only a voter may send, of others, or of a term out of reach.",
            tally.not_of_voters,
        ),
        (
            "raft_unauthorized_commands",
            "Forwarded commands that their sender may not propose.",
            tally.unauthorized,
        ),
        (
            "raft_commands_over_allowance",
            "Forwarded commands beyond their sender's share.",
            tally.over_allowance,
        ),
    ):
        yield _counter(name, text, [((), value)])


def _summed(rows: Iterable[tuple[str, int]]) -> list[Row]:
    """One row for each label: several deployments may share OTHER."""
    totals: dict[str, int] = {}
    for label, value in rows:
        totals[label] = totals.get(label, 0) + value
    return [((label,), value) for label, value in sorted(totals.items())]


def _gauge(
    name: str, text: str, rows: Iterable[Row], labels: Sequence[str] = ()
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"aivailable_{name}", text, labels=labels)
    for row, value in rows:
        family.add_metric(row, value)
    return family


def _counter(
    name: str, text: str, rows: Iterable[Row], labels: Sequence[str] = ()
) -> CounterMetricFamily:
    """The library adds `_total` to the name."""
    family = CounterMetricFamily(f"aivailable_{name}", text, labels=labels)
    for row, value in rows:
        family.add_metric(row, value)
    return family


def _histogram(
    name: str,
    text: str,
    rows: Iterable[tuple[Sequence[str], Histogram]],
    labels: Sequence[str] = (),
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"aivailable_{name}", text, labels=labels)
    for row, histogram in rows:
        bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
        counts = histogram.cumulative()
        family.add_metric(row, list(zip(bounds, counts, strict=True)), sum_value=histogram.sum)
    return family
