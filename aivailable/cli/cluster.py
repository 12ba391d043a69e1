"""`aivailable status|top|members|admit|lock|leave|events`: the cluster as a whole."""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from aivailable import config
from aivailable.advice import ADMIT, LOCK, STATUS, UP, UP_NEW_IDENTITY
from aivailable.cli import render, target
from aivailable.cli.target import ApiKeyOption, HomeOption, UrlOption
from aivailable.core.serving.status import ClusterStatus, EventStatus
from aivailable.errors import AivailableError
from aivailable_tui import wording

if TYPE_CHECKING:
    from aivailable.client import Client

EVENTS_SHOWN = 20
EVENTS_MAX = 100_000


def status(
    as_json: Annotated[
        bool, typer.Option("--json", help="The whole status as one JSON document.")
    ] = False,
    consistent: Annotated[
        bool,
        typer.Option("--consistent", help="Ask a majority first: nothing committed is missing."),
    ] = False,
    long: Annotated[
        bool, typer.Option("--long", help="Also what each replica's engine runs with.")
    ] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Show nodes, devices, deployments and what needs attention."""
    found = _state(url, api_key, home, consistent=consistent)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2, sort_keys=True))
        return
    for part in render.status_page(found, long=long):
        render.show(part)


def top(url: UrlOption = None, api_key: ApiKeyOption = None, home: HomeOption = None) -> None:
    """Watch the cluster live; goes on with another node when this one dies."""
    if not sys.stdout.isatty():
        raise AivailableError(f"top needs a terminal; {STATUS} prints the same once")
    where = target.find(url, api_key, home)
    target.run(where, lambda client: client.state(), "asking for the cluster")

    from aivailable_tui.app import run

    run([where.url], where.api_key, mapped=where.chosen)


def members(url: UrlOption = None, api_key: ApiKeyOption = None, home: HomeOption = None) -> None:
    """List the members, and who waits to be let in."""
    found = _state(url, api_key, home)
    render.show(render.members_table(found))
    for line in render.level_lines(found):
        render.show(line)
    for line in render.waiting_lines(found):
        render.show(line)


def admit(
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long, like 15m or 1h.")
    ] = "15m",
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Open the join window: nodes that ask are let in without a key."""
    try:
        duration_s = config.parse_duration_s(duration)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from error
    if duration_s == 0:
        raise typer.BadParameter(f"must be more than 0; {LOCK} closes the window")
    where = target.find(url, api_key, home)
    target.run(where, lambda client: client.window(duration_s), "opening the join window")
    render.say(f"the join window is open for {wording.span(duration_s)}; {LOCK} shuts it")


def lock(url: UrlOption = None, api_key: ApiKeyOption = None, home: HomeOption = None) -> None:
    """Close the join window: nobody is let in without a key."""
    where = target.find(url, api_key, home)
    target.run(where, lambda client: client.window(0), "closing the join window")
    render.say(f"the join window is closed; {ADMIT} opens it again")


def remove(
    node: Annotated[str, typer.Argument(help="Name, id, or the first characters of the id.")],
    keep_key: Annotated[
        list[str] | None,
        typer.Option(
            help="An admin key that stays, though it came through it. Repeatable.", metavar="ID"
        ),
    ] = None,
    revoke_key: Annotated[
        list[str] | None,
        typer.Option(help="A user key that ends as well. Repeatable.", metavar="ID"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Take another member out for good: it is cut off at once, and its identity never comes back.

    The admin keys that came through it end with it.
    """
    where = target.find(url, api_key, home)
    keep, end = keep_key or (), revoke_key or ()
    keys = target.run(where, lambda client: client.removal(node, keep, end), "asking for its keys")
    if keys.problem:
        raise AivailableError(keys.problem)
    if keys.keys:
        render.say(f"keys that came through {node}:")
        for line in render.key_endings(keys.keys):
            render.show(line)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Take {node} out of the cluster for good?", abort=True)
    target.run(where, lambda client: client.remove(node, keep, end), "removing")
    render.say(
        f"{node} is not a member any more. To bring it back as a new node with its models, type"
        f" {UP_NEW_IDENTITY} there"
    )


def leave(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Take this node out of its cluster for good. (Stopping `up` only pauses it.)"""
    where = target.find(url, api_key, home)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Take the node at {where.url} out of its cluster?", abort=True)
    target.run(where, lambda client: client.leave(), "leaving")
    render.say(f"this node has left its cluster; {UP} looks for one again")


def events(
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=EVENTS_MAX, help="How many past ones.")
    ] = EVENTS_SHOWN,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones.")] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Show what happened, oldest first."""

    async def work(client: Client) -> None:
        last: collections.deque[EventStatus] = collections.deque(maxlen=limit)
        async for event in client.events(follow=False):
            last.append(event)
        for event in last:
            render.show(render.event_line(event))
        if follow:
            async for event in client.events(last[-1].version if last else 0):
                render.show(render.event_line(event))

    target.run(target.find(url, api_key, home), work)


def _state(
    url: str | None, api_key: str | None, home: HomeOption, *, consistent: bool = False
) -> ClusterStatus:
    where = target.find(url, api_key, home)
    return target.run(
        where, lambda client: client.state(consistent=consistent), "asking for the cluster"
    )
