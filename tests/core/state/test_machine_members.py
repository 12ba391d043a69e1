"""Examples of `apply`: founding, members, roles, window, keys, settings; accepted and refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.states import (
    api_key,
    device,
    equipped,
    found,
    founded,
    inventory,
    member,
)

from aivailable.core.state import machine
from aivailable.core.state.changes import keys as key_limits
from aivailable.core.state.changes import members as limits
from aivailable.core.state.commands import (
    Admit,
    Body,
    CloseWindow,
    Drain,
    MarkDown,
    PutKey,
    PutSettings,
    RaiseFeatureLevel,
    Remove,
    ReportInventory,
    RevokeKey,
    SetDraining,
    SetRole,
    SetWindow,
    TakeControl,
    UpdateMember,
)
from aivailable.core.state.machine import apply
from aivailable.core.state.records import ApiKey, ClusterSettings, Control, Role, Scope, Status
from aivailable.core.state.state import BYTES_MAX, State


def update(node: str, **changes: object) -> UpdateMember:
    fields: dict[str, object] = {
        "name": "renamed",
        "addresses": ("10.0.0.9",),
        "link_port": 1,
        "api_port": 2,
        "version": "9",
        "proto_min": 1,
        "proto_max": 1,
        "feature_max": 2,
        "instance_id": "i",
    }
    return UpdateMember(node=node, **{**fields, **changes})  # type: ignore[arg-type]


def test_founding_makes_a_voter_a_key_and_an_open_window() -> None:
    state = founded().state
    assert state.cluster is not None
    assert state.cluster.founded_by == "n1"
    assert state.members["n1"].role is Role.VOTER
    assert state.find_key(api_key().hashed) == replace(api_key(), node="n1")
    assert state.window.open
    assert state.control == Control("n1", 1)
    assert state.pristine


def test_nothing_before_founding() -> None:
    cluster = founded()
    command = cluster.command(SetWindow(5))
    _, outcome = apply(State(), command)
    assert (outcome.accepted, outcome.code) == (False, "not_founded")


def test_admission_by_window_makes_an_observer_with_its_key() -> None:
    state = founded(2).state
    assert state.members["n2"].role is Role.OBSERVER
    assert state.find_key(api_key("key2").hashed) is not None
    assert not state.pristine


def test_an_expelled_members_keys_end_and_a_leavers_stay() -> None:
    cluster = founded(3)
    cluster.must(Remove("n2", revoke_keys=True))
    cluster.must(Remove("n3"))
    assert cluster.state.find_key(api_key("key2").hashed) is None
    assert cluster.state.find_key(api_key("key3").hashed) is not None
    assert cluster.state.find_key(api_key().hashed) is not None


def test_admission_by_proof_needs_no_window() -> None:
    cluster = founded()
    cluster.must(SetWindow(0))
    assert cluster.propose(Admit(member("n2"), (), 2)).code == "window_closed"
    cluster.must(Admit(member("n2"), (), None))


def test_admitting_a_member_again_keeps_its_role_and_drain() -> None:
    cluster = founded(2)
    cluster.must(SetRole("n2", Role.VOTER))
    cluster.must(SetDraining("n2", True))
    cluster.must(Admit(member("n2", name="new"), (), window_serial=99))
    again = cluster.state.members["n2"]
    assert (again.role, again.draining, again.name) == (Role.VOTER, True, "new")


def test_a_cluster_is_full_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMBERS_MAX", 2)
    monkeypatch.setattr(key_limits, "KEYS_MAX", 3)
    cluster = founded(2)
    assert cluster.propose(Admit(member("n3"), (), 1)).code == "full"
    cluster.must(PutKey(api_key("third")))
    assert cluster.propose(PutKey(api_key("fourth"))).code == "full"


def test_removal_takes_replicas_copies_and_inventory_along() -> None:
    cluster = equipped(2)
    replica = cluster.place(node="n2")
    cluster.must(Remove("n2"))
    state = cluster.state
    assert replica not in state.replicas
    assert "n2" not in state.members
    assert "n2" not in state.inventories
    assert cluster.propose(SetWindow(5), by="n2").code == "not_member"


def test_down_ends_claims_and_up_comes_back_empty() -> None:
    cluster = equipped(2)
    cluster.place(node="n2")
    cluster.must(MarkDown("n2", True))
    assert cluster.state.members["n2"].down
    assert cluster.state.replicas == {}
    cluster.must(MarkDown("n2", False))
    assert not cluster.state.members["n2"].down
    assert [event.kind for event in cluster.state.events][-2:] == ["down", "up"]


def test_the_window_is_opened_closed_and_timed_by_serial() -> None:
    cluster = founded()
    cluster.must(SetWindow(60))
    assert cluster.state.window.serial == 2
    cluster.must(CloseWindow(1))
    assert cluster.state.window.open
    cluster.must(CloseWindow(2))
    assert not cluster.state.window.open


def test_a_member_reports_itself() -> None:
    cluster = founded(2)
    cluster.must(update("n2", name=""), by="n2")
    assert cluster.state.members["n2"].name == "host-n2"
    assert cluster.state.members["n2"].addresses == ("10.0.0.9",)
    cluster.must(SetDraining("n2", True))
    cluster.must(SetDraining("n2", False))
    assert not cluster.state.members["n2"].draining


def test_keys_are_put_and_revoked() -> None:
    cluster = founded()
    key = api_key("other", Scope.USER)
    cluster.must(PutKey(key))
    assert cluster.state.find_key(key.hashed) == key
    cluster.must(RevokeKey(key.key_id))
    assert cluster.state.find_key(key.hashed) is None
    cluster.must(PutKey(key))
    assert cluster.state.find_key(key.hashed) is None, "a revoked key came back"


def test_settings_and_feature_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEVEL", 2)
    cluster = founded()
    cluster.must(PutSettings(ClusterSettings(margin_bytes=7)))
    assert cluster.state.settings.margin_bytes == 7
    assert cluster.propose(RaiseFeatureLevel(2)).code == "too_old"
    cluster.must(update("n1", feature_max=2))
    cluster.must(RaiseFeatureLevel(2))
    assert cluster.state.feature_level == 2
    cluster.must(RaiseFeatureLevel(1))
    assert cluster.state.feature_level == 2


def test_a_device_that_shrinks_under_its_claims_loses_its_replicas() -> None:
    cluster = equipped(1)
    replica = cluster.place(bytes_=900)
    cluster.must(ReportInventory(inventory("n1", device(total_bytes=900))))
    assert replica in cluster.state.replicas
    cluster.must(ReportInventory(inventory("n1", device(total_bytes=899))))
    assert replica not in cluster.state.replicas


def test_a_device_that_vanished_keeps_its_claims_for_the_planner_to_see() -> None:
    cluster = equipped(1)
    replica = cluster.place()
    cluster.must(ReportInventory(inventory("n1", device("other"))))
    assert replica in cluster.state.replicas


def test_operators_leave_their_mark_and_planners_do_not() -> None:
    cluster = founded()
    cluster.must(CloseWindow(1), actor="planner")
    assert not cluster.state.operator_touched
    cluster.must(SetWindow(0), actor="operator:k")
    assert cluster.state.operator_touched


REFUSALS: list[tuple[Body, str, str]] = [
    (found(), "n1", "founded"),
    (TakeControl("nx", 2), "n1", "not_member"),
    (TakeControl("n2", 2), "n1", "not_yours"),
    (TakeControl("n1", 1), "n1", "stale_controller"),
    (Admit(member("n3"), (), 7), "n1", "window_closed"),
    (Admit(member(""), (), 1), "n1", "invalid_member"),
    (Admit(member("n3", certificate=b"x" * 3000), (), 1), "n1", "invalid_member"),
    (Admit(member("n3", name=""), (), 1), "n1", "invalid_member"),
    (Admit(member("n3"), (ApiKey("bad", "x", Scope.USER, ""),), 1), "n1", "invalid_key"),
    (Remove("nx"), "n1", "not_member"),
    (SetRole("nx", Role.VOTER), "n1", "not_member"),
    (update("n2"), "n1", "not_yours"),
    (SetWindow(-1), "n1", "invalid_duration"),
    (SetWindow(10**9), "n1", "invalid_duration"),
    (MarkDown("nx", True), "n1", "not_member"),
    (SetDraining("nx", True), "n1", "not_member"),
    (ReportInventory(inventory("n2")), "n1", "not_yours"),
    (ReportInventory(inventory("n1", device(), device())), "n1", "invalid_inventory"),
    (ReportInventory(inventory("n1", device(total_bytes=-1))), "n1", "invalid_inventory"),
    *(
        (ReportInventory(inventory("n1", replace(device(), **{name: speed}))), "n1", code)
        for name in ("speed", "prefill_speed")
        for speed, code in (
            (float("inf"), "invalid_inventory"),
            (float("nan"), "invalid_inventory"),
            (-1.0, "invalid_inventory"),
        )
    ),
    (ReportInventory(inventory("n1", device("d", BYTES_MAX + 1))), "n1", "invalid_inventory"),
    (PutKey(ApiKey("deadbeef", "a" * 64, Scope.USER, "")), "n1", "invalid_key"),
    (PutKey(ApiKey(api_key().key_id, api_key().key_id + "0" * 56, Scope.USER, "")), "n1",
     "key_id_taken"),
    (RevokeKey("unknown"), "n1", "unknown_key"),
    (PutSettings(ClusterSettings(down_after_ms=1)), "n1", "invalid_settings"),
    (RaiseFeatureLevel(9), "n1", "too_old"),
    (SetWindow(5), "stranger", "not_member"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "by", "code"), REFUSALS)
def test_refusals_have_a_code_a_sentence_and_no_effect(body: Body, by: str, code: str) -> None:
    cluster = founded(2)
    before = cluster.state
    outcome = cluster.propose(body, by)
    assert (outcome.accepted, outcome.code) == (False, code)
    assert len(outcome.message) > 10
    assert cluster.state.members == before.members
    assert cluster.state.keys == before.keys
    assert cluster.state.window == before.window
    assert cluster.state.version == before.version + 1


def test_the_last_member_stays() -> None:
    assert founded().propose(Remove("n1")).code == "last_member"


def test_founding_needs_a_sound_founder_and_key() -> None:
    cluster = founded()
    for body in (
        found(""),
        type(found())("c", "lab", member(), ApiKey("k", "short", Scope.ADMIN, "")),
    ):
        _, outcome = apply(State(), cluster.command(body))
        assert not outcome.accepted


@pytest.mark.parametrize(
    "control",
    [None, Control("n1", 1), Control("n2", 1), Control("n1", 3), Control("n2", 2)],
)
def test_planner_commands_of_another_controller_are_refused(control: Control | None) -> None:
    cluster = founded(2)
    cluster.must(TakeControl("n2", 2), by="n2")
    for body in (MarkDown("n1", True), Drain("tiny#1.1"), SetRole("n2", Role.VOTER)):
        # Control("n2", 2) is the committed one: refused because n1 is not that controller.
        assert cluster.propose(body, "n1", control=control).code == "stale_controller"
    assert not cluster.state.members["n1"].down
    cluster.must(MarkDown("n1", True), by="n2")


def test_status_words_are_the_documented_ones() -> None:
    assert [status.value for status in Status] == [
        *("placed", "fetching", "loading", "ready", "draining", "gone", "failed")
    ]
