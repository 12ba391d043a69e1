"""The status document: what is replicated, what is live, and why something is not ready."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from fixtures.cluster_state import (
    DIGEST,
    GIB,
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    load,
    replica,
    run,
    running,
)

from aivailable.core.cluster.liveness import Liveness
from aivailable.core.serving.status import ClusterStatus, WaitingStatus
from aivailable.core.serving.view import COUNTED, View, ready_replicas, status_of
from aivailable.core.state.commands import SetWindow
from aivailable.core.state.records import Failure, Status
from aivailable.core.state.state import State
from aivailable.wire.peer import DeviceLoad
from aivailable.wire.schema import pack, unpack
from aivailable.wire.worker import Counters


def status(state: State, heard: Liveness, explain: dict[str, str] | None = None) -> ClusterStatus:
    return status_of(
        state,
        heard,
        phase="member",
        advice="",
        leader="a",
        term=3,
        quorum=True,
        window_left_s=42,
        waiting=(WaitingStatus("x", "stranger", "10.0.0.9", 5),),
        here_devices_load=(DeviceLoad("gpu0", 5 * GIB, GIB, 0.5, 60.0, power_w=180.5),),
        explain=explain or {},
    )


def serving() -> State:
    state = deployed(cluster({node: (device(),) for node in "abc"}), deployment())
    return running(state, replica("chat#1.1", "b", used_bytes={"gpu0": 3 * GIB}))


def test_shows_nodes_as_here_up_silent_and_down() -> None:
    state = cluster(dict.fromkeys("abcd", ()))
    state = replace(state, members={**state.members, "d": replace(state.members["d"], down=True)})
    seen = status(state, liveness("ab"))
    assert [(node.node, node.state, node.age_ms) for node in seen.nodes] == [
        ("a", "here", 0),
        ("b", "up", 500),
        ("c", "silent", None),
        ("d", "down", None),
    ]
    assert [node.leader for node in seen.nodes] == [True, False, False, False]


def test_shows_claims_and_live_bytes_of_each_device() -> None:
    heard = liveness("ab", devices={"b": (DeviceLoad("gpu0", 2 * GIB),)})
    here, remote, silent = (node.devices[0] for node in status(serving(), heard).nodes)
    assert (here.free_bytes, here.used_by_others_bytes, here.temperature_c) == (5 * GIB, GIB, 60.0)
    assert (here.power_w, remote.power_w) == (180.5, None)
    assert (remote.claimed_bytes, remote.free_bytes) == (4 * GIB, 2 * GIB)
    assert (silent.total_bytes, silent.free_bytes) == (8 * GIB, None)


def test_shows_what_a_device_draws_and_how_fast_it_was_measured() -> None:
    card = replace(device(), speed=20.0, prefill_speed=300.0, driver="570.86")
    state = cluster({"a": (device(),), "b": (card,)})
    draws = DeviceLoad("gpu0", GIB, power_w=120.0)
    here, there = (node.devices[0] for node in status(
        state, liveness("ab", devices={"b": (draws,)})
    ).nodes)  # fmt: skip
    assert (there.decode_tokens_per_s, there.prefill_tokens_per_s) == (20.0, 300.0)
    assert (there.driver, there.power_w, here.power_w) == ("570.86", 120.0, 180.5)


def test_shows_how_far_each_node_is_and_who_founded() -> None:
    state = replace(cluster(dict.fromkeys("abc", ())), version=7)
    shown = status(state, liveness("ab"))
    assert [node.applied for node in shown.nodes] == [7, 9, None]
    assert (shown.founded_by, shown.founded_at_ms) == ("a", 0)


def test_shows_what_a_worker_does_and_has_counted() -> None:
    told = load(
        "chat#1.1", phase="warming", requests=5, prompt_tokens=90, cached_tokens=30, steps=12
    )
    shown = status(serving(), liveness("ab", loads={"b": (told,)})).replicas[0]
    assert (shown.phase, shown.requests, shown.steps) == ("warming", 5, 12)
    assert (shown.prompt_tokens, shown.cached_tokens) == (90, 30)


def test_shows_what_a_models_file_says() -> None:
    (model,) = status(serving(), liveness("a")).models
    assert (model.layers, model.parameters, model.has_chat_template) == (2, 0, False)


def test_why_a_replica_still_loads_is_told_by_its_host() -> None:
    """The log says `loading` from the first attempt to the last; the heartbeat says why."""
    state = running(serving(), replica("chat#1.1", "b", Status.LOADING))
    told = load("chat#1.1", "failed", reason="out_of_memory: 9 GiB")
    shown = status(state, liveness("ab", loads={"b": (told,)}))
    assert shown.replicas[0].reason == "out_of_memory: 9 GiB"


def test_options_given_and_chosen_are_shown() -> None:
    state = deployed(
        cluster({node: (device(),) for node in "abc"}), deployment(options={"kv_type": "q8_0"})
    )
    state = running(state, replica("chat#1.1", "b"))
    told = load("chat#1.1", notes=("kv_type=q8_0", "threads=7 of 8"))
    island = load("chat#0.1", island=True, notes=("threads=1 of 2",))
    shown = status(state, liveness("abc", loads={"b": (told,), "c": (island,)}))
    assert shown.deployments[0].options == {"kv_type": "q8_0"}
    assert [one.notes for one in shown.replicas] == [told.notes, island.notes]


def test_joins_replicas_with_their_load() -> None:
    busy = load("chat#1.1", slots_busy=2, waiting=1, tokens_per_s=9.0)
    island = load("chat#0.1", island=True)
    shown = status(serving(), liveness("abc", loads={"b": (busy,), "c": (island,)})).replicas
    assert [(r.replica, r.node_name, r.slots_busy, r.waiting) for r in shown] == [
        ("chat#1.1", "host-b", 2, 1),
        ("chat#0.1", "host-c", 0, 0),
    ]
    assert (shown[0].claimed_bytes, shown[0].used_bytes) == (4 * GIB, 3 * GIB)
    assert shown[1].reason.startswith("island")


def test_the_worker_s_counters_are_shown_of_every_replica() -> None:
    counted = {name: number for number, name in enumerate(COUNTED, 1)}
    busy = load("chat#1.1", **counted)
    island = load("chat#0.1", island=True, **counted)
    shown = status(serving(), liveness("abc", loads={"b": (busy,), "c": (island,)})).replicas
    assert [{name: getattr(one, name) for name in COUNTED} for one in shown] == [counted] * 2
    assert frozenset(COUNTED) == frozenset(field.name for field in fields(Counters))


@pytest.mark.parametrize(
    ("replicas", "explain", "expected"),
    [
        ((("b", Status.READY), ("c", Status.READY)), "", "ready"),
        ((("b", Status.READY),), "needs more", "degraded"),
        ((("b", Status.LOADING),), "", "starting"),
        ((), "", "starting"),
        ((), "needs more", "unplaceable"),
    ],
)
def test_names_the_state_of_a_deployment(
    replicas: tuple[tuple[str, Status], ...], explain: str, expected: str
) -> None:
    state = deployed(cluster({node: (device(),) for node in "abc"}), deployment(replicas_min=2))
    names = {node: f"chat#1.{number}" for number, (node, _) in enumerate(replicas, 1)}
    state = running(state, *(replica(names[node], node, kind) for node, kind in replicas))
    loads = {node: (load(names[node], kind.value),) for node, kind in replicas}
    shown = status(state, liveness("abc", loads=loads), {"chat": explain}).deployments[0]
    assert shown.state == expected
    assert shown.explanation == explain
    assert (shown.copies, shown.copies_wanted) == (1, 2)


def test_explains_with_failed_loads_and_agents_reasons() -> None:
    state = deployed(cluster({"a": (device(),)}), deployment())
    state = running(state, replica("chat#1.1", "a", Status.LOADING, reason="worker died"))
    state = replace(state, failures={"chat@a": Failure("chat", 1, "a", 2, "out of memory")})
    shown = status(state, liveness("a"), {"chat": "one"}).deployments[0]
    assert shown.explanation == (
        "one; chat#1.1 is loading: worker died; failed 2 × on host-a: out of memory"
    )


def test_carries_models_events_window_and_strangers_and_can_travel() -> None:
    state = serving()
    for _ in range(25):
        state = run(state, SetWindow(60))
    seen = status(state, liveness("abc"))
    assert len(seen.events) == 20
    assert seen.events[-1].version == seen.version == 25
    assert (seen.window_open, seen.window_left_s) == (True, 42)
    assert seen.waiting[0].name == "stranger"
    assert (seen.models[0].digest, seen.models[0].holders) == (DIGEST, ("a",))
    assert unpack(ClusterStatus, pack(seen)) == seen


def test_an_empty_state_has_a_status_too() -> None:
    seen = status(State(), liveness("a"))
    assert (seen.cluster_id, seen.nodes, seen.deployments) == ("", (), ())


def test_ready_replicas_carry_context_and_place() -> None:
    heard = liveness("abc", loads={"b": (load("chat#1.1"),)})
    (found,) = ready_replicas(View(serving(), heard), "chat")
    assert (found.node, found.local, found.context) == ("b", False, 4096)
