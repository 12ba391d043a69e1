"""The page that Prometheus reads: names, labels, limits, and what a scrape finds."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Mapping

import aiohttp
import pytest
from fixtures.api_service import ADMIN, HOST, MODEL, NODE, USER, FakeService, api_key
from fixtures.cluster_status import NAS, RIG1, lab, replica
from prometheus_client import REGISTRY, Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families as plain_families

from aivailable.core.ids import key_hash, key_id
from aivailable.core.serving.histogram import WAIT_BOUNDS_S, Histogram
from aivailable.core.serving.status import ClusterStatus, DeploymentStatus, DeviceStatus
from aivailable.core.state.records import ApiKey, Scope
from aivailable.peer.api.monitoring import exposition, metrics
from aivailable.peer.api.monitoring.exposition import OPENMETRICS, PLAIN, Page
from aivailable.peer.api.monitoring.metrics import Ended, Labels, Metrics
from aivailable.peer.api.server import ApiServer
from aivailable.peer.service import NodeFigures, RaftFigures
from aivailable.raft.figures import RaftTally
from aivailable.wire.peer import Demand

Families = Mapping[str, Metric]

BEFORE = {
    "aivailable_build_info": ("gauge", {"version"}),
    "aivailable_up": ("gauge", set()),
    "aivailable_quorum": ("gauge", set()),
    "aivailable_members": ("gauge", set()),
    "aivailable_voters": ("gauge", set()),
    "aivailable_applied_version": ("gauge", set()),
    "aivailable_replicas": ("gauge", {"status"}),
    "aivailable_requests_in_flight": ("gauge", set()),
    "aivailable_requests_total": ("counter", {"route", "outcome"}),
    "aivailable_prompt_tokens_total": ("counter", set()),
    "aivailable_cached_prompt_tokens_total": ("counter", set()),
    "aivailable_completion_tokens_total": ("counter", set()),
    "aivailable_drafted_tokens_total": ("counter", set()),
    "aivailable_accepted_draft_tokens_total": ("counter", set()),
    "aivailable_time_to_first_token_seconds_bucket": ("histogram", {"le"}),
    "aivailable_time_to_first_token_seconds_sum": ("histogram", set()),
    "aivailable_time_to_first_token_seconds_count": ("histogram", set()),
}
"""Every series of version 0.1.0: dashboards and alerts are written for these."""


class Node:
    """What a page reads of a node."""

    def __init__(self, status: ClusterStatus, figures: NodeFigures | None = None) -> None:
        self._status = status
        self._figures = figures or NodeFigures()

    def status(self) -> ClusterStatus:
        return self._status

    def figures(self) -> NodeFigures:
        return self._figures


class Still:
    """A loop that once stood still."""

    stalls = 2
    stalled_s = 1.75

    def longest_s(self) -> float:
        return 1.5


def page(node: Node, counts: Metrics | None = None) -> Page:
    return Page(node, counts or Metrics(), Still())


def families(shown: Page) -> Families:
    body, content_type = shown.render("")
    assert content_type == PLAIN
    return {one.name: one for one in plain_families(body.decode())}


def value(found: Families, name: str, /, **labels: str) -> float:
    """The sample with this name and exactly these labels."""
    samples = [
        sample.value
        for family in found.values()
        for sample in family.samples
        if sample.name == f"aivailable_{name}" and sample.labels == labels
    ]
    assert len(samples) == 1, (name, labels, samples)
    return float(samples[0])


def labelled(found: Families, name: str, label: str) -> list[str]:
    family = found[f"aivailable_{name}"]
    return sorted({sample.labels[label] for sample in family.samples})


def ended(**changes: object) -> Ended:
    plain = Ended("/v1/completions", "done", "tiny", None, 10, 4, 3, 0.2, 0.02)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_series_of_before_keep_names_kinds_and_labels() -> None:
    counts = Metrics()
    counts.request_ended(ended())
    found = families(page(Node(lab()), counts))
    now = {
        sample.name: (family.type, set(sample.labels))
        for family in found.values()
        for sample in family.samples
    }
    assert {name: now.get(name) for name in BEFORE} == BEFORE
    assert all(family.documentation for family in found.values())


def test_both_forms_tell_the_same() -> None:
    counts = Metrics()
    counts.request_ended(ended(key=api_key("secret text", Scope.USER)))
    shown = page(Node(lab()), counts)
    accepts = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    body, content_type = shown.render(accepts)
    assert content_type == OPENMETRICS
    assert body.endswith(b"# EOF\n")
    newer = {one.name: one for one in openmetrics_families(body.decode())}
    older = families(shown)
    assert newer.keys() == older.keys()
    for name, family in newer.items():
        assert (family.type, family.documentation) == (older[name].type, older[name].documentation)
        assert {(s.name, str(s.labels), s.value) for s in family.samples} == {
            (s.name, str(s.labels), s.value) for s in older[name].samples
        }


def test_a_page_leaves_the_global_registry_alone() -> None:
    before = {family.name for family in REGISTRY.collect()}
    first, second = page(Node(lab())), page(Node(lab()))
    assert families(first).keys() == families(second).keys()
    assert {family.name for family in REGISTRY.collect()} == before
    assert not any(name.startswith("aivailable") for name in before)


def test_importing_the_page_starts_nothing() -> None:
    """No thread, no child, no file that stays open: several nodes run in one process."""
    code = (
        "import gc, os, signal, threading\n"
        "hooks = list(gc.callbacks), signal.getsignal(signal.SIGTERM)\n"
        "import aivailable.peer.api.monitoring.exposition\n"
        "assert threading.active_count() == 1\n"
        "assert (list(gc.callbacks), signal.getsignal(signal.SIGTERM)) == hooks\n"
        "assert len(os.listdir('/proc/self/fd')) <= 4, os.listdir('/proc/self/fd')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_guesses_are_counted_by_the_node_that_computed_them() -> None:
    counted = {"drafted_tokens": 9, "accepted_tokens": 5}
    own = (replica(name, RIG1, "rig1", "ready", **counted) for name in "ab")
    other = replica("c", NAS, "nas", "ready", drafted_tokens=100, accepted_tokens=100)
    found = families(page(Node(dataclasses.replace(lab(), replicas=(*own, other)))))
    assert value(found, "drafted_tokens_total") == 18
    assert value(found, "accepted_draft_tokens_total") == 10


def test_devices_are_those_of_this_node() -> None:
    status = lab()
    here = status.nodes[0]
    hot = dataclasses.replace(
        here.devices[0], utilization=0.75, temperature_c=71.0, power_w=180.5, free_bytes=None
    )
    here = dataclasses.replace(here, devices=(hot, here.devices[1]))
    found = families(page(Node(dataclasses.replace(status, nodes=(here, *status.nodes[1:])))))
    name = {"device": "GTX 1080 Ti-0", "name": "GTX 1080 Ti", "backend": "cuda"}
    assert value(found, "device_total_bytes", **name) == 11 << 30
    assert value(found, "device_claimed_bytes", **name) == 5 << 30
    assert value(found, "device_utilization_ratio", **name) == 0.75
    assert value(found, "device_temperature_celsius", **name) == 71
    assert value(found, "device_power_watts", **name) == 180.5
    # What nobody has read is not shown as zero.
    assert labelled(found, "device_free_bytes", "name") == ["RX 580"]
    assert labelled(found, "device_power_watts", "name") == ["GTX 1080 Ti"]
    assert labelled(found, "device_total_bytes", "name") == ["GTX 1080 Ti", "RX 580"]


def test_deployments_are_told_as_this_node_sees_the_cluster() -> None:
    counts = Metrics()
    counts.request_ended(ended(deployment="qwen2.5-7b"))
    counts.request_ended(ended(deployment="qwen2.5-7b", outcome="failed"))
    queued = replica("qwen2.5-7b", RIG1, "rig1", "ready", waiting=3)
    status = dataclasses.replace(lab(), replicas=(queued,))
    figures = NodeFigures(demand=(Demand("qwen2.5-7b", 2), Demand("llama-70b", 1)))
    found = families(page(Node(status, figures), counts))
    assert value(found, "deployment_replicas_ready", deployment="qwen2.5-7b") == 1
    assert value(found, "deployment_replicas_wanted", deployment="llama-70b") == 1
    assert value(found, "deployment_replicas_max", deployment="llama-70b") == 1
    assert value(found, "deployment_waiting_requests", deployment="qwen2.5-7b") == 5
    assert value(found, "deployment_waiting_requests", deployment="llama-70b") == 1
    assert value(found, "deployment_waiting_requests", deployment="mistral-7b") == 0
    for outcome in ("done", "failed"):
        labels = {"deployment": "qwen2.5-7b", "outcome": outcome}
        assert value(found, "deployment_requests_total", **labels) == 1


def test_replicas_are_those_of_this_node() -> None:
    own = replica(
        "tiny", RIG1, "rig1", "loading",
        slots_busy=3, waiting=2, progress=0.5, tokens_per_s=12.5, requests=9, steps=70,
        prompt_tokens=40, cached_tokens=30, generated_tokens=20, finished=5, cancelled=2, failed=1,
    )  # fmt: skip
    waits = Histogram(WAIT_BOUNDS_S)
    waits.observe(0.3)
    figures = NodeFigures(queue_waits={own.replica: waits, "gone#1.1": waits})
    status = dataclasses.replace(lab(), replicas=(own, replica("far", NAS, "nas", "ready")))
    found = families(page(Node(status, figures)))
    labels = {"replica": "tiny#1.1", "deployment": "tiny"}
    assert value(found, "replica_status", status="loading", **labels) == 1
    for name, expected in {
        "replica_slots": 4,
        "replica_slots_busy": 3,
        "replica_waiting_requests": 2,
        "replica_load_progress_ratio": 0.5,
        "replica_tokens_per_second": 12.5,
        "replica_requests_total": 9,
        "replica_steps_total": 70,
        "replica_prompt_tokens_total": 40,
        "replica_cached_prompt_tokens_total": 30,
        "replica_generated_tokens_total": 20,
        "replica_queue_wait_seconds_count": 1,
    }.items():
        assert value(found, name, **labels) == expected, name
        family = name.removesuffix("_total").removesuffix("_count")
        assert labelled(found, family, "replica") == ["tiny#1.1"], name
    ends = found["aivailable_replica_ended_requests"].samples
    assert {one.labels["outcome"]: one.value for one in ends} == {
        "finished": 5, "cancelled": 2, "failed": 1,
    }  # fmt: skip
    for bound, count in (("0.25", 0), ("0.5", 1), ("+Inf", 1)):
        assert value(found, "replica_queue_wait_seconds_bucket", le=bound, **labels) == count


def test_keys_are_named_by_id_and_label_never_by_their_text() -> None:
    counts = Metrics()
    hashed = key_hash("the secret")
    key = ApiKey(key_id(hashed), hashed, Scope.USER, 'lab "two"\\\n', 1)
    counts.request_ended(ended(key=key))
    counts.request_ended(ended(key=key, outcome="cancelled"))
    counts.request_ended(ended())
    shown = page(Node(lab()), counts)
    found = families(shown)
    labels = {"key": key.key_id, "label": key.label}
    assert value(found, "key_requests_total", **labels) == 2
    assert value(found, "key_prompt_tokens_total", **labels) == 20
    assert value(found, "key_completion_tokens_total", **labels) == 6
    assert value(found, "key_requests_total", key="none", label="") == 1
    body, _ = shown.render("")
    assert b"secret" not in body
    assert hashed.encode() not in body


def test_raft_and_loop_tell_their_troubles() -> None:
    tally = RaftTally(
        faults=1, malformed=2, unsent=3, not_of_voters=5, unauthorized=4, over_allowance=6
    )
    figures = NodeFigures(raft=RaftFigures(True, 90, 92, 17, tally))
    found = families(page(Node(lab(), figures)))
    for name, expected in {
        "raft_leading": 1,
        "raft_term": 7,
        "raft_commit_index": 90,
        "raft_last_index": 92,
        "raft_log_entries": 17,
        "raft_faults_total": 1,
        "raft_malformed_messages_total": 2,
        "raft_unsent_messages_total": 3,
        "raft_messages_not_of_voters_total": 5,
        "raft_unauthorized_commands_total": 4,
        "raft_commands_over_allowance_total": 6,
        "loop_longest_stall_seconds": 1.5,
        "loop_stalls_total": 2,
        "loop_stalled_seconds_total": 1.75,
    }.items():
        assert value(found, name) == expected, name
    assert "aivailable_raft_term" not in families(page(Node(lab())))


def test_labels_beyond_the_limit_share_one_name() -> None:
    labels = Labels(2)
    assert [labels.of(name) for name in ("a", "b", "c", "a", "d")] == [
        "a", "b", "other", "a", "other",
    ]  # fmt: skip


def test_no_number_of_keys_and_deployments_makes_the_page_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "KEYS_MAX", 2)
    monkeypatch.setattr(metrics, "DEPLOYMENTS_MAX", 3)
    counts = Metrics()
    for number in range(20):
        key = api_key(f"key {number}", Scope.USER)
        counts.request_ended(ended(key=key, deployment=f"model{number}"))
    made = tuple(
        DeploymentStatus(f"model{number}", "m", "d" * 64, "ready", replicas_ready=1)
        for number in range(30)
    )
    status = dataclasses.replace(lab(), deployments=made)
    found = families(page(Node(status, NodeFigures(demand=(Demand("model25", 4),))), counts))
    assert len(labelled(found, "key_requests", "key")) == 3
    assert value(found, "key_requests_total", key="other", label="") == 18
    assert value(found, "key_completion_tokens_total", key="other", label="") == 54
    names = ["model0", "model1", "model2", "other"]
    assert labelled(found, "deployment_requests", "deployment") == names
    assert value(found, "deployment_requests_total", deployment="other", outcome="done") == 17
    assert labelled(found, "deployment_replicas_ready", "deployment") == names
    assert value(found, "deployment_replicas_ready", deployment="other") == 27
    assert value(found, "deployment_waiting_requests", deployment="other") == 4


def test_no_number_of_devices_and_replicas_makes_the_page_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exposition, "DEVICES_SHOWN_MAX", 1)
    monkeypatch.setattr(exposition, "REPLICAS_SHOWN_MAX", 2)
    status = lab()
    cards = tuple(DeviceStatus(f"d{one}", "P40", "cuda", 100, 10, 50, 20) for one in range(4))
    here = dataclasses.replace(status.nodes[0], devices=cards)
    own = tuple(replica(f"m{one}", RIG1, "rig1", "ready", generated_tokens=5) for one in range(5))
    found = families(page(Node(dataclasses.replace(status, nodes=(here,), replicas=own))))
    other = {"device": "other", "name": "other", "backend": "other"}
    assert labelled(found, "device_total_bytes", "device") == ["d0", "other"]
    assert value(found, "device_total_bytes", **other) == 300
    assert value(found, "device_used_by_others_bytes", **other) == 60
    assert labelled(found, "replica_slots", "replica") == ["m0#1.1", "m1#1.1", "other"]
    labels = {"replica": "other", "deployment": "other"}
    assert value(found, "replica_generated_tokens_total", **labels) == 15
    assert labelled(found, "replica_status", "replica") == ["m0#1.1", "m1#1.1"]


async def _scraped(
    http: aiohttp.ClientSession, accept: str = "*/*", key: str | None = None
) -> tuple[str, str]:
    headers = {"Accept": accept} | ({"Authorization": f"Bearer {key}"} if key else {})
    async with http.get("/metrics", headers=headers) as response:
        assert response.status == 200
        return await response.text(), response.headers["Content-Type"]


async def test_a_scrape_finds_what_clients_did(
    http: aiohttp.ClientSession, service: FakeService, server: ApiServer
) -> None:
    ask = {"model": MODEL, "prompt": "x"}
    for key in (USER, USER, ADMIN):
        headers = {"Authorization": f"Bearer {key}"}
        async with http.post("/v1/completions", json=ask, headers=headers) as response:
            assert response.status == 200
    async with http.post("/v1/completions", json={**ask, "model": "none"}) as response:
        assert response.status == 404
    text, content_type = await _scraped(http)
    assert content_type == PLAIN
    found = {one.name: one for one in plain_families(text)}
    user = api_key(USER, Scope.USER)
    labels = {"key": user.key_id, "label": USER}
    assert value(found, "key_requests_total", **labels) == 2
    assert value(found, "key_prompt_tokens_total", **labels) == 14
    assert value(found, "key_completion_tokens_total", **labels) == 6
    assert value(found, "key_requests_total", key="none", label="") == 1
    assert value(found, "deployment_requests_total", deployment=MODEL, outcome="done") == 3
    assert labelled(found, "deployment_requests", "deployment") == [MODEL]
    assert value(found, "routing_wait_seconds_count") == 3
    assert value(found, "routing_wait_seconds_bucket", le="0.05") == 3
    assert value(found, "loop_stalls_total") >= 0
    text, content_type = await _scraped(http, "application/openmetrics-text; version=1.0.0")
    assert content_type == OPENMETRICS
    newer = {one.name: one for one in openmetrics_families(text)}
    # The scrape before was a request, too.
    assert value(newer, "requests_total", route="/metrics", outcome="done") == 1
    assert value(newer, "key_requests_total", **labels) == 2
    assert HOST != NODE  # The replica runs elsewhere, and its node tells of it.
    assert not found["aivailable_replica_slots"].samples
