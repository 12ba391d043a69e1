"""Examples of `apply`: catalogue, copies, deployments, placements, replica transitions."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.states import (
    DEVICE_BYTES,
    DIGEST,
    deployment,
    device,
    equipped,
    founded,
    inventory,
    model,
)

from aivailable.core.state.changes import deployments, models
from aivailable.core.state.commands import (
    Body,
    Drain,
    MarkDown,
    Place,
    PutDeployment,
    RegisterModel,
    RemoveDeployment,
    RemoveModel,
    ReportCopy,
    ReportInventory,
    ReportReplica,
)
from aivailable.core.state.records import Claim, Companion, Deployment, Status
from aivailable.core.state.state import BYTES_MAX, encode_state

OTHER = "d2" * 32


def claim(*bytes_: int) -> tuple[Claim, ...]:
    return tuple(Claim(f"d{index}", count) for index, count in enumerate(bytes_))


def test_a_registered_model_has_its_first_copy() -> None:
    cluster = founded(2)
    cluster.must(RegisterModel(model(), "n1"))
    assert cluster.state.holders(DIGEST) == ("n1",)
    cluster.must(RegisterModel(model("other name"), "n2"), by="n2")
    assert cluster.state.holders(DIGEST) == ("n1", "n2")
    assert cluster.state.models[DIGEST].name == "tiny"
    assert cluster.state.find_model("tiny") == model()
    assert cluster.state.find_model(DIGEST) == model()
    assert cluster.state.find_model("nothing") is None


def test_copies_come_and_go() -> None:
    cluster = equipped(2)
    cluster.must(ReportCopy("n2", DIGEST, True), by="n2")
    assert cluster.state.holders(DIGEST) == ("n1", "n2")
    version = len(cluster.state.events)
    cluster.must(ReportCopy("n2", DIGEST, True), by="n2")
    assert len(cluster.state.events) == version, "no news is no event"
    cluster.must(ReportCopy("n1", DIGEST, False))
    assert cluster.state.holders(DIGEST) == ("n2",)


def test_a_model_goes_when_nobody_uses_it() -> None:
    cluster = equipped(1)
    assert cluster.propose(RemoveModel(DIGEST)).code == "in_use"
    cluster.must(RemoveDeployment("tiny"))
    cluster.must(RemoveModel(DIGEST))
    assert cluster.state.models == {}
    assert cluster.state.copies == {}


def test_companions_are_held_as_long_as_something_deployed_needs_them() -> None:
    cluster = equipped(2)
    refused = cluster.propose(ReportCopy("n1", OTHER, True))
    assert (refused.accepted, refused.code) == (False, "unknown_model")
    cluster.must(PutDeployment(styled("a"), holding=(OTHER,)))
    assert cluster.state.holders(OTHER) == ("n1",)
    assert cluster.state.full_holders(cluster.state.deployments["a"]) == ("n1",)
    cluster.must(ReportCopy("n2", OTHER, True), by="n2")
    assert cluster.state.full_holders(cluster.state.deployments["a"]) == ("n1",)
    assert cluster.state.files() == {DIGEST: 60, OTHER: 40}
    cluster.must(PutDeployment(styled("b"), holding=(OTHER,)), by="n2")
    cluster.must(RemoveDeployment("a"))
    assert cluster.state.holders(OTHER) == ("n1", "n2")
    # Another file in its place: nobody asks for the first one any more.
    changed = styled("b", companions=(Companion("lora", "style.gguf", "d3" * 32, 40),))
    generation = cluster.state.deployments["b"].generation
    cluster.must(PutDeployment(changed, generation, ("d3" * 32,)))
    assert OTHER not in cluster.state.copies
    assert cluster.state.holders("d3" * 32) == ("n1",)
    cluster.must(RemoveDeployment("b"))
    assert cluster.state.files() == {DIGEST: 60}
    assert list(cluster.state.copies) == [DIGEST]


def test_another_companion_of_the_same_name_replaces_what_runs() -> None:
    cluster = equipped(1)
    cluster.must(PutDeployment(styled("a"), holding=(OTHER,)))
    replica = cluster.place("a")
    generation = cluster.state.deployments["a"].generation
    cluster.must(PutDeployment(styled("a", priority=3), generation, (OTHER,)))
    fresh = cluster.state.deployments["a"].generation
    assert cluster.state.replicas[replica].generation == fresh, "carried over"
    changed = styled("a", companions=(Companion("lora", "style.gguf", "d3" * 32, 40),))
    cluster.must(PutDeployment(changed, fresh, ("d3" * 32,)))
    assert cluster.state.replicas[replica].generation == fresh
    assert cluster.state.deployments["a"].generation > fresh


def test_deploy_change_undeploy() -> None:
    cluster = equipped(1)
    cluster.must(PutDeployment(deployment(slots=3, aliases=("nick",)), replace_generation=1))
    current = cluster.state.find_deployment("nick")
    assert current is not None
    assert (current.slots, current.generation) == (3, 2)
    assert cluster.propose(PutDeployment(deployment(), replace_generation=1)).code == "conflict"
    cluster.must(RemoveDeployment("tiny"))
    assert cluster.state.find_deployment("tiny") is None
    assert cluster.propose(PutDeployment(deployment(), replace_generation=2)).code == "conflict"


def test_a_change_of_numbers_keeps_what_runs() -> None:
    cluster = equipped(1)
    cluster.must(Place("tiny#1.1", "tiny", 1, "n1", claim(1)))
    cluster.must(PutDeployment(deployment(copies=3, aliases=("nick",)), replace_generation=1))
    assert cluster.state.replicas["tiny#1.1"].generation == 2, "carried over"
    cluster.must(PutDeployment(deployment(slots=7), replace_generation=2))
    assert cluster.state.replicas["tiny#1.1"].generation == 2, "outdated: another shape is wanted"


def test_a_name_deployed_again_repeats_no_generation() -> None:
    cluster = equipped(1)
    cluster.must(RemoveDeployment("tiny"))
    cluster.must(PutDeployment(deployment()))
    assert cluster.state.deployments["tiny"].generation == 2


def test_replica_ids_never_come_twice() -> None:
    cluster = equipped(1)
    first = cluster.place()
    cluster.report(first, Status.GONE)
    cluster.must(RemoveDeployment("tiny"))
    cluster.must(PutDeployment(deployment()))
    assert cluster.place() != first


def test_the_life_of_a_replica() -> None:
    cluster = equipped(1)
    replica = cluster.place()
    cluster.report(replica, Status.FETCHING, Status.LOADING)
    used = {"d0": 95}
    cluster.must(ReportReplica(replica, "n1", Status.READY, used_bytes=used))
    assert cluster.state.replicas[replica].used_bytes == used
    measured = list(cluster.state.measured.values())
    assert [(entry.predicted_bytes, entry.used_bytes) for entry in measured] == [(100, 95)]
    cluster.must(Drain(replica))
    assert cluster.state.replicas[replica].drain
    cluster.report(replica, Status.DRAINING, Status.GONE)
    assert cluster.state.replicas == {}
    assert cluster.state.claimed_bytes("n1", "d0") == 0


def test_a_failed_load_frees_its_claim_and_is_counted() -> None:
    cluster = equipped(1)
    for count in (1, 2):
        replica = cluster.place()
        cluster.report(replica, Status.LOADING)
        cluster.must(ReportReplica(replica, "n1", Status.FAILED, reason="out of memory"))
        failure = cluster.state.failures["tiny@n1"]
        assert (failure.count, failure.reason) == (count, "out of memory")
    replica = cluster.place()
    cluster.report(replica, Status.LOADING, Status.READY)
    assert cluster.state.failures == {}, "a load that worked ends the story, measured or not"


def test_failures_of_an_old_generation_are_not_held_against_the_new() -> None:
    cluster = equipped(1)
    replica = cluster.place()
    cluster.must(PutDeployment(deployment(slots=1), replace_generation=1))
    cluster.must(ReportReplica(replica, "n1", Status.FAILED, reason="late"))
    assert cluster.state.failures == {}


def test_nonsense_from_a_driver_leaves_the_state_encodable() -> None:
    cluster = equipped(1)
    replica = cluster.place()
    used = {"d0": 2**63 - 1, "d1": 2**63 - 1, "d2": -5}
    cluster.must(ReportReplica(replica, "n1", Status.LOADING, used_bytes=used))
    cluster.must(ReportReplica(replica, "n1", Status.READY, used_bytes=used))
    assert encode_state(cluster.state)


def test_a_crashed_worker_goes_back_to_loading() -> None:
    cluster = equipped(1)
    replica = cluster.place()
    cluster.report(replica, Status.LOADING, Status.READY, Status.LOADING, Status.READY)
    assert cluster.state.replicas[replica].attempts == 2


def test_devices_fill_to_the_last_byte_and_not_beyond() -> None:
    cluster = equipped(1)
    cluster.place(bytes_=600)
    body = Place("tiny#1.2", "tiny", 1, "n1", claim(401))
    assert cluster.propose(body).code == "oversubscribed"
    cluster.place(bytes_=400)
    assert cluster.state.claimed_bytes("n1", "d0") == DEVICE_BYTES


def test_a_replica_may_lie_on_two_devices() -> None:
    cluster = equipped(1)
    cluster.must(ReportInventory(inventory("n1", device("d0"), device("d1"))))
    cluster.must(Place("tiny#1.1", "tiny", 1, "n1", claim(1000, 900)))
    assert cluster.propose(Place("tiny#1.2", "tiny", 1, "n1", claim(1))).code == "oversubscribed"


def styled(name: str, **changes: Any) -> Deployment:
    """With an adapter of 40 bytes beside the model's file."""
    companion = Companion("lora", "style.gguf", OTHER, 40)
    given = {"options": {"lora": "style.gguf:0.5"}, "companions": (companion,)}
    return deployment(name, **(given | changes))


