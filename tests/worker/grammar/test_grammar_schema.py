"""Schemas: what the rules accept is valid, and what cannot be kept is refused with its path."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.worker.grammar.automaton import DEAD, START, Automaton
from aivailable.worker.grammar.gbnf import read_gbnf
from aivailable.worker.grammar.rules import GrammarError
from aivailable.worker.grammar.schema import any_object, read_schema
from aivailable.worker.grammar.spelling import schema_rules

NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["value", "next"],
    "additionalProperties": False,
}
SHAPE = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"kind": {"const": "circle"}, "radius": {"type": "number"}},
            "required": ["kind", "radius"],
        },
        {
            "type": "object",
            "properties": {"kind": {"const": "square"}, "side": {"minimum": 1, "maximum": 9}},
            "required": ["kind", "side"],
        },
    ]
}
SCHEMAS: dict[str, Any] = {
    "recursive": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "itself": {"type": "object", "properties": {"in": {"type": "array", "items": {"$ref": "#"}}}},
    "union": {"type": "array", "items": SHAPE, "minItems": 1, "maxItems": 3},
    "optional": {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in "abcd"},
        "required": ["b"],
    },
    "free": {
        "type": "object",
        "properties": {"na": {"type": "null"}, "name": {"type": "null"}},
        "additionalProperties": {"type": "integer"},
    },
    "enum": {"enum": ["red", 'q"uote', 5, 1.5, None, {"a": [1]}, True]},
    "strings": {
        "type": "object",
        "properties": {
            "short": {"type": "string", "minLength": 2, "maxLength": 5},
            "code": {"type": "string", "pattern": '^[A-Z]{2,3}-\\d+(\\.x|"y")?$'},
            "inside": {"type": "string", "pattern": "b+"},
            "day": {"type": "string", "format": "date"},
            "at": {"type": "string", "format": "date-time"},
            "id": {"type": "string", "format": "uuid"},
            "ip": {"type": "string", "format": "ipv4"},
        },
        "required": ["short", "code", "inside", "day", "at", "id", "ip"],
    },
    "bounds": {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": -120, "exclusiveMaximum": 37},
            "b": {"type": "integer", "minimum": 1000},
            "c": {"type": "number", "minimum": -1.25, "maximum": 3.5},
            "d": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
            "e": {"type": "integer", "exclusiveMinimum": 2.5, "maximum": 7.9},
            "f": {"type": "number", "maximum": -7},
        },
        "required": ["a", "b", "c", "d", "e", "f"],
    },
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "string"}],
        "items": {"type": "boolean"},
        "minItems": 1,
    },
    "pair": {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "string"}],
        "minItems": 2,
        "maxItems": 2,
    },
    "tuples": {
        "type": "object",
        "properties": {
            "short": {"type": "array", "prefixItems": [{"type": "integer"}] * 3, "maxItems": 2},
            "long": {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}}
            | {"minItems": 2, "maxItems": 3},
            "open": {"type": "array", "prefixItems": [{"const": 1}], "minItems": 2, "maxItems": 2},
            "none": {"type": "array", "prefixItems": [{"const": 1}], "maxItems": 0},
        },
        "required": ["short", "long", "open", "none"],
    },
    "lengths": {
        "type": "object",
        "properties": {
            "url": {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$", "minLength": 6},
            "word": {"type": "string", "pattern": '^[a-z"]+$', "minLength": 2, "maxLength": 4},
            "key": {"type": "string", "pattern": "^sk-[a-z]*$", "minLength": 5, "maxLength": 6},
            "head": {"type": "string", "pattern": "^A", "maxLength": 3},
        },
        "required": ["url", "code", "word", "key", "head"],
    },
    "notes": {
        "type": "object",
        "properties": {
            "secret": {"type": "string", "format": "password", "maxLength": 3},
            "link": {"type": "string", "format": "uri-reference"},
            "mail": {"type": "string", "format": "idn-email"},
            "count": {"type": "integer", "format": "int32"},
        },
        "required": ["secret", "link", "mail", "count"],
    },
    "names": {
        "type": "object",
        "properties": {
            "votes": {"propertyNames": {"$ref": "#/$defs/kind"}}
            | {"type": "object", "additionalProperties": {"type": "integer"}, "required": ["cat"]},
            "any": {"propertyNames": {"type": "string"}, "additionalProperties": {"const": 1}},
            "closed": {"propertyNames": {"const": "a"}, "properties": {"a": {"const": 2}}}
            | {"additionalProperties": False, "required": ["a"]},
        },
        "required": ["votes", "any", "closed"],
        "$defs": {"kind": {"enum": ["cat", "dog"], "type": "string", "title": "Kind"}},
    },
    "merged": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 5}, "b": {"type": ["string", "null"]}}},
        ]
    },
    "either": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
}


def generated(automaton: Automaton, rng: random.Random, most: int = 4000) -> str | None:
    """A text by random bytes that the automaton allows, hurrying to the end after a while."""
    state, text = START, bytearray()
    while len(text) < most:
        if automaton.exhausted(state) or (automaton.accepts(state) and rng.random() < 0.3):
            return text.decode()
        automaton.prepare((state,))
        row = automaton.table[state]
        choices = [byte for byte in range(256) if row[byte] != DEAD]
        ends = [byte for byte in choices if chr(byte) in '"}],:0129n']
        text.append(rng.choice(ends if ends and rng.random() < 0.8 else choices))
        state = int(row[text[-1]])
    return None


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_the_rules_accept_is_valid(name: str) -> None:
    schema = SCHEMAS[name]
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    automaton = Automaton(read_schema(json.dumps(schema)))
    rng = random.Random(name)
    texts = [text for _ in range(60) if (text := generated(automaton, rng)) is not None]
    assert len(texts) >= 30
    for text in texts:
        validator.validate(json.loads(text))


def accepts(schema: Any, text: str) -> bool:
    automaton = Automaton(read_schema(json.dumps(schema)))
    state = automaton.walk(START, text.encode())
    return state != DEAD and automaton.accepts(state)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("recursive", '{"value": 1, "next": {"value": -20, "next": null}}'),
        ("itself", '{\n  "in": [{}, {"in":[]}]\n}'),
        ("union", '[{"kind": "square", "side": 1.5}]'),
        ("optional", '{"a": true, "b": false, "d": true}'),
        ("free", '{"nam": 1, "names": 2, "": 3}'),
        ("enum", '"q\\"uote"'),
        ("tuple", '[1, "a", true, false]'),
        ("pair", '[1, "a"]'),
        ("names", '{"votes": {"cat": 3, "dog": 4}, "any": {"x": 1}, "closed": {"a": 2}}'),
        ("tuples", '{"short": [4, 5], "long": [1, 2, 2], "open": [1, {"x": 3}], "none": []}'),
        ("notes", '{"secret": "x€", "link": "https://a.b/c", "mail": "a@b.c", "count": 7}'),
        ("bounds", '{"a": 36, "b": 99999, "c": -1.25, "d": 0.4999, "e": 3, "f": -7.0}'),
        ("either", '{"b": 2}'),
    ],
)
def test_the_usual_spelling_is_accepted(name: str, text: str) -> None:
    jsonschema.validate(json.loads(text), SCHEMAS[name])
    assert accepts(SCHEMAS[name], text)


@pytest.mark.parametrize("low", [-1234, -10, 0, 7, 99, 1000])
@pytest.mark.parametrize("width", [0, 1, 12, 345, 2000])
def test_integer_bounds_are_exact(low: int, width: int) -> None:
    automaton = Automaton(
        read_schema(json.dumps({"type": "integer", "minimum": low, "maximum": low + width}))
    )
    for value in {low - 1, low, low + 1, low + width // 2, low + width, low + width + 1, 0, -1}:
        state = automaton.walk(START, str(value).encode())
        assert (state != DEAD and automaton.accepts(state)) == (low <= value <= low + width)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a/not"),
        ({"type": "integer", "multipleOf": 3}, "#/multipleOf"),
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
        ({"type": "string", "format": "regex"}, "#/format"),
        ({"type": "string", "pattern": "(?=a)"}, "#/pattern"),
        ({"type": "string", "pattern": "^(a{9999999})$"}, "#/pattern"),
        ({"type": "thing"}, "#/type"),
        ({"$ref": "http://example.com/x"}, "$ref"),
        ({"$ref": "#/$defs/none"}, "#/$defs/none"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf"),
        ({"enum": []}, "#/enum"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "#/required"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "#/maxLength"),
        ({"type": "string", "minLength": 2, "pattern": "a"}, "pattern"),
        ({"type": "string", "maxLength": 2, "pattern": "^abc$"}, "length"),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, "#/propertyNames"),
        ({"propertyNames": {"enum": ["a"]}, "required": ["b"]}, "#/required"),
        ({"type": "string", "minLength": 2, "pattern": "^(ab?|c)$"}, "length"),
        ({"type": "string", "format": "date", "pattern": "a"}, "together"),
        (False, "no finite text"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no finite"),
        ({"$ref": "#"}, "no finite"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "no finite"),
        (5, "a schema is an object"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_path(schema: Any, path: str) -> None:
    with pytest.raises(GrammarError) as refused:
        Automaton(read_schema(json.dumps(schema)))
    assert path in str(refused.value)
    assert refused.value.status == 400


MALFORMED = [
    {"type": "string", "minLength": "x"},
    {"type": "string", "maxLength": [1]},
    {"type": "string", "format": ["date"]},
    {"type": "string", "pattern": 5},
    {"type": "array", "minItems": {}},
    {"type": "array", "prefixItems": [5]},
    {"type": "integer", "minimum": "1"},
    {"type": [["string"]]},
    {"type": {}},
    {"type": "object", "properties": {"a": 5}},
    {"type": "object", "required": [[]]},
    {"allOf": [{"required": 5}, {"required": ["a"]}]},
    {"allOf": [{"minLength": "x"}, {"minLength": 5}]},
    {"oneOf": [{"type": "object", "required": [[]]}, {"type": "object", "required": 5}]},
    {"oneOf": [{"type": "object", "properties": []}, {"type": "object", "properties": 5}]},
    {"$ref": 5},
    {"$ref": "#/type", "type": 5},
    {"enum": 5},
    {"anyOf": {}},
]


@pytest.mark.parametrize("schema", MALFORMED, ids=json.dumps)
def test_keywords_of_another_kind_are_refused_and_in_tools_left_free(schema: Any) -> None:
    with pytest.raises(GrammarError):
        Automaton(read_schema(json.dumps(schema)))
    with contextlib.suppress(GrammarError):
        schema_rules({"type": "object", "properties": {"p": schema}}, "x")


WORDS = ("type", "minLength", "pattern", "format", "items", "prefixItems", "required", "properties")
MORE_WORDS = ("allOf", "oneOf", "anyOf", "enum", "const", "$ref", "minimum", "additionalProperties")
JSON_VALUES = st.recursive(
    st.sampled_from([None, True, 0, -1, 2.5, "", "string", "object", "#", "date", "x", "(a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from((*WORDS, *MORE_WORDS)), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150)
@given(schema=JSON_VALUES, strict=st.booleans())
def test_any_json_is_a_schema_or_refused(schema: Any, strict: bool) -> None:
    with contextlib.suppress(GrammarError):
        read_schema(json.dumps(schema), strict=strict)


def test_bombs_are_refused() -> None:
    nested: Any = {"type": "integer"}
    for _ in range(500):
        nested = {"type": "array", "items": nested}
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(9000)}}
    long = {"type": "array", "items": {"type": "string", "maxLength": 8000}, "minItems": 8000}
    doubling: Any = {"$defs": {"d0": {"type": "integer"}}, "$ref": "#/$defs/d20"}
    for level in range(20):
        pair = [{"$ref": f"#/$defs/d{level}"}] * 2
        doubling["$defs"][f"d{level + 1}"] = {"anyOf": pair}
    for schema in (nested, wide):
        with pytest.raises(GrammarError):
            Automaton(read_schema(json.dumps(schema)))
    for text in ("[" * 100_000, "{", '{"type": 1e999999}', '"' + "x" * 300_000 + '"'):
        with pytest.raises(GrammarError):
            Automaton(read_schema(text))
    assert accepts(doubling, "17")
    assert not accepts(long, "[]")


def test_any_object_is_json() -> None:
    automaton = Automaton(any_object())
    rng = random.Random(3)
    texts = [text for _ in range(40) if (text := generated(automaton, rng)) is not None]
    assert all(isinstance(json.loads(text), dict) for text in texts)
    assert automaton.walk(START, b'{"a": [1, {"b": "x\\u00e9"}], "c": -1.5e3}') != DEAD
    for bad in (b"[]", b'{"a": 01}', b'{"a": "\n"}', b'{"a": "\\ud800"}'):
        assert automaton.walk(START, bad) == DEAD


@pytest.mark.parametrize("name", SCHEMAS)
def test_rules_written_as_gbnf_mean_the_same(name: str) -> None:
    text = schema_rules(SCHEMAS[name], "inner", strict=True)
    assert all(line.startswith("inner") for line in text.splitlines())
    written = Automaton(read_gbnf(f"root ::= inner\n{text}"))
    direct = Automaton(read_schema(json.dumps(SCHEMAS[name])))
    rng = random.Random(name)
    for _ in range(10):
        example = generated(direct, rng)
        if example is not None:
            state = written.walk(START, example.encode())
            assert state != DEAD
            assert written.accepts(state)


def test_tools_schemas_are_kept_as_far_as_possible() -> None:
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "multipleOf": 3},
            "s": {"type": "string", "format": "regex"},
            "u": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        },
        "required": ["n", "s", "u"],
        "minProperties": 1,
    }
    automaton = Automaton(read_gbnf(f"root ::= x\n{schema_rules(schema, 'x')}"))
    state = automaton.walk(START, b'{"n": 4, "s": "[a", "u": {}}')
    assert state != DEAD
    assert automaton.accepts(state)
