"""JSON schema (draft 2020-12, the part that can be generated) into rules.

Owns: which keywords are understood, and the refusal, with its path, of every other keyword that
constrains. What is generated is always valid; not everything valid is generated: properties come in
the order of the schema, none beyond them unless `additionalProperties` says so, and strings of a
`format` in one common form. Pure.

Not to be confused with `wire.schema`, the rule of how messages become bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from aivailable.worker.grammar.json_text import (
    ARRAY,
    BOOLEAN,
    CHARACTER,
    COMMA,
    DIGITS_MAX,
    FRACTION_MAX_DIGITS,
    INTEGER,
    NULL,
    NUMBER,
    OBJECT,
    SPACE,
    STRING,
    VALUE,
    Bound,
    array_of,
    base_rules,
    integer_between,
    key_except,
    literal,
    member,
    members,
    number_between,
    object_of,
    quoted,
    tuple_of,
)
from aivailable.worker.grammar.merge import disjoint, merged, types_of
from aivailable.worker.grammar.pattern import FORMATS, UNKEPT_FORMATS, limited, read_pattern
from aivailable.worker.grammar.rules import (
    DEPTH_MAX,
    EMPTY,
    NOTHING,
    REPETITIONS_MAX,
    ROOT,
    RULES_MAX,
    GrammarError,
    Node,
    Repeat,
    Rule,
    choice,
    sequence,
)

SCHEMA_MAX_CHARS: Final = 256 * 1024
ENUM_MAX: Final = 2048
_TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
_COMBINED: Final = ("$ref", "allOf", "anyOf", "oneOf")
_BY_TYPE: Final = {
    "object": frozenset({"properties", "required", "additionalProperties", "propertyNames"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
}
_REFUSED: Final = frozenset(
    {
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "patternProperties",
        "minProperties",
        "maxProperties",
        "unevaluatedProperties",
        "unevaluatedItems",
        "contains",
        "minContains",
        "maxContains",
        "multipleOf",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "additionalItems",
        "$dynamicRef",
        "$recursiveRef",
    }
)

Schema = Mapping[str, Any]
MALFORMED: Final = (TypeError, ValueError, AttributeError, ArithmeticError, LookupError)
"""What a keyword with a value of another kind than the standard says can end in ("minLength": "x").
Told apart where it is likely; the rest is caught where the reader is called."""


def read_schema(text: str, *, strict: bool = True) -> dict[str, Node]:
    """The rules of a schema given as JSON text. Not `strict`: a part that cannot be expressed is
    bound by its type alone. Raises GrammarError."""
    if len(text) > SCHEMA_MAX_CHARS:
        raise GrammarError(f"the schema has {len(text)} characters; {SCHEMA_MAX_CHARS} are allowed")
    try:
        schema = json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the schema is not JSON: {error}") from error
    try:
        return _Reader(schema, strict=strict).read()
    except MALFORMED as error:
        raise GrammarError(f"the schema is malformed: {error}") from error


def any_object() -> dict[str, Node]:
    """The rules of json_object: any JSON object."""
    return {**base_rules(), ROOT: OBJECT}


class _Reader:
    def __init__(self, schema: Any, *, strict: bool) -> None:
        self._schema = schema
        self._strict = strict
        self._rules = base_rules()
        self._named: dict[str, Rule] = {}
        """Rule by reference, so that recursion ends."""

    def read(self) -> dict[str, Node]:
        self._rules[ROOT] = self._reference("#", "schema", 0)
        return self._rules

    def _reference(self, reference: Any, where: str, depth: int) -> Node:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise GrammarError(f"{where}: only references within the schema (#/…) are supported")
        rule = self._named.get(reference)
        if rule is None:
            rule = self._named[reference] = self._new_rule()
            target = self._target(reference, where)
            self._rules[rule.name] = self._node(target, reference, depth + 1)
        return rule

    def _target(self, reference: str, where: str) -> Any:
        target: Any = self._schema
        for step in reference[1:].split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                raise GrammarError(f"{where}: {reference} is not in the schema")
        return target

    def _new_rule(self) -> Rule:
        if len(self._rules) >= RULES_MAX:
            raise GrammarError("the schema is too large")
        rule = Rule(f"r{len(self._rules)}")
        self._rules[rule.name] = NOTHING
        return rule

    def _node(self, schema: Any, where: str, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise GrammarError(f"{where}: schemas are nested more than {DEPTH_MAX} levels deep")
        if schema is True:
            return VALUE
        if schema is False:
            return NOTHING
        if not isinstance(schema, dict):
            raise GrammarError(f"{where}: a schema is an object, true or false")
        if self._strict:
            return self._described(schema, where, depth)
        known = {key: value for key, value in schema.items() if key not in _REFUSED}
        try:
            return self._described(known, where, depth)
        except (GrammarError, *MALFORMED):
            return self._by_type_alone(known)

    def _by_type_alone(self, schema: Schema) -> Node:
        said = schema.get("type")
        types = [kind for kind in (said if isinstance(said, list) else [said]) if kind in _TYPES]
        return choice(*(self._typed(kind, {}, "", 0) for kind in types)) if types else VALUE

    def _described(self, schema: Schema, where: str, depth: int) -> Node:
        if unknown := sorted(_REFUSED & schema.keys()):
            raise GrammarError(f"{where}/{unknown[0]}: this keyword is not supported")
        if used := [key for key in _COMBINED if key in schema]:
            return self._combined(schema, used[0], where, depth)
        if "const" in schema:
            return self._literals(schema, [schema["const"]], where)
        if "enum" in schema:
            return self._literals(schema, schema["enum"], where)
        types = types_of(schema, where)
        if not types:
            return VALUE
        if len(types) == 1:
            return self._typed(types[0], schema, where, depth)
        # Every kind of value has a rule of its own, so that the others' keywords do not matter.
        return choice(*(self._typed(kind, schema, where, depth) for kind in types))

    def _combined(self, schema: Schema, key: str, where: str, depth: int) -> Node:
        rest = {name: value for name, value in schema.items() if name != key}
        constrains = any(name in rest for name in (*_COMBINED, "const", "enum", "type")) or any(
            names & rest.keys() for names in _BY_TYPE.values()
        )
        if key == "$ref":
            if not constrains:
                return self._reference(schema["$ref"], f"{where}/$ref", depth)
            target = self._target(str(schema["$ref"]), where)
            return self._node(merged(target, rest, f"{where}/$ref"), where, depth + 1)
        parts = schema[key]
        if not isinstance(parts, list) or not parts:
            raise GrammarError(f"{where}/{key}: a list with at least one schema is needed")
        if key == "allOf":
            whole: Any = rest
            for at, part in enumerate(parts):
                whole = merged(whole, self._resolved(part, where), f"{where}/allOf/{at}")
            return self._node(whole, where, depth + 1)
        if key == "oneOf":
            resolved = [self._resolved(part, where) for part in parts]
            for at, one in enumerate(resolved):
                for other in range(at):
                    if not disjoint(one, resolved[other]):
                        raise GrammarError(
                            f"{where}/oneOf: an answer may match both {other} and {at}; "
                            "use anyOf, or a property whose const tells them apart"
                        )
        options: list[Node] = []
        for at, part in enumerate(parts):
            path = f"{where}/{key}/{at}"
            if constrains:
                part = merged(rest, self._resolved(part, where), path)
            options.append(self._node(part, path, depth + 1))
        return choice(*options)

    def _resolved(self, schema: Any, where: str) -> Any:
        for _ in range(DEPTH_MAX):
            if not (isinstance(schema, dict) and "$ref" in schema):
                return schema
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            target = self._target(str(schema["$ref"]), where)
            schema = merged(target, rest, where) if rest else target
        raise GrammarError(f"{where}: references lead to each other without end")

    def _literals(self, schema: Schema, values: Any, where: str) -> Node:
        if not isinstance(values, list) or not 0 < len(values) <= ENUM_MAX:
            raise GrammarError(f"{where}/enum: 1 to {ENUM_MAX} values are needed")
        beside = set().union(*_BY_TYPE.values()) & schema.keys()
        if beside or ("const" in schema and "enum" in schema):
            raise GrammarError(f"{where}: enum and const stand alone, without {sorted(beside)}")
        types = types_of(schema, where) or list(_TYPES)
        return choice(
            *(literal(_plain(value)) for value in values if any(_is(value, kind) for kind in types))
        )

    def _typed(self, kind: str, schema: Schema, where: str, depth: int) -> Node:
        match kind:
            case "null":
                return NULL
            case "boolean":
                return BOOLEAN
            case "string":
                return self._string(schema, where)
            case "integer" | "number":
                return self._number(schema, where, whole=kind == "integer")
            case "array":
                return self._array(schema, where, depth)
            case _:
                return self._object(schema, where, depth)

    def _string(self, schema: Schema, where: str) -> Node:
        least, most = _counts(schema, "minLength", "maxLength", where)
        pattern, form = schema.get("pattern"), schema.get("format")
        if form is not None and not isinstance(form, str):
            raise GrammarError(f"{where}/format: a text is needed")
        if form in UNKEPT_FORMATS:
            known = ", ".join(FORMATS)
            raise GrammarError(f"{where}/format: {form!r} is not supported; supported are {known}")
        form = FORMATS.get(form or "")
        bounded = least > 0 or most is not None
        if pattern is not None and form is not None:
            raise GrammarError(f"{where}: pattern and format together are not supported")
        pattern = pattern if form is None else form
        if pattern is not None:
            if not isinstance(pattern, str):
                raise GrammarError(f"{where}/pattern: a text is needed")
            content = limited(read_pattern(pattern, f"{where}/pattern"), least, most)
            if content is None:
                raise GrammarError(f"{where}: this length beside this pattern is not supported")
            return quoted(content)
        return quoted(Repeat(CHARACTER, least, most)) if bounded else STRING

    def _number(self, schema: Schema, where: str, *, whole: bool) -> Node:
        lows, highs = (
            [
                (_decimal(schema[key], f"{where}/{key}"), key.startswith("exclusive"))
                for key in keys
                if key in schema
            ]
            for keys in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))
        )
        low: Bound | None = max(lows, default=None)
        high: Bound | None = min(highs, key=lambda bound: (bound[0], not bound[1]), default=None)
        if low is None and high is None:
            return INTEGER if whole else NUMBER
        if not whole:
            return number_between(low, high)
        least = most = None
        if low is not None:
            least = int(low[0].to_integral_value("ROUND_CEILING"))
            least += low[1] and least == low[0]
        if high is not None:
            most = int(high[0].to_integral_value("ROUND_FLOOR"))
            most -= high[1] and most == high[0]
        return integer_between(least, most)

    def _array(self, schema: Schema, where: str, depth: int) -> Node:
        if schema.get("uniqueItems"):
            raise GrammarError(f"{where}/uniqueItems: this keyword is not supported")
        least, most = _counts(schema, "minItems", "maxItems", where)
        first = schema.get("prefixItems", [])
        items = schema.get("items", True)
        if isinstance(items, list) or not isinstance(first, list):
            raise GrammarError(f"{where}/items: one schema is needed; lists go into prefixItems")
        if not first:
            if items is True and not least and most is None:
                return ARRAY
            return array_of(self._node(items, f"{where}/items", depth + 1), least, most)
        nodes = [
            self._node(item, f"{where}/prefixItems/{at}", depth + 1)
            for at, item in enumerate(first[:most])
        ]
        rest = None
        if "items" in schema and items is not False:
            rest = self._node(items, f"{where}/items", depth + 1)
        elif least > len(nodes):
            rest = VALUE if items is True else NOTHING
        if most is not None and most <= len(nodes):
            rest = None
        return tuple_of(nodes, rest, least, most)

    def _object(self, schema: Schema, where: str, depth: int) -> Node:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        extra = schema.get("additionalProperties", not properties)
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise GrammarError(f"{where}: properties is an object and required a list")
        if any(not isinstance(name, str) for name in required):
            raise GrammarError(f"{where}/required: names are needed")
        missing = [name for name in required if name not in properties]
        if missing and extra is False:
            raise GrammarError(f"{where}/required: {missing[0]!r} is not among the properties")
        # Required but not described: described by additionalProperties.
        properties = {**properties, **dict.fromkeys(missing, extra or True)}
        names = self._names(schema.get("propertyNames", True), f"{where}/propertyNames")
        if names is not None:
            if beyond := [name for name in required if name not in names]:
                raise GrammarError(f"{where}/required: {beyond[0]!r} is not among propertyNames")
            properties = {
                name: properties.get(name, extra)
                for name in names
                if name in properties or extra is not False
            }
            extra = False
        if not properties and extra is True:
            return OBJECT
        nodes = [
            (
                member(literal(name), self._node(inner, f"{where}/properties/{name}", depth + 1)),
                name in required,
            )
            for name, inner in properties.items()
        ]
        more: Node | None = None
        if extra is not False:
            inner = self._node(extra, f"{where}/additionalProperties", depth + 1)
            more = member(key_except(list(properties)), inner)
        return object_of(self._members(nodes, more))

    def _names(self, schema: Any, where: str) -> list[str] | None:
        """The only names that members may have; None: any. What is a list of them is kept."""
        schema = self._resolved(schema, where)
        listed = {"enum", "const"}
        others = _BY_TYPE["string"] | _REFUSED | set(_COMBINED)
        if schema is True or (isinstance(schema, dict) and not schema.keys() & (listed | others)):
            return None
        if isinstance(schema, dict) and not schema.keys() & others:
            values = [schema["const"]] if "const" in schema else schema.get("enum")
            if isinstance(values, list) and 0 < len(values) <= ENUM_MAX:
                return [value for value in values if isinstance(value, str)]
        raise GrammarError(f"{where}: only a list of names (enum) is supported")

    def _members(self, nodes: list[tuple[Node, bool]], more: Node | None) -> Node:
        """Members in order, the optional ones there or not. Two chains of rules: `first` as long
        as nothing has been written, `later` afterwards, when a comma is due."""
        first: Node = EMPTY if more is None else members(more)
        later: Node = EMPTY
        if more is not None:
            later = Repeat(sequence(COMMA, more, SPACE), 0, None)
        for node, required in reversed(nodes):
            one, name = self._shared(node), self._shared(later)
            present = sequence(one, SPACE, name)
            with_comma = sequence(COMMA, one, SPACE, name)
            first = present if required else choice(present, self._shared(first))
            later = with_comma if required else choice(with_comma, name)
        return first

    def _shared(self, node: Node) -> Node:
        """A rule for what is used twice."""
        if isinstance(node, Rule) or node == EMPTY:
            return node
        rule = self._new_rule()
        self._rules[rule.name] = node
        return rule


def _counts(schema: Schema, least: str, most: str, where: str) -> tuple[int, int | None]:
    values: list[int | None] = []
    for key in (least, most):
        value = schema.get(key)
        if value is not None and (not _is(value, "integer") or value < 0):
            raise GrammarError(f"{where}/{key}: a number from 0 on is needed")
        if value is not None and value > REPETITIONS_MAX:
            if key == least:
                raise GrammarError(f"{where}/{key}: at most {REPETITIONS_MAX}")
            # Nothing as long as that is generated, so the bound keeps.
            value = REPETITIONS_MAX
        values.append(None if value is None else int(value))
    low, high = values[0] or 0, values[1]
    if high is not None and high < low:
        raise GrammarError(f"{where}/{most}: below {least}")
    return low, high


def _decimal(value: Any, where: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise GrammarError(f"{where}: a number is needed")
    number = Decimal(value)
    if (
        not number.is_finite()
        or abs(number) >= Decimal(10) ** DIGITS_MAX
        or number != round(number, FRACTION_MAX_DIGITS)
    ):
        raise GrammarError(f"{where}: at most 15 digits before and after the point")
    return number


def _is(value: Any, kind: str) -> bool:
    if kind == "number":
        return isinstance(value, (int, Decimal)) and not isinstance(value, bool)
    if kind == "integer":
        return _is(value, "number") and value == int(value)
    kinds: dict[str, type] = {"object": dict, "array": list, "string": str, "boolean": bool}
    return value is None if kind == "null" else isinstance(value, kinds[kind])


def _plain(value: Any) -> Any:
    """The value as json.dumps takes it."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
