"""Old decoder and new one agree: on what they refuse, and on the value of what they accept.

The old one is `fixtures.schema_by_msgpack`, the first version's code. A member that runs it and one
that runs ours read the same log: where they disagree, two states differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fixtures import schema_by_msgpack as old
from fixtures.annotations import values
from fixtures.msgpack_damage import damaged, everywhere
from fixtures.write_v1 import REGISTRIES
from fixtures.written import table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aivailable.core.ids import CommandId
from aivailable.core.state.codec import decode_command, encode_command
from aivailable.core.state.commands import KINDS, Command
from aivailable.core.state.levels import needed
from aivailable.core.state.records import Control
from aivailable.core.state.state import State, decode_state, encode_state
from aivailable.errors import CodeTooOld, SchemaError
from aivailable.raft import codec
from aivailable.wire.schema import (
    DEPTH_MAX_LEVELS,
    from_plain,
    pack,
    since,
    to_plain,
    unpack_plain,
)

COMMANDS, STATES, MESSAGES, RAFT = map(table, ("commands", "states", "messages", "raft"))
USUAL = {name for name in MESSAGES if name.endswith(".usual")}
USUAL -= {"from_worker.step.usual", "to_worker.generate.usual"}
"""Without those whose parts are damaged under another name."""
OLD = {name: old.Registry(**room.kinds) for name, room in REGISTRIES.items()}


def thorough(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def bad(data: Mapping[str, bytes]) -> st.SearchStrategy[tuple[str, bytes]]:
    """One of these, by name, damaged."""
    return st.sampled_from(sorted(data)).flatmap(
        lambda name: st.tuples(st.just(name), damaged(data[name]))
    )


def verdict(decode: Callable[[Any], Any], data: Any) -> str:
    """The value as Python spells it, so that 1, 1.0 and True differ; "" when it is refused."""
    try:
        value = decode(data)
    except SchemaError:
        return ""
    except CodeTooOld as error:
        return f"too old: {error}"
    try:
        return repr(value)
    except RecursionError:
        return "nested too deeply to be spelled"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name.endswith(".usual")])
def test_commands_damaged_in_each_place(name: str) -> None:
    verdicts = []
    for data in everywhere(COMMANDS[name]):
        found = verdict(decode_command, data)
        assert found == verdict(old.decode_command, data), data
        verdicts.append(found)
    assert len(verdicts) > verdicts.count("") > 0


@pytest.mark.parametrize("name", sorted(USUAL))
def test_messages_damaged_in_each_place(name: str) -> None:
    """As `test_damaged_messages`."""
    room = name.split(".")[0]
    for data in everywhere(MESSAGES[name]):
        found, expected = verdict(REGISTRIES[room].decode, data), verdict(OLD[room].decode, data)
        agree = found == expected
        assert agree or ((not expected) != (not found)), data
        if expected and not agree:
            with pytest.raises(SchemaError, match=r"nested deeper|no plain value"):
                REGISTRIES[room].decode(data)
        elif not agree:
            # Taken: what is wrong lies where only the old one looks.
            assert b"\xa7unknown" in data, data


@thorough(600)
@given(bad(COMMANDS))
def test_damaged_commands(case: tuple[str, bytes]) -> None:
    found = verdict(decode_command, case[1])
    assert found == verdict(old.decode_command, case[1])
    if found:
        command = decode_command(case[1])
        assert encode_command(command) == old.encode_command(command)


@thorough(100)
@given(bad({name: data for name, data in STATES.items() if name != "told"}))
def test_damaged_states(case: tuple[str, bytes]) -> None:
    found = verdict(decode_state, case[1])
    assert found == verdict(old.decode_state, case[1])
    if found and not found.startswith("too old"):
        state = decode_state(case[1])
        assert encode_state(state) == old.encode_state(state)


@thorough(600)
@given(bad(MESSAGES))
def test_damaged_messages(case: tuple[str, bytes]) -> None:
    """What the old one accepts, the new one accepts. It may accept more, where damage lies in what
    it need not look into, and then makes of it a message that the old one knows as well."""
    name, data = case
    room = name.split(".")[0]
    found, expected = verdict(REGISTRIES[room].decode, data), verdict(OLD[room].decode, data)
    if expected and found != expected:
        # A client's own objects have bounds that nothing enforced before.
        assert not found
        with pytest.raises(SchemaError, match=r"nested deeper|no plain value"):
            REGISTRIES[room].decode(data)
    if found and found != "None":
        message = REGISTRIES[room].decode(data)
        packed = REGISTRIES[room].encode(message)
        assert packed == OLD[room].encode(message)
        again = OLD[room].decode(packed)
        # Packing sorts a mapping's keys; a NaN equals nothing, but is written alike.
        assert again == message or repr(again) == found


@thorough(200)
@given(bad(RAFT))
def test_commands_in_damaged_raft_messages(case: tuple[str, bytes]) -> None:
    """What gets through Raft's own reader is put before both."""
    try:
        _, message, _ = codec.decode(case[1])
    except SchemaError:
        return
    entries = [entry[0] for entry in message.get("entries", ())] + [message.get("command", b"")]
    for entry in entries:
        assert verdict(decode_command, entry[1:]) == verdict(old.decode_command, entry[1:])


