"""Schemas that hold at once (allOf, keywords beside anyOf), and schemas that exclude each other.

Owns: both questions, answered carefully: what cannot be merged is refused with its path, and
`disjoint` is true only where it is proved. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aivailable.worker.grammar.rules import GrammarError

PROOF_DEPTH_MAX: Final = 4
_KNOWN: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
_IMPLIED: Final = {
    "object": ("properties", "required", "additionalProperties", "propertyNames"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_NOTES: Final = frozenset(
    {
        "title",
        "description",
        "default",
        "examples",
        "$comment",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$schema",
        "$id",
        "$defs",
        "definitions",
        "$anchor",
    }
)
_LARGER: Final = frozenset({"minLength", "minItems", "minimum", "exclusiveMinimum"})
_SMALLER: Final = frozenset({"maxLength", "maxItems", "maximum", "exclusiveMaximum"})


def types_of(schema: Mapping[str, Any], where: str) -> list[str]:
    """Kinds of values, as said or as the keywords imply; empty: any. Raises GrammarError."""
    said = schema.get("type")
    if said is None:
        return [kind for kind, keys in _IMPLIED.items() if any(key in schema for key in keys)]
    types = said if isinstance(said, list) else [said]
    for kind in types:
        if kind not in _KNOWN:
            raise GrammarError(f"{where}/type: {kind!r} is no type; types are {', '.join(_KNOWN)}")
    if not types:
        raise GrammarError(f"{where}/type: at least one type is needed")
    return [kind for kind in dict.fromkeys(types) if kind != "integer" or "number" not in types]


def merged(one: Any, other: Any, where: str) -> Any:
    """A schema for what matches both. Raises GrammarError where that is not simple."""
    if one is True or other is True:
        return other if one is True else one
    if one is False or other is False:
        return False
    if not isinstance(one, dict) or not isinstance(other, dict):
        raise GrammarError(f"{where}: a schema is an object, true or false")
    _refuse_closed(one, other, where)
    result = dict(one)
    for key, value in other.items():
        if key not in result or key in _NOTES:
            result.setdefault(key, value)
        elif key == "properties":
            result[key] = _properties(result[key], value, f"{where}/properties")
        elif key == "required":
            result[key] = list(dict.fromkeys([*result[key], *value]))
        elif key == "type":
            result[key] = _types(one, other, where)
        elif key in _LARGER:
            result[key] = max(result[key], value)
        elif key in _SMALLER:
            result[key] = min(result[key], value)
        elif result[key] != value:
            raise GrammarError(f"{where}/{key}: two different ones at once are not supported")
    return result


def _types(one: Mapping[str, Any], other: Mapping[str, Any], where: str) -> list[str]:
    mine, theirs = types_of(one, where), types_of(other, where)
    both = [kind for kind in mine if kind in theirs or (kind == "integer" and "number" in theirs)]
    both += [kind for kind in theirs if kind == "integer" and "number" in mine]
    if not both:
        raise GrammarError(f"{where}/type: no value is of both types")
    return both


def _properties(one: Any, other: Any, where: str) -> dict[str, Any]:
    if not isinstance(one, dict) or not isinstance(other, dict):
        raise GrammarError(f"{where}: an object is needed")
    result = dict(one)
    for name, schema in other.items():
        same = name not in result or result[name] == schema
        result[name] = schema if same else merged(result[name], schema, f"{where}/{name}")
    return result


def _refuse_closed(one: Mapping[str, Any], other: Mapping[str, Any], where: str) -> None:
    """additionalProperties speaks of its own schema's properties, not of the merged ones."""
    for closed, free in ((one, other), (other, one)):
        extra = closed.get("additionalProperties", True)
        beyond = set(free.get("properties", ())) - set(closed.get("properties", ()))
        if extra is not True and beyond:
            raise GrammarError(
                f"{where}: additionalProperties excludes {sorted(beyond)[0]!r}, which is described "
                "beside it"
            )


def disjoint(one: Any, other: Any, depth: int = 0) -> bool:
    """Whether it is certain that no value matches both."""
    if one is False or other is False:
        return True
    if depth > PROOF_DEPTH_MAX or not isinstance(one, dict) or not isinstance(other, dict):
        return False
    mine, theirs = _values(one), _values(other)
    if mine is not None and theirs is not None:
        return not any(type(a) is type(b) and a == b for a in mine for b in theirs)
    if "type" in one and "type" in other:
        kinds = [set(types_of(schema, "schema")) for schema in (one, other)]
        for kind in kinds:
            if "number" in kind:
                kind.add("integer")
        if not kinds[0] & kinds[1]:
            return True
        if kinds[0] & kinds[1] != {"object"}:
            return False
        return _objects_disjoint(one, other, depth)
    return False


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _objects_disjoint(one: Mapping[str, Any], other: Mapping[str, Any], depth: int) -> bool:
    mine, theirs = one.get("properties", {}), other.get("properties", {})
    both = set(one.get("required", ())) & set(other.get("required", ()))
    for name in sorted(both & mine.keys() & theirs.keys()):
        if disjoint(mine[name], theirs[name], depth + 1):
            return True
    return any(
        closed.get("additionalProperties") is False
        and bool(set(needy.get("required", ())) - set(closed.get("properties", ())))
        for closed, needy in ((one, other), (other, one))
    )
