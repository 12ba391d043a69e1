"""The rule how dataclasses become plain values and back, each kind of value checked."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from fixtures.annotations import values
from hypothesis import given
from hypothesis import strategies as st

from aivailable.errors import SchemaError
from aivailable.wire.generation import Generate, Sampling
from aivailable.wire.schema import from_plain, pack, to_plain, unpack, unpack_plain


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    number: int = 0


@dataclass(frozen=True)
class Everything:
    flag: bool
    number: int
    ratio: float
    text: str
    data: bytes
    colour: Colour
    word: Literal["a", "b"]
    pair: tuple[int, str]
    many: tuple[Inner, ...]
    named: Mapping[str, Inner]
    maybe: int | None
    anything: Any
    later: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Checked:
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("negative")


GOOD: dict[str, Any] = {
    "flag": True,
    "number": 1,
    "ratio": 0.5,
    "text": "t",
    "data": b"d",
    "colour": "red",
    "word": "a",
    "pair": [1, "x"],
    "many": [{"number": 1}],
    "named": {"k": {"number": 2}},
    "maybe": None,
    "anything": {"x": [1]},
}


@given(values(Everything))
def test_everything_round_trips(value: Everything) -> None:
    assert unpack(Everything, pack(value)) == value


def test_missing_fields_take_their_default_and_unknown_are_ignored() -> None:
    assert from_plain(Everything, {**GOOD, "unknown": 1}).later == Inner()
    with pytest.raises(SchemaError, match=r"Everything\.flag: missing"):
        from_plain(Everything, {key: GOOD[key] for key in GOOD if key != "flag"})


@pytest.mark.parametrize(
    ("name", "wrong", "path"),
    [
        ("flag", 1, "flag"),
        ("number", True, "number"),
        ("number", 1.0, "number"),
        ("number", 2**63, "number"),
        ("ratio", "1", "ratio"),
        ("text", b"t", "text"),
        ("data", "d", "data"),
        ("data", "aGk=", "data"),
        ("colour", "green", "colour"),
        ("colour", 1, "colour"),
        ("word", "c", "word"),
        ("pair", [1], "pair"),
        ("pair", {"a": 1}, "pair"),
        ("many", "text", "many"),
        ("many", [{"number": 1}, {"number": "x"}], r"many\[1\]\.number"),
        ("named", [1], "named"),
        ("named", {"k": {"number": None}}, r"named\.k\.number"),
        ("named", {1: {}}, "named"),
        ("maybe", "x", "maybe"),
        ("later", None, "later"),
    ],
)
def test_wrong_values_are_named_by_path(name: str, wrong: Any, path: str) -> None:
    with pytest.raises(SchemaError, match=path):
        from_plain(Everything, {**GOOD, name: wrong})


def test_an_integer_is_a_fine_float() -> None:
    assert from_plain(Everything, {**GOOD, "ratio": 2}).ratio == 2.0


def test_a_dataclass_that_refuses_its_values_is_a_schema_error() -> None:
    with pytest.raises(SchemaError, match="negative"):
        from_plain(Checked, {"number": -1})


def test_order_of_mappings_does_not_reach_the_bytes() -> None:
    assert pack({"b": 1, "a": 2}) == pack({"a": 2, "b": 1})


def test_what_has_no_shape_cannot_be_encoded() -> None:
    with pytest.raises(TypeError):
        to_plain(object())
    with pytest.raises(TypeError):
        from_plain(set, [1])


@given(st.binary(max_size=60))
def test_junk_is_a_schema_error_or_a_value(junk: bytes) -> None:
    try:
        unpack_plain(junk)
    except SchemaError as error:
        message = str(error)
        assert message.startswith("not msgpack")


@pytest.mark.parametrize(
    "junk", [b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000]
)
def test_claimed_lengths_and_depths_cost_nothing(junk: bytes) -> None:
    with pytest.raises(SchemaError):
        unpack_plain(junk)


def test_a_clients_own_objects_keep_their_order() -> None:
    schema = {"type": "object", "properties": {"zeta": {}, "alpha": {}}}
    request = Generate(
        "r", "m", tools=(schema,), sampling=Sampling(logit_bias={"9": 1.0, "1": 2.0})
    )
    read = unpack(Generate, pack(request))
    assert read.tools is not None
    assert list(read.tools[0]["properties"]) == ["zeta", "alpha"]
    assert list(read.sampling.logit_bias) == ["1", "9"]