MISNAMED = (Companion("lora", "other.gguf", OTHER, 40),)
NAMELESS = (Companion("lora", "style.gguf", "", 40),)
EMPTY = (Companion("lora", "style.gguf", OTHER, 0),)
MANY = (Companion("lora", "style.gguf", OTHER, 40),) * 18
REFUSALS: list[tuple[Body, str, str]] = [
    (RegisterModel(model(), "n2"), "n1", "not_yours"),
    (RegisterModel(model(digest=OTHER), "n1"), "n1", "name_taken"),
    (RegisterModel(model("", OTHER), "n1"), "n1", "invalid_model"),
    (RegisterModel(model("x" * 129, OTHER), "n1"), "n1", "invalid_model"),
    (RegisterModel(model("x", ""), "n1"), "n1", "invalid_model"),
    (RemoveModel(OTHER), "n1", "unknown_model"),
    (ReportCopy("n2", DIGEST, True), "n1", "not_yours"),
    (ReportCopy("n1", OTHER, True), "n1", "unknown_model"),
    (PutDeployment(deployment()), "n1", "exists"),
    (PutDeployment(deployment("a b")), "n1", "invalid_name"),
    (PutDeployment(deployment("")), "n1", "invalid_name"),
    (PutDeployment(deployment("b", aliases=("a b",))), "n1", "invalid_name"),
    (PutDeployment(deployment("b", aliases=("a",) * 33)), "n1", "invalid_name"),
    (PutDeployment(deployment("b", digest=OTHER)), "n1", "unknown_model"),
    (PutDeployment(deployment("b", slots=0)), "n1", "invalid_slots"),
    (PutDeployment(deployment("b", context=0)), "n1", "invalid_context"),
    (PutDeployment(deployment("b", replicas_min=2)), "n1", "invalid_replicas"),
    (PutDeployment(deployment("b", replicas_min=0, replicas_max=0)), "n1", "invalid_replicas"),
    (PutDeployment(deployment("b", compute_bytes=-1)), "n1", "invalid_need"),
    (PutDeployment(deployment("b", weights_bytes=BYTES_MAX)), "n1", "invalid_need"),
    (PutDeployment(deployment("b", copies=0)), "n1", "invalid_options"),
    (PutDeployment(styled("b", companions=MISNAMED)), "n1", "invalid_companions"),
    (PutDeployment(styled("b", companions=NAMELESS)), "n1", "invalid_companions"),
    (PutDeployment(styled("b", companions=EMPTY)), "n1", "invalid_companions"),
    (PutDeployment(styled("b", companions=MANY)), "n1", "invalid_companions"),
    (PutDeployment(styled("b"), holding=(DIGEST,)), "n1", "invalid_companions"),
    (RemoveDeployment("b"), "n1", "unknown_deployment"),
    (Place("b#1.1", "b", 1, "n1", claim(1)), "n1", "conflict"),
    (Place("tiny#2.1", "tiny", 2, "n1", claim(1)), "n1", "conflict"),
    (Place("tiny#1.2", "tiny", 1, "n1", claim(1)), "n1", "conflict"),
    (Place("tiny#1.1", "tiny", 1, "nx", claim(1)), "n1", "node_down"),
    (Place("tiny#1.1", "tiny", 1, "n1", ()), "n1", "no_claim"),
    (Place("tiny#1.1", "tiny", 1, "n1", claim(1) * 2), "n1", "invalid_claim"),
    (Place("tiny#1.1", "tiny", 1, "n1", claim(1, 1)), "n1", "no_device"),
    (Place("tiny#1.1", "tiny", 1, "n1", claim(0)), "n1", "oversubscribed"),
    (Place("tiny#1.1", "tiny", 1, "n1", claim(DEVICE_BYTES + 1)), "n1", "oversubscribed"),
    (ReportReplica("tiny#1.1", "n1", Status.READY), "n1", "unknown_replica"),
    (ReportReplica("tiny#1.1", "n2", Status.READY), "n1", "not_yours"),
]


