"""`aivailable recover`: found the cluster anew from one survivor, with open eyes.

Owns the warning and the question; whether it is possible is the node's to say.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from aivailable.advice import UP_NEW_IDENTITY
from aivailable.cli import render, target
from aivailable.cli.target import ApiKeyOption, HomeOption, UrlOption
from aivailable.core.serving.status import ClusterStatus
from aivailable.errors import AivailableError


def recover(
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NODE",
            help="Let this member in again when it comes back, and nobody that is not named."
            " Repeatable.",
        ),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Let nobody in again: all others are out for good.")
    ] = False,
    keep_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="An admin key that stays, though who is out brought it. Repeatable."
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask; who is not named comes back, too.")
    ] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Found the cluster anew from this node's copy, when the majority is gone for good."""
    where = target.find(url, api_key, home)
    status = target.run(where, lambda client: client.state(), "asking for the cluster")
    render.complain(_warning(status))
    if with_ and alone:
        raise typer.BadParameter("--with names who comes back; --alone is nobody")
    expected: Sequence[str] | None = with_ or (() if alone else None)
    if expected is None and not yes:
        expected = _ask(status)
    elif not yes and sys.stdin.isatty():
        typer.confirm("Is the majority gone for good?", abort=True)
    result = target.run(
        where, lambda client: client.recover(expected, keep_key or ()), "founding the cluster anew"
    )
    render.say(f"the cluster is founded anew as {result.cluster_id[:8]}, with this node alone")
    out = [name for name in result.gone if name not in result.awaited]
    if result.awaited:
        render.note(
            f"No members any more: {', '.join(result.awaited)}. One that comes back is let in again"
            " by itself, and takes over what this cluster says."
        )
    if out:
        render.note(
            f"Out for good: {', '.join(out)}. {UP_NEW_IDENTITY} there makes a new"
            " node of it that keeps its models."
        )
    if result.ended_keys:
        render.note(f"Ended with them: key {', '.join(result.ended_keys)}.")
    if result.lost_models:
        render.note(f"No copy is left of: {', '.join(result.lost_models)}; deploy the files again.")


def _ask(status: ClusterStatus) -> Sequence[str] | None:
    """Who may come back; None = everybody. Raises AivailableError where nobody can be asked."""
    others = [node for node in status.nodes if node.node != status.here]
    listed = [f"{node.name} ({node.node[:8]}, {node.state})" for node in others]
    if not sys.stdin.isatty():
        raise AivailableError(
            "recover gives up a cluster: say who may come back with --with NODE for each, --alone"
            f" for nobody, or --yes for all of {', '.join(listed) or 'nobody'}"
        )
    for line in listed:
        render.say(f"  {line}")
    if not others:
        typer.confirm("Is the cluster gone for good?", abort=True)
        return None
    answer = str(
        typer.prompt("Who of them may come back? Names with commas, `all` or `none`", default="all")
    ).strip()
    typer.confirm("Is the majority gone for good?", abort=True)
    if answer == "all":
        return None
    return [] if answer == "none" else [name.strip() for name in answer.split(",") if name.strip()]


def _warning(status: ClusterStatus) -> str:
    gone = ", ".join(sorted(node.name for node in status.nodes if node.node != status.here))
    return (
        f"this gives up the cluster {status.cluster_name!r} ({status.cluster_id[:8]}): its members"
        f" {gone or '(none)'}, what runs on them, and every change that only they had heard of"
        f" (this node's copy ends at version {status.version})"
    )
