"""How a deployment's options name the files that go with its model.

Owns the form of `lora=PATH[:SCALE][,…]` and `projector=PATH`: which paths they name, and the same
options with other words in their place. Pure: it opens no file (gguf.companions does).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

LORA: Final = "lora"
PROJECTOR: Final = "projector"
ADAPTERS_MAX: Final = 16
SCALE_MAX: Final = 100.0
FILES_MAX: Final = ADAPTERS_MAX + 1
"""Companions of one deployment: adapters and a projector."""
_COMMA: Final = re.compile(r"(?<!\\),")


def lora_items(option: str) -> tuple[tuple[str, float], ...]:
    """`PATH[:SCALE][,…]` as paths and scales; a scale that is left out is 1, a comma of a path is
    written `\\,`."""
    items = (item.strip() for item in _COMMA.split(option))
    return tuple(_path_and_scale(item.replace("\\,", ",")) for item in items if item)


def _path_and_scale(item: str) -> tuple[str, float]:
    path, _, number = item.rpartition(":")
    try:
        return (path, float(number)) if path else (item, 1.0)
    except ValueError:
        return item, 1.0  # The colon belongs to the path.


def lora_problem(option: str) -> str:
    """What can never be served, in words; "" = nothing."""
    items = lora_items(option)
    if len(items) > ADAPTERS_MAX:
        return f"more than {ADAPTERS_MAX} adapters"
    for _, scale in items:
        if not abs(scale) <= SCALE_MAX:  # Nor is it "not a number".
            return f"scale {scale:g} is not within {SCALE_MAX:g}"
    return ""


def files_named(options: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """(option, path as given) of every file, each once."""
    named = [(LORA, path) for path, _ in lora_items(options.get(LORA, ""))]
    projector = options.get(PROJECTOR, "").strip()
    named += [(PROJECTOR, projector)] if projector else []
    return tuple(dict.fromkeys(named))


def with_paths(
    options: Mapping[str, str], paths: Mapping[tuple[str, str], str]
) -> Mapping[str, str]:
    """The options, with `paths` by (option, path as given) in the files' places."""
    changed = dict(options)
    if LORA in options:
        items = lora_items(options[LORA])
        placed = ((paths.get((LORA, path), path).replace(",", "\\,"), n) for path, n in items)
        changed[LORA] = ",".join(f"{path}:{scale}" for path, scale in placed)
    if PROJECTOR in options:
        given = options[PROJECTOR].strip()
        changed[PROJECTOR] = paths.get((PROJECTOR, given), given)
    return changed
