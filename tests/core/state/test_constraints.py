"""Where a deployment may go: what each word allows, that every choice respects it, and that a
refusal says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.cluster_state import (
    cluster,
    deployed,
    deployment,
    device,
    liveness,
    member,
    obey,
    run,
    settle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.core.ids import CommandId
from aivailable.core.planning.fit_report import device_fits
from aivailable.core.planning.placement import PlacementRefused, explain, place
from aivailable.core.planning.planner import explanations, plan
from aivailable.core.state.commands import Command, Drain, Place, PutDeployment
from aivailable.core.state.constraints import (
    ENTRIES_MAX,
    ENTRY_MAX_CHARS,
    device_obstacle,
    node_obstacle,
    problem,
)
from aivailable.core.state.invariants import violations
from aivailable.core.state.machine import apply
from aivailable.core.state.records import Backend, Device, Growth, Inventory, Role, Where
from aivailable.core.state.state import State

TITAN = Device("0000:01:00.0", "GTX 1080 Ti", "nvidia", Backend.CUDA, 0, 11 << 30, "sm_61")
RADEON = Device("0000:02:00.0", "Radeon RX 580", "amd", Backend.VULKAN, 0, 8 << 30, "gfx803")
TURING = replace(TITAN, name="RTX 2080", architecture="sm_75")


@pytest.mark.parametrize(
    ("where", "gpu", "why"),
    [
        (Where(), TITAN, ""),
        (Where(gpus=("*1080*",)), TITAN, ""),
        (Where(gpus=("*gtx*",)), TITAN, ""),
        (Where(gpus=("0000:02:00.0",)), RADEON, ""),
        (Where(gpus=("*1080*",)), RADEON, "is 'Radeon RX 580', asked for: *1080*"),
        (Where(vendors=("NVIDIA",)), TITAN, ""),
        (Where(vendors=("nvidia", "intel")), RADEON, "is of amd, asked for: nvidia or intel"),
        (Where(backends=("cuda",)), RADEON, "works by vulkan, asked for: cuda"),
        (Where(architecture_min="6.1"), TITAN, ""),
        (Where(architecture_min="sm_75"), TITAN, "is sm_61, asked for: sm_75 or newer"),
        (Where(architecture_min="7.5"), TURING, ""),
        (Where(architecture_min="10.0"), TURING, "is sm_75, asked for: 10.0 or newer"),
        (Where(architecture_min="6.1"), RADEON, "is gfx803, asked for: 6.1 or newer"),
        (Where(architecture_min="gfx803"), RADEON, ""),
        (Where(architecture_min="gfx90a"), RADEON, "is gfx803, asked for: gfx90a or newer"),
        (
            Where(architecture_min="6.1"),
            replace(TITAN, architecture=""),
            "is of unknown architecture, asked for: 6.1 or newer",
        ),
    ],
)
def test_what_is_asked_of_a_device(where: Where, gpu: Device, why: str) -> None:
    assert device_obstacle(where, gpu) == why


@pytest.mark.parametrize(
    ("where", "why"),
    [
        (Where(nodes=("host-a",)), ""),
        (Where(nodes=("HOST-*",)), ""),
        (Where(nodes=("abcdef",)), ""),
        (Where(nodes=("abc",)), "not among the nodes asked for: abc"),
        (Where(nodes=("x", "y")), "not among the nodes asked for: x, y"),
        (Where(nodes=("host-*",), not_nodes=("host-a",)), "excluded: not on host-a"),
    ],
)
def test_what_is_asked_of_a_node(where: Where, why: str) -> None:
    named = replace(cluster({"a": ()}).members["a"], node="abcdefgh")
    assert node_obstacle(where, named) == why


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (Where(nodes=("",)), "nodes: each entry has 1 to 128 characters"),
        (Where(gpus=("x" * (ENTRY_MAX_CHARS + 1),)), "gpus: each entry"),
        (Where(vendors=("x",) * (ENTRIES_MAX + 1)), "vendors: at most 16 entries"),
        (Where(backends=("opencl",)), "backend 'opencl' is unknown; known: cuda"),
        (Where(architecture_min="turing"), "architecture 'turing': like 7.5"),
        (Where(beside=("chat",)), "chat cannot be beside or apart from itself"),
        (Where(apart_from=("b",), beside=("b",)), "b cannot be beside and apart"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_by_everybody(where: Where, words: str) -> None:
    assert words in problem(where, "chat")
    state = cluster({"a": (device(),)})
    body = PutDeployment(deployment(where=where))
    _, outcome = apply(state, Command(CommandId("a", 1), body, "test"))
    assert (outcome.accepted, outcome.code) == (False, "invalid_where")
    assert words in outcome.message


def spread() -> State:
    cards = {
        "a": (replace(device("gpu0", 24), name="RTX 3090", vendor="nvidia"),),
        "b": (replace(device("gpu0", 8), name="RX 580", vendor="amd"),),
        "c": (device("gpu0", 8),),
    }
    return cluster(cards)


def hosts(state: State, name: str) -> str:
    return "".join(sorted(entry.node for entry in state.replicas_of(name)))


def test_a_refusal_names_the_rule_or_the_bytes_of_each_device() -> None:
    wanted = deployment(gib=9, where=Where(vendors=("amd",), not_nodes=("host-c",)))
    answer = place(spread(), liveness("abc"), wanted)
    assert isinstance(answer, PlacementRefused)
    assert explain(answer) == (
        "host-a gpu0: is of nvidia, asked for: amd; host-b gpu0: needs 9.0 GiB, 8.0 GiB free;"
        " would fit with ctx 2048; host-c: excluded: not on host-c"
    )


def test_fit_says_so_of_a_device_too() -> None:
    wanted = deployment(where=Where(gpus=("*3090*",)))
    fits = {fit.node: fit for fit in device_fits(spread(), liveness("abc"), wanted, None)}
    assert fits["a"].fits
    assert not fits["b"].fits
    assert fits["b"].obstacle == "is 'RX 580', asked for: *3090*"


def test_apart_holds_both_ways_and_beside_waits_for_its_neighbour() -> None:
    state = cluster({"a": (device(),), "b": (device(),)})
    loner = deployment("loner", 1, where=Where(apart_from=("other",)))
    state = deployed(state, loner, deployment("other", 1, replicas_min=2, replicas_max=2))
    state, _ = settle(state, liveness("ab"))
    assert len(hosts(state, "loner") + hosts(state, "other")) == 2
    assert not set(hosts(state, "loner")) & set(hosts(state, "other"))
    note = explanations(state, liveness("ab"))["other"]
    assert "runs loner, from which it stays apart" in note
    state = cluster({"a": (device(),), "b": (device(),)})
    state = deployed(state, deployment("friend", 6, where=Where(beside=("host",))))
    assert "has no replica of host" in explanations(state, liveness("ab"))["friend"]
    state = run(state, PutDeployment(deployment("host", 1)))
    state, _ = settle(state, liveness("ab"))
    assert hosts(state, "friend") == hosts(state, "host") != ""


def test_a_changed_wish_moves_only_what_must_not_stay() -> None:
    two = deployment(gib=4, replicas_min=2, replicas_max=2)
    state, _ = settle(run(spread(), PutDeployment(two)), liveness("abc"))
    state = obey(state)
    before = hosts(state, "chat")
    out = before[0]
    wish = replace(two, where=Where(not_nodes=(f"host-{out}",)))
    state = run(state, PutDeployment(wish, state.deployments["chat"].generation))
    state, _ = settle(state, liveness("abc"))
    for _ in range(4):
        state, bodies = settle(obey(state), liveness("abc"))
        assert all(
            state.replicas[body.replica].node == out for body in bodies if isinstance(body, Drain)
        )
    assert hosts(state, "chat") == "".join(sorted(set("abc") - {out}))
    assert before[1] in hosts(state, "chat")


names = st.sampled_from(["d0", "d1", "d2", "d3", "gone"])
wheres = st.builds(
    Where,
    nodes=st.sampled_from([(), (), ("host-a", "host-b"), ("host-[bc]",), ("nobody",)]),
    not_nodes=st.sampled_from([(), (), ("host-a",), ("host-*",)]),
    gpus=st.sampled_from([(), (), ("gpu0",), ("*1",)]),
    backends=st.sampled_from([(), (), ("sim",), ("cuda", "sim")]),
    apart_from=st.lists(names, max_size=2, unique=True).map(tuple),
    beside=st.one_of(st.just(()), st.lists(names, max_size=1).map(tuple)),
)
machines = st.lists(
    st.lists(st.tuples(st.integers(2, 24), st.booleans()), max_size=3), min_size=1, max_size=4
).map(
    lambda rows: {
        "abcd"[i]: tuple(
            device(f"gpu{j}", gib, Backend.SIM if sim else Backend.CUDA)
            for j, (gib, sim) in enumerate(row)
        )
        for i, row in enumerate(rows)
    }
)
wishes = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 2), st.integers(0, 2), wheres),
    min_size=1,
    max_size=4,
)


def breaches(state: State) -> list[str]:
    """Recomputed from the records: every replica where it must not be."""
    found = []
    for entry in state.replicas.values():
        where = state.deployments[entry.deployment].where
        there = {r.deployment for r in state.replicas_on(entry.node) if not r.drain}
        found += [f"{entry.replica} with {name}" for name in where.apart_from if name in there]
        found += [f"{entry.replica} without {name}" for name in where.beside if name not in there]
        if node_obstacle(where, state.members[entry.node]):
            found.append(f"{entry.replica} on {entry.node}")
        for claim in entry.claims:
            gpu = state.device(entry.node, claim.device_id)
            if gpu is None or device_obstacle(where, gpu):
                found.append(f"{entry.replica} on {claim.device_id}")
    return found


@settings(max_examples=60, deadline=None)
@given(machines, wishes)
def test_no_plan_breaks_a_wish_and_every_lack_is_explained(
    nodes: dict[str, tuple[Device, ...]], wanted: list[tuple[int, int, int, Where]]
) -> None:
    """Everything at once: packing, exchange and preemption of what is only planned included."""
    state = cluster(nodes)
    for number, (gib, count, priority, where) in enumerate(wanted):
        one = deployment(
            f"d{number}",
            gib,
            replicas_min=count,
            replicas_max=count,
            priority=priority,
            where=Where() if problem(where, f"d{number}") else where,
        )
        state = run(state, PutDeployment(one))
    state, _ = settle(state, liveness(nodes))
    assert violations(state) == ()
    assert breaches(state) == []
    notes = explanations(state, liveness(nodes))
    for name, one in state.deployments.items():
        assert len(state.replicas_of(name)) >= one.replicas_min or name in notes


growths = st.one_of(
    st.none(),
    st.builds(
        Growth,
        context_max=st.sampled_from([4096, 8192, 100_000]),
        token_kv_bytes=st.integers(0, 1 << 20),
        token_compute_bytes=st.integers(0, 4096),
        slots_max=st.integers(5, 64),
        slot_kv_bytes=st.integers(0, 1 << 30),
        slot_compute_bytes=st.integers(0, 1 << 20),
    ),
)


@settings(max_examples=60, deadline=None)
@given(
    machines,
    st.lists(st.tuples(wishes.map(lambda found: found[0]), growths), max_size=4),
    st.integers(1, 40),
)
def test_an_unrelated_node_added_or_removed_moves_nothing(
    nodes: dict[str, tuple[Device, ...]],
    wanted: list[tuple[tuple[int, int, int, Where], Growth | None]],
    gib: int,
) -> None:
    """With constraints, and with context and slots that could now grow elsewhere."""
    state = cluster(nodes)
    for number, ((gib_each, count, priority, where), growth) in enumerate(wanted):
        one = deployment(
            f"d{number}",
            gib_each,
            replicas_min=count,
            replicas_max=count,
            priority=priority,
            where=Where() if problem(where, f"d{number}") else where,
            growth=growth,
        )
        state = run(state, PutDeployment(one))
    state, _ = settle(state, liveness(nodes))
    before = dict(state.replicas)
    added = replace(
        state,
        members={**state.members, "z": member("z", Role.OBSERVER)},
        inventories={**state.inventories, "z": Inventory("z", (device(gib=gib),), ("llama",))},
    )
    after, bodies = settle(added, liveness([*nodes, "z"]))
    assert all(isinstance(body, Place) and body.node == "z" for body in bodies)
    assert {key: after.replicas[key] for key in before} == before
    hosts_now = {entry.node for entry in before.values()}
    for idle in sorted(set(nodes) - hosts_now):
        removed = replace(
            state,
            members={key: entry for key, entry in state.members.items() if key != idle},
            inventories={key: entry for key, entry in state.inventories.items() if key != idle},
        )
        assert plan(removed, liveness(set(nodes) - {idle})) == ()
