"""Commands that texts tell people to type: spelled in one place, each executed by a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from typer.main import get_command

from aivailable import advice
from aivailable.advice import Advice
from aivailable.cli import app

ROOT = Path(__file__).resolve().parent.parent
SPELLER = "aivailable/advice.py"
COMMANDS = "|".join(get_command(app).commands)  # type: ignore[attr-defined]
SPELLED = re.compile(
    rf"\baivailable ({COMMANDS})\b"  # aivailable up
    rf"|[`'] ?({COMMANDS})( [^`']*)?[`']"  # `up --port 8430`, 'key create'
    r"|[`'(:]\s*aivailable $"  # f"`aivailable {command}`"
)
WORDS = {
    "status",
    "models",
    "members",
    "events",
    "set",
    "key",
    "chat",
    "merge",
    "runtime",
    "remove",
}
"""Commands that are also words of our documents: quoted alone they are a field or a value."""
PARSED_ONLY = {
    "chat": "needs a model with weights",
    "runtime-add": "builds for minutes; tests/peer/runtimes runs what it calls",
    "runtime-remove": "tests/peer/runtimes runs what it calls",
    "top-home": "needs a terminal; tests/tui runs it",
}
"""Not run with real peers, and why."""


def advices() -> dict[str, Advice]:
    return {one.id: one for one in vars(advice).values() if isinstance(one, Advice)}


def spelled(path: str, source: str) -> list[str]:
    """Commands of ours in the literals of a source, docstrings apart."""
    tree = ast.parse(source)
    docs = set(map(id, _docstrings(tree)))
    return [
        f"{path}:{node.lineno}: spells {found.group()!r}; use aivailable.advice"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
        if (found := SPELLED.search(node.value)) and found.group().strip("`' ") not in WORDS
    ]


def _docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for part in body if isinstance(body, list) else ():
            if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                yield part.value


def marks(source: str) -> Iterator[str]:
    """The ids in `@pytest.mark.remedy("id")`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.remedy":
            for word in node.args:
                assert isinstance(word, ast.Constant), "an id is a literal: this test reads it"
                yield str(word.value)


def test_no_other_module_spells_a_command() -> None:
    found: list[str] = []
    for folder in ("aivailable", "tui"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name != SPELLER:
                found += spelled(name, path.read_text(encoding="utf-8"))
    assert found == []


def test_the_rule_sees_each_way_to_spell_one() -> None:
    for bad in (
        'x = "type `aivailable admit`"',
        'x = f"see aivailable key list of {y}"',
        'x = f"`aivailable {command}`"',
        'x = "`up --devices cpu:4GiB` lends some"',
    ):
        assert spelled("bad.py", bad), bad
    for good in (
        'def f():\n    "Run `aivailable up`."',
        'x = f"type {ADMIT}"',
        'x = "the package aivailable"',
        "raise ValueError(\"'status' is no number\")",
    ):
        assert spelled("good.py", good) == [], good


def test_each_advice_is_executed_by_a_test() -> None:
    marked: set[str] = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.remedy" in text:
            marked |= set(marks(text))
    assert marked | set(PARSED_ONLY) == set(advices())
    assert marked.isdisjoint(PARSED_ONLY)


def test_no_two_advices_have_one_id() -> None:
    made = [one for one in vars(advice).values() if isinstance(one, Advice)]
    assert len(made) == len(advices())
