"""Each command that we print is one that the command line understands."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer
from typer.main import get_command

from aivailable import advice
from aivailable.advice import ADMIT, PROGRAM, UNDRAIN, UP_CLUSTER, Advice
from aivailable.cli import app

UsageError = typer.BadParameter.__mro__[1]
ALL = {one.id: one for one in vars(advice).values() if isinstance(one, Advice)}
FILLED = {
    "BACKEND": "vulkan",
    "CLUSTER": "a" * 26,
    "HOME": "/somewhere",
    "HOST": "10.0.0.5",
    "ID": "12ab34cd",
    "MODEL": "qwen",
    "NAME": "lab",
    "NODE": "rig1",
    "PORT": "8430",
}
"""Something for each place."""


def parse(line: str) -> Any:
    """Raises UsageError for a command, option or argument that does not exist."""
    program, *words = shlex.split(line)
    assert program == PROGRAM
    command: Any = get_command(app)
    context = command.make_context(program, [*words])
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, words)
        if hasattr(command, "resolve_command"):
            continue
        context = command.make_context(name, words)
    return context


@pytest.mark.parametrize("one", ALL.values(), ids=ALL)
def test_the_command_line_understands_it(one: Advice) -> None:
    places = [word for word in one.arguments if word in FILLED]
    assert parse(one.of(*(FILLED[word] for word in places)).line).command is not None


def test_the_check_finds_what_does_not_exist() -> None:
    for bad in (
        Advice("x", "admin"),
        Advice("x", "up", ("--prot", "1")),
        Advice("x", "key mint"),
        Advice("x", "remove"),
    ):
        with pytest.raises(UsageError):
            parse(bad.line)


def test_a_sentence_shows_it_in_backquotes_and_a_shell_can_read_it() -> None:
    assert f"type {ADMIT}" == "type `aivailable admit`"
    assert UNDRAIN.line == "aivailable undrain NODE"
    filled = UP_CLUSTER.of("our lab; rm -rf /")
    assert shlex.split(filled.line) == ["aivailable", "up", "--cluster", "our lab; rm -rf /"]
    assert filled.id == UP_CLUSTER.id
