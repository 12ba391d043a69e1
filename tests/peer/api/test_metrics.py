"""The page that Prometheus reads, without a server around it."""

from __future__ import annotations

import dataclasses

from fixtures.cluster_status import NAS, RIG1, lab, replica

from aivailable.peer.api.metrics import Metrics


def test_guesses_are_counted_by_the_node_that_computed_them() -> None:
    counted = {"drafted_tokens": 9, "accepted_tokens": 5}
    own = (replica("a", RIG1, "rig1", "ready", **counted) for _ in range(2))
    other = replica("b", NAS, "nas", "ready", drafted_tokens=100, accepted_tokens=100)
    status = dataclasses.replace(lab(), replicas=(*own, other))
    lines = Metrics().text(status).splitlines()
    assert "aivailable_drafted_tokens_total 18" in lines
    assert "aivailable_accepted_draft_tokens_total 10" in lines
