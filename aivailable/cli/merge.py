"""`aivailable merge`: end this cluster in another of its name, by the operator's hand.

Owns the question and the words; whether it is possible is for both clusters to say.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aivailable.advice import STATUS
from aivailable.cli import render, target
from aivailable.cli.target import ApiKeyOption, HomeOption, UrlOption


def merge(
    cluster: Annotated[
        str, typer.Argument(help=f"Id of the other cluster, as {STATUS} there says.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """End this cluster in another one: its nodes, keys and deployments go over there."""
    where = target.find(url, api_key, home)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"End the cluster at {where.url} in {cluster}?", abort=True)
    target.run(where, lambda client: client.merge(cluster), "merging")
    render.say(f"this cluster has ended in {cluster}; its nodes go over now")
    render.note(
        "What runs is loaded anew there. Where both have a deployment or a model of one name, the"
        " other cluster's stays; the nodes' logs say which."
    )
