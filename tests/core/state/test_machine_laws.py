"""Laws of `apply`: never raises, never oversubscribes, replay = incremental, repeats change
nothing, only the committed controller plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fixtures.annotations import values
from fixtures.states import (
    DIGEST,
    Cluster,
    deployment,
    device,
    equipped,
    founded,
    inventory,
    raised,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aivailable.core.ids import CommandId
from aivailable.core.state import machine
from aivailable.core.state.changes.handlers import HANDLERS
from aivailable.core.state.codec import encode_command
from aivailable.core.state.commands import (
    KINDS,
    PLANNER_KINDS,
    Command,
    MarkDown,
    Place,
    PutDeployment,
    RemoveDeployment,
    ReportInventory,
    ReportReplica,
    SetWindow,
)
from aivailable.core.state.invariants import violations
from aivailable.core.state.levels import needed
from aivailable.core.state.machine import apply, apply_bytes
from aivailable.core.state.records import ApiKey, Claim, Companion, Control, Scope, Status
from aivailable.core.state.state import (
    EVENTS_MAX,
    OUTCOMES_PER_PROPOSER_MAX,
    State,
    decode_state,
    encode_state,
    state_digest,
)

NODES = st.sampled_from(["n1", "n2", "n3", "stranger"])
NAMES = st.sampled_from(["tiny", "b", "b"])
SMALL = st.integers(-1, 700)
HASHED = st.sampled_from(["ab" * 32, "cd" * 32])
COMPANIONS = (
    Companion("lora", "s.gguf", "d2" * 32, 5),
    Companion("projector", "p.gguf", "d3" * 32, 7, 9),
)
PLAUSIBLE: dict[Any, Any] = {
    "node": NODES,
    "holder": NODES,
    "name": NAMES,
    "deployment": NAMES,
    "digest": st.sampled_from([DIGEST, "d2" * 32]),
    "replica": st.sampled_from([f"{n}#1.{r}" for n in ("tiny", "b") for r in (1, 2, 3)]),
    "generation": st.integers(1, 2),
    "replace_generation": st.integers(0, 2),
    "device_id": st.sampled_from(["d0", "d0", "d1"]),
    "claim_bytes": SMALL,
    "total_bytes": SMALL,
    "certificate": st.just(b"der"),
    "context": st.integers(1, 9),
    "slots": st.integers(1, 3),
    "copies": st.integers(1, 3),
    "replicas_min": st.integers(0, 1),
    "replicas_max": st.integers(1, 2),
    "weights_bytes": SMALL,
    "kv_bytes": SMALL,
    "compute_bytes": SMALL,
    "window_serial": st.one_of(st.none(), st.integers(1, 2)),
    "serial": st.integers(1, 2),
    "duration_s": st.integers(-1, 99),
    "term": st.integers(1, 3),
    "level": st.integers(0, 2),
    "aliases": st.just(()),
    "options": st.sampled_from([{}, {"lora": "s.gguf", "projector": "p.gguf"}]),
    "companions": st.lists(st.sampled_from(COMPANIONS), max_size=2).map(tuple),
    "holding": st.lists(st.sampled_from(["d2" * 32, "d3" * 32]), max_size=2).map(tuple),
}  # fmt: skip
PLAUSIBLE[ApiKey] = HASHED.map(lambda hashed: ApiKey(hashed[:8], hashed, Scope.ADMIN, "k"))


def bodies(overrides: dict[Any, Any]) -> st.SearchStrategy[Any]:
    by_kind = dict(overrides)
    if overrides:
        by_kind.pop("deployment")
    return st.one_of(
        *(values(kind, by_kind if kind is PutDeployment else overrides) for kind in KINDS.values())
    )


made = st.builds(
    Command,
    command_id=st.builds(CommandId, NODES, st.integers(1, 12)),
    body=st.one_of(bodies(PLAUSIBLE), bodies(PLAUSIBLE), bodies({})),
    actor=st.sampled_from(["operator:k", "planner", "agent", ""]),
    reason=st.text(max_size=4),
    proposed_at_ms=st.integers(0, 9),
    control=st.sampled_from([Control("n1", 1), Control("n1", 1), Control("n2", 2), None]),
)
commands = made.map(lambda command: replace(command, level=needed(command.body)))
starts = st.sampled_from(
    [
        State(),
        founded(2).state,
        equipped(2).state,
        equipped(3).state,
        raised(founded(2)).state,
        raised(equipped(3)).state,
    ]
)
thorough = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def with_control(state: State, command: Command) -> Command:
    """Half the planner's commands must pass the fence, or nothing behind it is tried."""
    if type(command.body) in PLANNER_KINDS and command.control == Control("n1", 1):
        proposer = state.control.node if state.control else "n1"
        changed = replace(command.command_id, proposer=proposer)
        return replace(command, control=state.control, command_id=changed)
    return command


