"""The choice of a replica, with a reason for each that was not chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.cluster_state import (
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    load,
    replica,
    running,
)
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.cluster.liveness import is_alive
from aivailable.core.serving.admission import places_sure
from aivailable.core.serving.router import (
    Forward,
    Local,
    Refuse,
    RoutingChoice,
    Wait,
    choose,
    unfit,
)
from aivailable.core.serving.view import View
from aivailable.core.state.records import Status
from aivailable.core.state.state import State
from aivailable.wire.peer import ReplicaLoad


def state_with(*nodes: str) -> State:
    """`chat#1.N` ready on the N-th node."""
    state = cluster({node: (device(),) for node in "abc"})
    state = deployed(state, deployment(aliases=("gpt-4o",)))
    return running(state, *(replica(f"chat#1.{i}", node) for i, node in enumerate(nodes, 1)))


def view(state: State, nodes: str = "abc", **loads: ReplicaLoad) -> View:
    """Every replica is ready and idle unless `loads` (by node) says otherwise."""
    said = {r.node: (loads.get(r.node, load(r.replica)),) for r in state.replicas.values()}
    return View(state, liveness(nodes, loads=said))


def reasons(choice: RoutingChoice) -> dict[str, str]:
    return {entry.replica: entry.reason for entry in choice.not_chosen}


def test_an_unknown_name_is_refused_with_what_there_is() -> None:
    choice = choose("llama", view(state_with("a")))
    assert isinstance(choice, Refuse)
    assert (choice.status, choice.code) == (404, "model_not_found")
    assert "deployed: chat" in choice.message
    empty = choose("llama", View(cluster({"a": ()}), liveness("a")))
    assert isinstance(empty, Refuse)
    assert "nothing is deployed yet" in empty.message


def test_a_chat_without_a_template_is_refused_before_anything_is_loaded() -> None:
    state = state_with()
    refused = unfit(state, "gpt-4o", chats=True)
    assert refused is not None
    assert (refused.status, refused.code) == (400, "template_error")
    assert unfit(state, "chat", chats=False) is None
    assert unfit(state, "nobody", chats=True) is None, "that is told elsewhere"
    (model,) = state.models.values()
    chats = replace(model, facts=replace(model.facts, has_chat_template=True))
    assert unfit(replace(state, models={model.digest: chats}), "chat", chats=True) is None
    assert unfit(replace(state, models={}), "chat", chats=True) is None, "an engine without a file"


def test_names_and_aliases_reach_the_same_replica() -> None:
    picture = view(state_with("a"))
    assert choose("chat", picture) == choose("gpt-4o", picture) == Local("chat#1.1")


def test_local_before_remote_when_equally_loaded() -> None:
    choice = choose("chat", view(state_with("b", "a")))
    assert isinstance(choice, Local)
    assert choice.replica == "chat#1.2"
    assert reasons(choice) == {"chat#1.1": "more loaded, farther or slower"}


def test_load_per_slot_decides_before_distance_and_speed() -> None:
    state = state_with("a", "b", "c")
    busy = view(
        state,
        a=load("chat#1.1", slots_busy=2),
        b=load("chat#1.2", slots=8, slots_busy=2, tokens_per_s=10.0),
        c=load("chat#1.3", slots=4, slots_busy=1, tokens_per_s=20.0),
    )
    choice = choose("chat", busy)
    assert isinstance(choice, Forward)
    assert (choice.replica, choice.node) == ("chat#1.3", "c")


def with_speeds(state: State, **speeds: float) -> State:
    """Every device of a node as fast as said."""
    told = {
        node: replace(
            inventory,
            devices=tuple(replace(one, speed=speeds.get(node, 0.0)) for one in inventory.devices),
        )
        for node, inventory in state.inventories.items()
    }
    return replace(state, inventories=told)


def test_requests_spread_by_measured_speed() -> None:
    picture = view(with_speeds(state_with("a", "b", "c"), a=100.0, b=50.0, c=100.0))
    reserved: dict[str, int] = {}
    for _ in range(15):
        choice = choose("chat", picture, (), reserved)
        assert isinstance(choice, Local | Forward)
        reserved[choice.replica] = reserved.get(choice.replica, 0) + 1
    assert reserved == {"chat#1.1": 6, "chat#1.2": 3, "chat#1.3": 6}


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [(100.0, 150.0, "chat#1.1"), (50.0, 100.0, "chat#1.2"), (0.0, 100.0, "chat#1.1")],
)
def test_a_device_twice_as_fast_is_worth_a_hop(ours: float, theirs: float, chosen: str) -> None:
    choice = choose("chat", view(with_speeds(state_with("a", "b"), a=ours, b=theirs)))
    assert isinstance(choice, Local | Forward)
    assert choice.replica == chosen


def test_a_very_slow_device_still_gets_its_share() -> None:
    state = with_speeds(state_with("a", "b"), a=1.0, b=1000.0)
    busy = view(state, a=load("chat#1.1"), b=load("chat#1.2", slots_busy=1))
    choice = choose("chat", busy)
    assert isinstance(choice, Local)


def test_reservations_spread_a_burst() -> None:
    picture = view(state_with("a", "b", "c"))
    reserved: dict[str, int] = {}
    for _ in range(12):
        choice = choose("chat", picture, (), reserved)
        assert isinstance(choice, Local | Forward)
        reserved[choice.replica] = reserved.get(choice.replica, 0) + 1
    assert reserved == {"chat#1.1": 4, "chat#1.2": 4, "chat#1.3": 4}


def test_a_warm_prompt_is_preferred_within_a_load_bound() -> None:
    state = state_with("a", "b", "c")
    for busy, chosen in ((0, "chat#1.3"), (2, "chat#1.3"), (3, "chat#1.1"), (4, "chat#1.1")):
        picture = view(
            state,
            b=load("chat#1.2", prefixes=(1,)),
            c=load("chat#1.3", slots_busy=busy, prefixes=(2, 1, 9)),
        )
        warm = choose("chat", picture, prefixes=(1, 2, 3))
        assert isinstance(warm, Local | Forward)
        assert warm.replica == ("chat#1.2" if chosen == "chat#1.1" else chosen)
        cold = choose("chat", picture, prefixes=(3, 2, 1))
        assert cold == choose("chat", picture)
        assert isinstance(cold, Local)


def test_a_burst_with_one_warm_prompt_still_spreads() -> None:
    picture = view(state_with("a", "b", "c"), c=load("chat#1.3", prefixes=(1,)))
    reserved: dict[str, int] = {}
    for _ in range(12):
        choice = choose("chat", picture, (), reserved, (1,))
        assert isinstance(choice, Local | Forward)
        reserved[choice.replica] = reserved.get(choice.replica, 0) + 1
    assert reserved == {"chat#1.1": 4, "chat#1.2": 4, "chat#1.3": 4}


@pytest.mark.parametrize(
    ("status", "progress", "words"),
    [
        (Status.PLACED, 0.0, "chat#1.1 placed"),
        (Status.FETCHING, 0.4, "chat#1.1 fetching 40%"),
        (Status.LOADING, 0.0, "chat#1.1 loading"),
    ],
)
def test_waits_for_what_is_on_its_way(status: Status, progress: float, words: str) -> None:
    state = running(state_with(), replica("chat#1.1", "b", status))
    choice = choose("chat", view(state, b=load("chat#1.1", status.value, progress=progress)))
    assert isinstance(choice, Wait)
    assert words in choice.reason


def test_waits_when_nothing_is_placed_or_all_were_tried() -> None:
    nothing = choose("chat", view(state_with()))
    assert isinstance(nothing, Wait)
    assert "no replica of 'chat' is placed yet" in nothing.reason
    tried = choose("chat", view(state_with("a")), ("chat#1.1",))
    assert isinstance(tried, Wait)
    assert reasons(tried) == {"chat#1.1": "tried already"}


def test_a_replica_must_be_ready_in_the_state_and_at_its_host() -> None:
    state = state_with("a", "b")
    restarted = view(state, a=load("chat#1.1", "loading", progress=0.5))
    assert reasons(choose("chat", restarted)) == {"chat#1.1": "loading 50%"}
    unheard = View(state, liveness("ab", loads={"b": (load("chat#1.2"),)}))
    assert reasons(choose("chat", unheard)) == {"chat#1.1": "its node does not run it yet"}
    drained = running(state, replica("chat#1.1", "a", drain=True))
    assert reasons(choose("chat", view(drained))) == {"chat#1.1": "draining"}


def test_a_silent_or_unlinked_host_is_not_chosen() -> None:
    state = state_with("b")
    picture = view(state)
    unlinked = replace(picture.liveness, linked=("c",))
    assert reasons(choose("chat", View(state, unlinked))) == {"chat#1.1": "no link to its node"}
    late = replace(picture.liveness, now_s=1010.0)
    text = "its node has been silent for 10 s"
    assert reasons(choose("chat", View(state, late))) == {"chat#1.1": text}


def test_full_queues_are_refused_with_a_time_to_come_back() -> None:
    state = state_with("a", "b")
    per_slot = state.settings.queue_per_slot_max
    full = load("chat#1.1", slots_busy=4, waiting=4 * per_slot)
    choice = choose("chat", view(state, a=full))
    assert isinstance(choice, Forward)
    assert reasons(choice) == {"chat#1.1": "queue full"}
    choice = choose("chat", view(state, a=full), ("chat#1.2",), own={"chat#1.1": per_slot})
    assert isinstance(choice, Refuse)
    assert (choice.status, choice.code, choice.retry_after_s) == (429, "queue_full", 5)


def test_reservations_fill_a_queue_too() -> None:
    state = state_with("a")
    most = 4 + 4 * state.settings.queue_per_slot_max
    assert isinstance(choose("chat", view(state), (), {"chat#1.1": most - 1}), Local)
    many = {"chat#1.1": most}
    assert isinstance(choose("chat", view(state), (), many, own=many), Refuse)


def test_what_others_fill_is_no_refusal_for_who_has_little_there() -> None:
    """The host knows whose requests fill its line, and makes room for an honest account."""
    state = state_with("a", "b")
    per_slot = state.settings.queue_per_slot_max
    sure = places_sure(4 * per_slot)
    full = {"slots_busy": 4, "waiting": 4 * per_slot}
    both = view(state, a=load("chat#1.1", **full), b=load("chat#1.2", **full))
    few = {"chat#1.1": sure, "chat#1.2": sure - 1}
    assert choose("chat", both) == choose("chat", both, own={"chat#1.1": sure - 1})
    choice = choose("chat", both, own=few)
    assert isinstance(choice, Forward)
    assert reasons(choice) == {"chat#1.1": "queue full"}
    assert isinstance(choose("chat", both, own=dict.fromkeys(few, sure)), Refuse)
    half = view(state, a=load("chat#1.1", **full))
    assert reasons(choose("chat", half)) == {"chat#1.1": "queue full"}, "an open one goes first"


def test_island_replicas_serve() -> None:
    state = state_with()
    island = load("chat#1.9", island=True)
    picture = View(state, liveness("abc", loads={"b": (island,)}))
    assert choose("chat", picture) == Forward("chat#1.9", "b")
    loading = View(state, liveness("abc", loads={"b": (replace(island, status="loading"),)}))
    assert isinstance(choose("chat", loading), Wait)


def test_what_is_ready_serves_though_the_log_has_not_heard() -> None:
    """Without a quorum `ready` cannot be committed; the claim is, and the worker decodes."""
    state = running(state_with(), replica("chat#1.1", "b", Status.LOADING))
    told = View(state, liveness("ab", loads={"b": (load("chat#1.1"),)}))
    assert choose("chat", told) == Forward("chat#1.1", "b")
    still = View(state, liveness("ab", loads={"b": (load("chat#1.1", "loading"),)}))
    assert isinstance(choose("chat", still), Wait)


rows = st.lists(
    st.tuples(
        st.sampled_from(list(Status)[:5]),
        st.sampled_from(["ready", "loading", "absent"]),
        st.integers(0, 4),
        st.integers(0, 40),
        st.booleans(),
    ),
    max_size=3,
)


@given(rows, st.sets(st.sampled_from("abc")), st.lists(st.integers(1, 3), max_size=3))
def test_never_chooses_what_is_excluded_dead_or_not_ready(
    table: list[tuple[Status, str, int, int, bool]], heard: set[str], tried: list[int]
) -> None:
    state, loads = state_with(), {}
    for number, (status, said, busy, waiting, drain) in enumerate(table, 1):
        name, node = f"chat#1.{number}", "abc"[number - 1]
        state = running(state, replica(name, node, status, drain=drain))
        if said != "absent":
            loads[node] = (load(name, said, slots_busy=busy, waiting=waiting),)
    picture = View(state, liveness(sorted(heard | {"a"}), loads=loads))
    excluded = tuple(f"chat#1.{number}" for number in tried)
    own = {f"chat#1.{number}": 99 for number in (1, 2, 3)}
    choice = choose("chat", picture, excluded, own=own)
    assert choice == choose("chat", picture, excluded, own=own)
    if isinstance(choice, Local | Forward):
        chosen = state.replicas[choice.replica]
        assert choice.replica not in excluded
        assert chosen.status is not Status.DRAINING
        assert loads[chosen.node][0].status == "ready"
        assert not chosen.drain
        assert is_alive(picture.liveness, chosen.node, 3000)
        assert isinstance(choice, Local) == (chosen.node == "a")
        assert loads[chosen.node][0].waiting < 4 * state.settings.queue_per_slot_max
    named = {entry.replica for entry in choice.not_chosen}
    spare = {choice.replica} if isinstance(choice, Local | Forward) else set()
    assert named | spare == set(state.replicas)
