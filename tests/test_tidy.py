"""A rule exists when a test enforces it: the house rules, over the sources.

Each rule is also shown a source that breaks it, so that a rule that stopped working is noticed.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures import tidy
from fixtures.annotations import values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aivailable.core.ids import CommandId
from aivailable.core.state.codec import decode_command, encode_command
from aivailable.core.state.commands import KINDS, Command
from aivailable.core.state.levels import needed
from aivailable.errors import SchemaError
from aivailable.wire.envelope import Registry
from aivailable.wire.join import JOIN
from aivailable.wire.peer import HELLO, PEER
from aivailable.wire.worker import FROM_WORKER, TO_WORKER

ROOT = Path(__file__).resolve().parent.parent
Rule = Callable[[str, str], list[str]]

REGISTRIES = {
    "peer": PEER,
    "hello": HELLO,
    "join": JOIN,
    "to_worker": TO_WORKER,
    "from_worker": FROM_WORKER,
}
MESSAGES = [
    pytest.param(registry, kind, id=f"{name}-{word}")
    for name, registry in REGISTRIES.items()
    for word, kind in registry.kinds.items()
]


def sources(*folders: str) -> list[tuple[str, str]]:
    """(path from the root, text) of every Python file below the folders, sorted."""
    found = [
        (path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    assert found, f"no sources under {folders}"
    return found


def everywhere(rule: Rule, *folders: str) -> list[str]:
    return [fault for path, text in sources(*folders) for fault in rule(path, text)]


def test_imports_follow_the_house() -> None:
    assert everywhere(tidy.broken_imports, "aivailable", "tui") == []


def test_files_and_functions_are_small() -> None:
    assert everywhere(tidy.too_long, "aivailable", "tui", "bench") == []


def test_test_files_are_small() -> None:
    assert everywhere(tidy.too_long, "tests") == []


def test_core_is_pure() -> None:
    assert everywhere(tidy.impure, "aivailable/core") == []


def test_what_is_simulated_never_iterates_over_sets() -> None:
    assert everywhere(tidy.unordered, *tidy.ORDERED_ROOMS) == []


def test_tests_do_not_sleep() -> None:
    assert everywhere(tidy.sleeps, "tests") == []


def test_modules_say_what_they_own() -> None:
    silent = [
        path
        for path, text in sources("aivailable", "tui", "bench")
        if not ast.get_docstring(ast.parse(text))
    ]
    assert silent == []


BROKEN = [
    (tidy.broken_imports, "aivailable/core/x.py", "import aivailable.peer.app"),
    (tidy.broken_imports, "aivailable/core/x.py", "from aivailable import config"),
    (tidy.broken_imports, "aivailable/core/x.py", "from ..peer import app"),
    (tidy.broken_imports, "aivailable/wire/x.py", "from aivailable.core.ids import short"),
    (tidy.broken_imports, "aivailable/raft/x.py", "from aivailable.peer.ports import Clock"),
    (tidy.broken_imports, "aivailable/worker/x.py", "from aivailable.core import records"),
    (tidy.broken_imports, "aivailable/peer/x.py", "from aivailable.config import Config"),
    (tidy.broken_imports, "aivailable/peer/x.py", "def f():\n    import llama_cpp"),
    (tidy.broken_imports, "aivailable/peer/links.py", "import ssl"),
    (tidy.broken_imports, "aivailable/peer/x.py", "from pysyncobj import SyncObj"),
    (tidy.broken_imports, "aivailable/core/x.py", "import msgpack"),
    (tidy.broken_imports, "aivailable/raft/x.py", "import msgspec"),
    (tidy.broken_imports, "aivailable/client.py", "from aivailable.core.state.state import State"),
    (tidy.broken_imports, "aivailable/cli/x.py", "from aivailable.peer.ports import Clock"),
    (tidy.broken_imports, "aivailable/attic/x.py", "import json"),
    (tidy.too_long, "aivailable/x.py", "x = 1\n" * 501),
    (tidy.too_long, "aivailable/x.py", "def f():\n" + "    x = 1\n" * 70),
    (tidy.impure, "aivailable/core/x.py", "def f():\n    from time import monotonic"),
    (tidy.impure, "aivailable/core/x.py", "import os.path"),
    (tidy.impure, "aivailable/core/x.py", "x = hash('a')"),
    (tidy.impure, "aivailable/core/x.py", "x = open('a')"),
    (tidy.unordered, "aivailable/core/x.py", "for x in {1, 2}: pass"),
    (tidy.unordered, "aivailable/core/x.py", "for x in set(y): pass"),
    (tidy.unordered, "aivailable/core/x.py", "s = set(y)\nz = [x for x in s]"),
    (tidy.unordered, "aivailable/core/x.py", "def f(s: frozenset[str]):\n    return tuple(s)"),
    (tidy.unordered, "aivailable/core/x.py", "z = tuple(x for x in set(y) | {1})"),
    (tidy.unordered, "aivailable/peer/x.py", "self.s: set[str] = set()\nfor x in self.s: pass"),
    (tidy.unordered, "aivailable/peer/x.py", "z = (*{1, 2},)"),
    (tidy.unordered, "aivailable/peer/x.py", "z = hash(x)"),
    (tidy.sleeps, "tests/core/x.py", "import time\ntime.sleep(1)"),
    (tidy.sleeps, "tests/peer/x.py", "await asyncio.sleep(0.1)"),
    (tidy.sleeps, "tests/sim/x.py", "time.sleep(1)"),
]
SOUND = [
    (tidy.broken_imports, "aivailable/core/x.py", "from aivailable.wire.schema import pack"),
    (tidy.broken_imports, "aivailable/peer/app.py", "from aivailable.config import Config"),
    (tidy.broken_imports, "aivailable/peer/links/trust.py", "import ssl"),
    (tidy.broken_imports, "aivailable/cli/up.py", "from aivailable.peer.app import run"),
    (tidy.too_long, "aivailable/x.py", "def f():\n" + "    x = 1\n" * 69),
    (tidy.impure, "aivailable/core/x.py", "import hashlib\nx = hashlib.sha256(b'')"),
    (tidy.unordered, "aivailable/core/x.py", "z = sorted(x for x in set(y))"),
    (tidy.unordered, "aivailable/core/x.py", "z = any(x for x in {1, 2})"),
    (tidy.unordered, "aivailable/core/x.py", "z = tuple(sorted(set(y)))"),
    (tidy.unordered, "aivailable/core/x.py", "z = x in {1, 2}"),
    (tidy.sleeps, "tests/peer/x.py", "await asyncio.sleep(0)"),
    (tidy.sleeps, "tests/raft/x.py", "await asyncio.sleep(5)"),
    (tidy.sleeps, "tests/lan/x.py", "time.sleep(5)"),
]


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN)
def test_each_rule_can_fail(rule: Rule, path: str, source: str) -> None:
    # `await` outside a function parses only inside one.
    wrapped = f"async def f():\n    {source}" if source.startswith("await") else source
    assert rule(path, wrapped) != []


@pytest.mark.parametrize(("rule", "path", "source"), SOUND)
def test_each_rule_lets_good_code_pass(rule: Rule, path: str, source: str) -> None:
    wrapped = f"async def f():\n    {source}" if source.startswith("await") else source
    assert rule(path, wrapped) == []


few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(("registry", "kind"), MESSAGES)
@few
@given(data=st.data())
def test_every_wire_message_round_trips(registry: Registry, kind: Any, data: Any) -> None:
    message = data.draw(values(kind))
    assert registry.decode(registry.encode(message)) == message


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES)
@few
@given(junk=st.binary(max_size=64))
def test_no_bytes_break_a_registry(registry: Registry, junk: bytes) -> None:
    with contextlib.suppress(SchemaError):
        registry.decode(junk)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@few
@given(data=st.data())
def test_every_command_kind_round_trips(kind: Any, data: Any) -> None:
    body = data.draw(values(kind))
    command = Command(
        command_id=CommandId("n1", 7),
        body=body,
        level=needed(body),
        actor="operator:cafe",
        reason="because",
        proposed_at_ms=3,
    )
    assert decode_command(encode_command(command)) == command
