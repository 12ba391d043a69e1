"""`aivailable drain|undrain|pause`: a node for maintenance, or for its owner."""

from __future__ import annotations

from typing import Annotated

import typer

from aivailable import config
from aivailable.advice import PAUSE_OFF, UNDRAIN
from aivailable.cli import render, target
from aivailable.cli.target import ApiKeyOption, HomeOption, UrlOption
from aivailable_tui import wording

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
    render.say(f"{done.name} drains{again}; {UNDRAIN.of(done.name)} ends it")
    if done.moving:
        render.say(f"moving away: {', '.join(done.moving)}; requests under way finish first")
    if done.staying:
        render.note(
            f"There is no other place for {', '.join(done.staying)}: on {done.name} until there is"
            " one, and gone when it is switched off."
        )


def pause(
    duration: Annotated[
        str | None, typer.Argument(metavar="TIME", help="How long, like 2h or 30m.")
    ] = None,
    node: Annotated[
        str | None, typer.Argument(metavar="NODE", help="Default: this machine.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help=f"End it: {PAUSE_OFF} [NODE].")] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Give the machine back to its owner for a while: its models end, its memory is free."""
    if off:
        if node is not None:
            raise typer.BadParameter(f"{PAUSE_OFF} takes no time", param_hint="TIME")
        node, duration_s = duration, 0
    elif duration is None:
        raise typer.BadParameter("say how long, like 2h, or --off", param_hint="TIME")
    else:
        try:
            duration_s = config.parse_duration_s(duration)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="TIME") from error
        if duration_s == 0:
            raise typer.BadParameter("must be more than 0; --off ends it", param_hint="TIME")
    where = target.find(url, api_key, home)
    done = target.run(where, lambda client: client.pause(node or "", duration_s), "pausing")
    if not done.paused_left_s:
        render.say(f"{done.name} serves again")
        return
    render.say(f"{done.name} is paused for {wording.span(done.paused_left_s)}; {PAUSE_OFF} ends it")
    if done.ending:
        render.say(f"ending: {', '.join(done.ending)}; requests under way finish first")


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
