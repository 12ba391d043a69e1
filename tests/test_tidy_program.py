"""Rules over all sources at once: fields, definitions, parameters that nothing uses.

Each rule is also shown sources that break it, and sources that pass.
"""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
from fixtures.tidy_fields import Allowed, idle_fields
from fixtures.tidy_types import Program, key_of
from fixtures.tidy_unused import unused

from aivailable.core.serving.status import (
    ClusterStatus,
    DrainStatus,
    FitStatus,
    PauseStatus,
    PlanStatus,
)
from aivailable.core.state.invariants import violations
from aivailable.core.state.records import Where
from aivailable.core.state.state import State, state_digest
from aivailable.peer.devices.trials import Trials
from aivailable.peer.doctor.examine import Case
from aivailable.peer.ports import PeerConfig
from aivailable.raft.guards import Guards
from aivailable.raft.settings import RaftSettings
from aivailable.raft.store import MemoryStore
from aivailable.wire.generation import Alternative
from aivailable.wire.peer import Heartbeat

ROOT = Path(__file__).resolve().parent.parent

SHOWN = (ClusterStatus, PlanStatus, FitStatus, DrainStatus, PauseStatus)
"""People and programs get them as JSON, with all that they hold."""
TOLD = {
    Where: "a request's body says it",
    Guards: "all are on; tests and the simulation turn one off to show what it closes",
    RaftSettings: "the timers and sizes of every node; tests and benches make some smaller",
    Trials: "the limits of a trial; tests make them smaller",
}
UNREAD = {
    (Alternative, "token"): "has no default: an ingress of the first version refuses one without",
    (Heartbeat, "seq"): "has no default: a node of the first version refuses one without",
}
UNWRITTEN = {
    (State, "format"): "says how the bytes are to be read: a later format is a later default",
    (Case, "listen_s"): "tests do not listen for so long",
    (PeerConfig, "look_s"): "the simulation looks around for another time",
    (PeerConfig, "heartbeat_s"): "the simulation's own pace",
}
ALLOWED = Allowed(
    shown=frozenset(map(key_of, SHOWN)),
    told=frozenset(map(key_of, TOLD)),
    unread=frozenset((key_of(kind), name) for kind, name in UNREAD),
    unwritten=frozenset((key_of(kind), name) for kind, name in UNWRITTEN),
)

FOR_TESTS = {
    f"{thing.__module__}.{thing.__name__}": why
    for thing, why in {
        violations: "what must hold after each step; tests and simulation ask it",
        state_digest: "whether two nodes have the same state; tests and simulation ask it",
        MemoryStore: "a disk in memory that can lose power, for tests, simulation and benches",
    }.items()
}