@pytest.mark.parametrize(("body", "by", "code"), REFUSALS)
def test_refusals_have_a_code_a_sentence_and_no_effect(body: Body, by: str, code: str) -> None:
    cluster = equipped(2)
    before = cluster.state
    outcome = cluster.propose(body, by)
    assert (outcome.accepted, outcome.code) == (False, code)
    assert len(outcome.message) > 10
    for name in ("models", "copies", "deployments", "replicas", "failures", "events"):
        assert getattr(cluster.state, name) == getattr(before, name)


def test_nothing_is_placed_on_a_node_that_is_down() -> None:
    cluster = equipped(2)
    cluster.must(MarkDown("n2", True))
    body = Place("tiny#1.1", "tiny", 1, "n2", claim(1))
    assert cluster.propose(body).code == "node_down"


@pytest.mark.parametrize("status", [Status.READY, Status.PLACED])
def test_transitions_only_go_forward(status: Status) -> None:
    cluster = equipped(1)
    replica = cluster.place()
    cluster.report(replica, Status.DRAINING)
    body = ReportReplica(replica, "n1", status)
    assert cluster.propose(body).code == "bad_transition"


def test_limits_of_catalogue_and_deployments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MODELS_MAX", 1)
    monkeypatch.setattr(deployments, "DEPLOYMENTS_MAX", 1)
    cluster = equipped(1)
    assert cluster.propose(RegisterModel(model("b", OTHER), "n1")).code == "full"
    assert cluster.propose(PutDeployment(deployment("b"))).code == "full"