@thorough
@given(starts, st.lists(commands, max_size=12))
def test_any_history_is_survived_and_sound(state: State, log: list[Command]) -> None:
    """Never raises, never oversubscribes, and the bytes of the state go both ways."""
    for entry in log:
        state, _ = apply(state, with_control(state, entry))
        assert violations(state) == ()
        assert decode_state(encode_state(state)) == state


moves = st.one_of(
    st.tuples(st.just("place"), st.sampled_from(["n1", "n2"]), st.integers(1, 700)),
    st.tuples(st.just("place"), st.sampled_from(["n1", "n2"]), st.integers(1, 700)),
    st.tuples(st.just("report"), st.sampled_from(list(Status)), st.integers(0, 9)),
    st.tuples(st.just("resize"), st.sampled_from(["n1", "n2"]), st.integers(0, 1500)),
    st.tuples(st.just("down"), st.sampled_from(["n1", "n2"]), st.booleans()),
)


@thorough
@given(st.lists(moves, max_size=20))
def test_no_history_of_placements_oversubscribes(history: list[Any]) -> None:
    """Well-formed commands of a planner that does not count: `apply` does (`Cluster` checks)."""
    cluster = equipped(2)
    for move, what, amount in history:
        state = cluster.state
        number = state.replica_numbers.get("tiny", 0) + 1
        if move == "place":
            claims = (Claim("d0", amount),)
            cluster.propose(Place(f"tiny#1.{number}", "tiny", 1, what, claims))
        elif move == "report" and state.replicas:
            replica = state.replicas[sorted(state.replicas)[amount % len(state.replicas)]]
            body = ReportReplica(replica.replica, replica.node, what)
            cluster.propose(body, by=replica.node)
        elif move == "resize":
            cluster.propose(ReportInventory(inventory(what, device("d0", amount))), by=what)
        elif move == "down":
            cluster.propose(MarkDown(what, amount))


@thorough
@given(starts, st.lists(commands, max_size=12))
def test_replay_is_incremental(start: State, log: list[Command]) -> None:
    """Through bytes and snapshots at every step, or straight: the same state."""
    straight = stepped = start
    for entry in log:
        straight, outcome = apply(straight, entry)
        loaded = decode_state(encode_state(stepped))
        stepped, other = apply_bytes(loaded, encode_command(entry))
        assert outcome == other
    assert state_digest(straight) == state_digest(stepped)


@thorough
@given(starts, commands)
def test_a_repeat_gets_the_same_answer_and_changes_nothing(start: State, entry: Command) -> None:
    once, first = apply(start, with_control(start, entry))
    twice, second = apply(once, with_control(start, entry))
    assert replace(twice, version=once.version) == once or not first.accepted
    if entry.command_id.proposer in once.members:
        assert first == second


@thorough
@given(starts, st.binary(max_size=200))
def test_no_bytes_break_it(start: State, junk: bytes) -> None:
    after, outcome = apply_bytes(start, junk)
    assert not outcome.accepted
    assert outcome.code == "malformed"
    assert after == replace(start, version=start.version + 1)


@thorough
@given(starts, commands, st.data())
def test_damaged_commands_never_raise(start: State, entry: Command, data: Any) -> None:
    good = bytearray(encode_command(entry))
    position = data.draw(st.integers(0, len(good) - 1))
    good[position] = data.draw(st.integers(0, 255))
    after, _ = apply_bytes(start, bytes(good))
    assert violations(after) == ()


@thorough
@given(starts, commands)
def test_a_refusal_changes_nothing_but_version_and_answers(start: State, entry: Command) -> None:
    after, outcome = apply(start, entry)
    if not outcome.accepted:
        assert replace(after, version=start.version, outcomes=start.outcomes) == start


