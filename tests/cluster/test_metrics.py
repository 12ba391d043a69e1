"""What a client does through one peer of a real cluster is found in the series of the right one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from fixtures.peers import PeerProcess, Peers, State, host_of
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

Families = Mapping[str, Metric]
TOKENS = 8


async def scrape(peers: Peers, peer: PeerProcess) -> Families:
    """As Prometheus reads it."""
    async with peers.session.get(
        f"{peer.url}/metrics",
        headers={
            "Authorization": f"Bearer {peer.key}",
            "Accept": "application/openmetrics-text; version=1.0.0",
        },
    ) as response:
        assert response.status == 200
        text = await response.text()
    return {family.name: family for family in text_string_to_metric_families(text)}


def total(found: Families, name: str, **labels: str) -> float:
    """The sum of a family's samples that have these labels, among others."""
    return sum(
        sample.value
        for sample in found[f"aivailable_{name}"].samples
        if labels.items() <= sample.labels.items() and not sample.name.endswith("_bucket")
    )


async def test_a_request_through_a_forwarding_peer_is_counted_where_it_belongs(
    three: Peers,
) -> None:
    await three.deploy_fake(three.peers[0])
    states = await three.states()
    host = host_of(states[0], "fake")
    hosting = next(p for p, s in zip(three.peers, states, strict=True) if s["here"] == host)
    ingress = next(peer for peer in three.peers if peer is not hosting)
    made = await three.ask(ingress, "POST", "/cluster/v1/keys", {"label": "the lab"})
    assert made.status == 201, made.body
    key_id = made.body["key_id"]
    for _ in range(2):
        request = {"model": "fake", "prompt": "hello", "max_tokens": TOKENS}
        answer = await three.ask(
            ingress, "POST", "/v1/completions", request, key=made.body["key"], limit_s=90.0
        )
        assert answer.status == 200, answer.body
        assert answer.headers["X-AIvailable-Host"] == host[:8]
    prompt_tokens = 2 * answer.body["usage"]["prompt_tokens"]

    def counted(seen: list[State]) -> bool:
        return bool(seen[0]["replicas"][0]["generated_tokens"] == 2 * TOKENS)

    await three.until("the worker's counters are told", counted, [hosting])
    at_ingress, at_host = [await scrape(three, one) for one in (ingress, hosting)]
    key = {"key": key_id, "label": "the lab"}
    assert total(at_ingress, "key_requests", **key) == 2
    assert total(at_ingress, "key_prompt_tokens", **key) == prompt_tokens
    assert total(at_ingress, "key_completion_tokens", **key) == 2 * TOKENS
    assert total(at_ingress, "deployment_requests", deployment="fake", outcome="done") == 2
    assert total(at_host, "key_requests", key=key_id) == 0, "the host took no request"
    replica = {"deployment": "fake"}
    assert total(at_host, "replica_generated_tokens", **replica) == 2 * TOKENS
    assert total(at_host, "replica_requests", **replica) == 2
    assert total(at_host, "replica_ended_requests", outcome="finished", **replica) == 2
    assert total(at_host, "replica_slots", **replica) == 2
    assert total(at_host, "replica_status", status="ready", **replica) == 1
    assert not at_ingress["aivailable_replica_slots"].samples
    waits = at_host["aivailable_replica_queue_wait_seconds"].samples
    assert [one.value for one in waits if one.name.endswith("_count")] == [2]
    for found in (at_ingress, at_host):
        assert total(found, "deployment_replicas_ready", deployment="fake") == 1
        assert total(found, "deployment_replicas_wanted", deployment="fake") == 1
        assert total(found, "device_total_bytes") == 64 << 20
        assert total(found, "raft_term") >= 1
        assert total(found, "raft_faults") == 0
    assert total(at_ingress, "raft_leading") + total(at_host, "raft_leading") <= 1