@pytest.mark.parametrize("kind", KINDS.values())
@given(data=st.data())
@thorough(8)
def test_commands_are_the_same_bytes(kind: Any, data: st.DataObject) -> None:
    controls = st.sampled_from([None, Control("n", 3)])
    command = Command(
        CommandId(data.draw(st.text(max_size=3)), data.draw(st.integers(1, 2**63 - 1))),
        data.draw(values(kind)),
        data.draw(st.text(max_size=3)),
        control=data.draw(controls),
    )
    command = replace(command, level=needed(command.body))
    assert encode_command(command) == old.encode_command(command)
    assert decode_command(encode_command(command)) == command


@thorough(20)
@given(values(State))
def test_states_are_the_same_bytes(state: State) -> None:
    assert encode_state(state) == old.encode_state(state)


@pytest.mark.parametrize("name", sorted({name.rpartition(".")[0] for name in MESSAGES}))
@given(data=st.data())
@thorough(8)
def test_messages_are_the_same_bytes(name: str, data: st.DataObject) -> None:
    room, word = name.split(".")
    message = data.draw(values(REGISTRIES[room].kinds[word]))
    packed = REGISTRIES[room].encode(message)
    assert packed == OLD[room].encode(message)
    assert verdict(REGISTRIES[room].decode, packed) == verdict(OLD[room].decode, packed)


@dataclass(frozen=True, slots=True)
class Part:
    number: int = 0
    later: tuple[str, ...] = field(default=(), metadata=since(3))


@dataclass(frozen=True, slots=True)
class Whole:
    parts: tuple[Part, ...]
    pair: tuple[Part, float]
    named: Mapping[str, Part] = field(default_factory=dict)
    maybe: Part | None = None
    free: Any = None
    later: int = field(default=0, metadata=since(2))


@thorough(150)
@given(st.data(), st.integers(1, 4))
def test_later_fields_at_each_level(data: st.DataObject, level: int) -> None:
    whole = data.draw(values(Whole))
    assert pack(whole) == old.pack(whole)
    assert to_plain(whole) == old.to_plain(whole)
    try:
        plain = unpack_plain(data.draw(damaged(pack(whole))))
    except SchemaError:
        return
    expected = verdict(lambda value: old.from_plain(Whole, value, level=level), plain)
    found = verdict(lambda value: from_plain(Whole, value, level=level), plain)
    if found != expected:
        # As in test_damaged_messages.
        with pytest.raises(SchemaError, match=r"Whole\.free.*(nested deeper|no plain value)"):
            from_plain(Whole, plain, level=level)


def test_a_clients_own_objects_have_a_depth() -> None:
    def nested(levels: int) -> Any:
        value: Any = 1
        for level in range(levels):
            value = [value] if level % 2 else {"x": value}
        return value

    just = Whole((), (Part(), 0.5), free=nested(DEPTH_MAX_LEVELS))
    assert from_plain(Whole, to_plain(just)) == just
    deeper = Whole((), (Part(), 0.5), free=nested(DEPTH_MAX_LEVELS + 1))
    with pytest.raises(SchemaError, match="nested deeper"):
        pack(deeper)
    with pytest.raises(SchemaError, match=r"Whole\.free.*nested deeper"):
        from_plain(Whole, old.to_plain(deeper))