@lru_cache(maxsize=1)
def whole_program() -> Program:
    return Program(
        (path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for folder in ("aivailable", "tui")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )


def test_every_field_is_written_and_read() -> None:
    assert idle_fields(whole_program(), ALLOWED) == []


def test_every_exception_from_the_rule_for_fields_is_needed() -> None:
    faults = "\n".join(idle_fields(whole_program()))
    for kind, name in (*UNREAD, *UNWRITTEN):
        assert f"{kind.__name__}.{name} is " in faults, "take it out of the table"


def test_every_definition_is_used() -> None:
    assert unused(whole_program(), FOR_TESTS) == []


def test_every_exception_from_the_rule_for_definitions_is_needed() -> None:
    faults = "\n".join(unused(whole_program()))
    for name in FOR_TESTS:
        assert f": {name.rpartition('.')[2]} is used nowhere" in faults, "take it out of the table"


RECORD = """
from dataclasses import dataclass, field, replace
@dataclass
class Card:
    name: str
    power_w: float = 0.0
"""
FIELD_FAULTS = [
    ("a parameter is left out", "c = Card('a')\nprint(c.name, c.power_w)", "power_w is written"),
    ("nobody looks", "c = Card('a', 1.0)\nprint(c.name)", "power_w is read"),
    (
        "another class's field of that name is read",
        "@dataclass\nclass Plug:\n    power_w: float\n"
        "c = Card('a', 1.0)\nprint(c.name)\ndef f(p: Plug):\n    return p.power_w\nPlug(2.0)",
        "Card.power_w is read",
    ),
    (
        "another class is made with it",
        "@dataclass\nclass Plug:\n    power_w: float\n"
        "p = Plug(power_w=2.0)\nc = Card('a')\nprint(c.name, c.power_w, p.power_w)",
        "Card.power_w is written",
    ),
    (
        "only a setter touches it",
        "c = Card('a')\nc.power_w = 2.0\nprint(c.name)",
        "power_w is read",
    ),
    (
        "replaced in another class",
        "@dataclass\nclass Plug:\n    power_w: float = 0.0\n"
        "p = replace(Plug(), power_w=2.0)\nc = Card('a')\nprint(c.name, c.power_w, p.power_w)",
        "Card.power_w is written",
    ),
    (
        "items of a tuple have their type",
        "@dataclass\nclass Plug:\n    power_w: float\n"
        "def f(plugs: tuple[Plug, ...]):\n    return [p.power_w for p in plugs]\nPlug(1.0)\n"
        "c = Card('a', 1.0)\nprint(c.name)",
        "Card.power_w is read",
    ),
]
FIELDS_IN_USE = [
    ("by position", "c = Card('a', 1.0)\nprint(c.name, c.power_w)"),
    ("by keyword", "c = Card(name='a', power_w=1.0)\nprint(c.name, c.power_w)"),
    ("by replace", "c = replace(Card('a'), power_w=1.0)\nprint(c.name, c.power_w)"),
    ("by assignment", "c = Card('a')\nc.power_w = 1.0\nprint(c.name, c.power_w)"),
    ("by what is unpacked", "def f(known):\n    c = Card(**known)\n    print(c.name, c.power_w)"),
    (
        "by cls",
        "class Dear(Card):\n    @classmethod\n    def make(cls):\n        return cls('a', 1.0)\n"
        "d = Dear.make()\nprint(d.name, d.power_w)",
    ),
    (
        "read by a pattern",
        "c = Card('a', 1.0)\nmatch c:\n    case Card(name=n, power_w=w):\n        print(n, w)",
    ),
    (
        "read by position in a pattern",
        "match Card('a', 1.0):\n    case Card(n, w):\n        print(n, w)",
    ),
    ("read as a whole", "from dataclasses import asdict\nprint(asdict(Card('a', 1.0)))"),
    (
        "read where the type is not known",
        "def f(x):\n    return x.name, x.power_w\nf(Card('a', 1.0))",
    ),
    (
        "read behind isinstance",
        "def f(x: object):\n    if isinstance(x, Card):\n        print(x.name, x.power_w)\n"
        "f(Card('a', 1.0))",
    ),
    (
        "a list that grows",
        "@dataclass\nclass Pile:\n    cards: list[Card] = field(default_factory=list)\n"
        "p = Pile()\np.cards.append(Card('a', 1.0))\nprint(p.cards[0].name, p.cards[0].power_w)",
    ),
    ("nowhere made: it comes from outside", "def f(c: Card):\n    return c.name, c.power_w"),
]


@pytest.mark.parametrize(("source", "says"), [row[1:] for row in FIELD_FAULTS])
def test_idle_fields_are_found(source: str, says: str) -> None:
    assert any(says in fault for fault in idle_fields(program(a=RECORD + source)))


@pytest.mark.parametrize("source", [row[1] for row in FIELDS_IN_USE])
def test_fields_in_use_pass(source: str) -> None:
    assert idle_fields(program(a=RECORD + source)) == []


def test_fields_are_followed_through_modules() -> None:
    user = "from {} import Card\ndef f(c: Card):\n    return c.name\nCard('a', 1.0)"
    assert idle_fields(program(a=RECORD, b=user.format("pack.a"))) == [
        "pack/a.py:6: Card.power_w is read nowhere"
    ]
    whole = Allowed(shown=frozenset({"pack.a.Card"}))
    assert idle_fields(program(a=RECORD, b=user.format("pack.a")), whole) == []


UNUSED_FAULTS = [
    {"a": "SEEDS_MAX = 64\n"},
    {"a": "SEEDS_MAX: int = 64\n"},
    {"a": "class JoinRefused(Exception):\n    pass\n"},
    {"a": "def count(n):\n    return count(n - 1)\n"},
    {"a": "def count(n):\n    return n\n__all__ = ['count']\n"},
    {"a": "LIMIT_S = 1.0\n", "b": "from pack.a import LIMIT_S\n"},
    {"a": "LIMIT_S = 1.0\n", "b": "LIMIT_S = 2.0\nprint(LIMIT_S)\n"},
]
USED = [
    {"a": "SEEDS_MAX = 64\nprint(SEEDS_MAX)\n"},
    {"a": "LIMIT_S = 1.0\n", "b": "from pack.a import LIMIT_S\nprint(LIMIT_S)\n"},
    {"a": "LIMIT_S = 1.0\n", "b": "from pack import a\nprint(a.LIMIT_S)\n"},
    {"a": "LIMIT_S = 1.0\n", "b": "from pack.a import LIMIT_S as L\nprint(L)\n"},
    {
        "a": "LIMIT_S = 1.0\n",
        "b": "from pack.a import LIMIT_S\n",
        "c": "from pack.b import LIMIT_S\nprint(LIMIT_S)\n",
    },
    {"a": "@app.command()\ndef serve():\n    pass\n"},
    {"a": "class Odd(Exception):\n    pass\nraise Odd\n"},
]


@pytest.mark.parametrize("sources", UNUSED_FAULTS)
def test_unused_definitions_are_found(sources: dict[str, str]) -> None:
    assert any(fault.startswith("pack/a.py:1: ") for fault in unused(program(**sources)))


@pytest.mark.parametrize("sources", USED)
def test_used_definitions_pass(sources: dict[str, str]) -> None:
    assert unused(program(**sources)) == []


def program(**sources: str) -> Program:
    """Modules of a package "pack"."""
    return Program([(f"pack/{name}.py", text) for name, text in sources.items()])


@pytest.mark.parametrize(
    ("path", "source", "told"),
    [
        ("aivailable/core/x.py", "def f(a: int) -> int:\n    return 1\n", True),
        ("aivailable/core/x.py", "def f(_a: int) -> int:\n    return 1\n", False),
        ("aivailable/peer/x.py", "f = lambda a: 1\n", True),
        ("tests/core/x.py", "def f(a: int) -> int:\n    return 1\n", False),
    ],
)
def test_ruff_names_parameters_that_nothing_reads(path: str, source: str, told: bool) -> None:
    """With the settings of the repository, which name the exceptions and why they are."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        "ARG",
        "--stdin-filename",
        path,
        "-",
    ]
    settings = ["--config", str(ROOT / "pyproject.toml")]
    told_by = subprocess.run(
        [*command, *settings], input=source, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ("ARG0" in told_by.stdout) is told, told_by.stdout + told_by.stderr


def test_ruff_is_asked_for_parameters() -> None:
    assert '"ARG"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
