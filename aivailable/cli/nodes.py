"""`aivailable drain|undrain`: maintenance of a node without losing what it serves."""

from __future__ import annotations

from typing import Annotated

import typer

from aivailable.cli import render, target
from aivailable.cli.target import ApiKeyOption, HomeOption, UrlOption

NodeArgument = Annotated[
    str, typer.Argument(help="Name, id, or the first characters of the id.", metavar="NODE")
]


def drain(
    node: NodeArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Also when no other node could take over.")
    ] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Empty a node for maintenance: nothing new goes there, and what runs there moves."""
    where = target.find(url, api_key, home)
    done = target.run(where, lambda client: client.drain(node, True, force=force), "draining")
    again = "" if done.changed else " already"
    render.say(f"{done.name} drains{again}; `aivailable undrain {done.name}` ends it")
    if done.moving:
        render.say(f"moving away: {', '.join(done.moving)}; requests under way finish first")
    if done.staying:
        render.note(
            f"There is no other place for {', '.join(done.staying)}: on {done.name} until there is"
            " one, and gone when it is switched off."
        )


def undrain(
    node: NodeArgument,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Let a drained node take replicas again."""
    where = target.find(url, api_key, home)
    done = target.run(where, lambda client: client.drain(node, False), "ending the drain")
    render.say(f"{done.name} serves again" if done.changed else f"{done.name} was not draining")
