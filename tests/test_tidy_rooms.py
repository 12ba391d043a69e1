"""Rooms of the house: each has a map that is true, and their imports run one way.

Each rule is also shown a source that breaks it, so that a rule that stopped working is noticed.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest
from fixtures.tidy_circles import circles
from fixtures.tidy_maps import REASON, faults_of_map, map_of

ROOT = Path(__file__).resolve().parent.parent
TOP_ROOMS_MAX = {"aivailable/peer": 20, "aivailable/core": 16, "aivailable/worker": 16}
ROOMS = sorted(
    init.parent.relative_to(ROOT).as_posix()
    for folder in ("aivailable", "tui")
    for init in (ROOT / folder).rglob("__init__.py")
)


def files_of(room: str) -> list[str]:
    found = []
    for path in (ROOT / room).iterdir():
        if path.suffix == ".py" and not path.stem.startswith("__"):
            found.append(path.stem)
        elif (path / "__init__.py").exists():
            found.append(path.name)
    return sorted(found)


def test_there_are_rooms() -> None:
    assert "aivailable/core/planning" in ROOMS
    assert "router" in files_of("aivailable/core/serving")


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_stands_in_the_map_of_its_room(room: str) -> None:
    design = ROOT / room / "DESIGN.md"
    words = map_of(
        (ROOT / room / "__init__.py").read_text(encoding="utf-8"),
        design.read_text(encoding="utf-8") if design.exists() else "",
    )
    assert faults_of_map(room, files_of(room), words) == []


@pytest.mark.parametrize(("room", "most"), TOP_ROOMS_MAX.items())
def test_the_big_rooms_fit_in_a_head(room: str, most: int) -> None:
    assert len(files_of(room)) <= most


def test_no_circle_between_files_or_folders() -> None:
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "aivailable").rglob("*.py"))
    }
    assert circles(sources) == []


def test_one_public_class_has_one_name() -> None:
    """A name that two classes share sends a reader to the wrong one."""
    names = Counter(
        node.name
        for folder in ("aivailable", "tui")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert sorted(name for name, count in names.items() if count > 1) == []


SOUND = '"""A room.\n\n* `one`: first.\n* `two`: second.\n"""'


def test_the_rule_of_maps_can_fail() -> None:
    words = map_of(SOUND)
    assert faults_of_map("room", ["one", "two"], words) == []
    assert faults_of_map("room", ["one", "two", "three"], words) != []
    assert faults_of_map("room", ["one"], words) != []
    many = [f"file_{number}" for number in range(16)]
    lines = "\n".join(f"* `{name}`: here." for name in many)
    assert faults_of_map("room", many, lines) != []
    assert faults_of_map("room", many, f"{lines}\n{REASON}: they are one table.") == []


def test_a_drawing_is_a_map_too() -> None:
    assert faults_of_map("room", ["one", "two"], "one    first\ntwo/   second") == []