@thorough
@given(commands)
def test_without_the_committed_control_nothing_is_planned(entry: Command) -> None:
    state = equipped(2).state
    if type(entry.body) in PLANNER_KINDS and (
        entry.control != state.control or entry.command_id.proposer != "n1"
    ):
        entry = replace(entry, command_id=replace(entry.command_id, seq=10**6))
        after, outcome = apply(state, entry)
        assert not outcome.accepted
        assert after.replicas == state.replicas


def test_the_histories_reach_what_they_should() -> None:
    """The generator is worth something: placements are accepted among what it makes."""
    cluster = equipped(2)
    accepted = 0
    for number in range(20):
        body = Place(f"tiny#1.{number + 1}", "tiny", 1, "n1", (Claim("d0", 100),))
        accepted += cluster.propose(body).accepted
    assert accepted == 10, "1000 bytes hold ten claims of 100"


def test_every_kind_has_a_handler() -> None:
    assert set(HANDLERS) == set(KINDS.values())
    assert set(KINDS.values()) >= PLANNER_KINDS


def test_only_the_last_outcomes_are_remembered() -> None:
    cluster = founded()
    first = cluster.command(SetWindow(5))
    cluster.submit(first)
    for _ in range(OUTCOMES_PER_PROPOSER_MAX - 3):
        cluster.must(SetWindow(5))
    assert cluster.submit(first).accepted, "still in the table"
    for _ in range(4):
        cluster.must(SetWindow(5))
    serial = cluster.state.window.serial
    outcome = cluster.submit(first)
    assert (outcome.accepted, outcome.code) == (False, "expired")
    assert cluster.state.window.serial == serial
    assert len(cluster.state.outcomes["n1"].outcomes) == OUTCOMES_PER_PROPOSER_MAX
    assert len(cluster.state.events) == EVENTS_MAX


def test_a_large_cluster_keeps_its_state_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table of outcomes full of long refusals, and the state is still below its limit."""
    monkeypatch.setattr(machine, "OUTCOMES_PER_PROPOSER_MAX", 8)
    monkeypatch.setattr(machine, "OUTCOMES_TOTAL_MAX", 12)
    cluster = founded(3)
    for _ in range(20):
        for node in ("n1", "n2", "n3"):
            refused = cluster.propose(RemoveDeployment("x" * 9000), by=node, actor="y" * 9000)
            assert not refused.accepted
            assert len(refused.message) <= machine.OUTCOME_MESSAGE_MAX_CHARS
            cluster.must(SetWindow(5), by=node, actor="y" * 9000)
    assert sum(len(table.outcomes) for table in cluster.state.outcomes.values()) == 12
    assert all(len(event.actor) <= machine.EVENT_ACTOR_MAX_CHARS for event in cluster.state.events)


def test_sequence_numbers_may_arrive_out_of_order() -> None:
    cluster = founded()
    late, early = (
        replace(cluster.command(SetWindow(5)), command_id=CommandId("n1", n)) for n in (90, 80)
    )
    assert cluster.submit(late).accepted
    serial = cluster.state.window.serial
    assert cluster.submit(early).accepted
    assert cluster.state.window.serial == serial + 1


def test_strangers_do_not_grow_the_state() -> None:
    cluster = founded()
    for number in range(5):
        cluster.propose(SetWindow(5), by=f"stranger{number}")
    assert list(cluster.state.outcomes) == ["n1"]


def test_dict_order_does_not_reach_the_bytes() -> None:
    one, two = equipped(3).state, equipped(3).state
    shuffled = replace(
        two,
        members=dict(reversed(two.members.items())),
        inventories=dict(reversed(two.inventories.items())),
        keys=dict(reversed(two.keys.items())),
    )
    assert encode_state(one) == encode_state(shuffled)
    options = deployment("b", options={"x": "1", "a": "2"})
    again = deployment("b", options={"a": "2", "x": "1"})
    assert encode_command(Cluster().command(PutDeployment(options))) == encode_command(
        Cluster().command(PutDeployment(again))
    )


def test_the_invariants_can_fail() -> None:
    """With the claim check gone, the checker sees it."""
    state = equipped(1).state
    cluster = Cluster(state=state)
    cluster._seqs["n1"] = 1000
    replica = cluster.place(bytes_=600)
    twin = replace(cluster.state.replicas[replica], replica="tiny#1.9")
    broken = replace(cluster.state, replicas={**cluster.state.replicas, "tiny#1.9": twin})
    assert violations(broken) == ("d0 on n1: 1200 of 1000 claimed",)
    assert violations(replace(broken, members={})) != ()
