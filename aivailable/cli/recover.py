"""`aivailable recover`: found the cluster anew from one survivor, with open eyes.

Owns the warning and the question; whether it is possible is the node's to say.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aivailable.cli import render, target
from aivailable.cli.target import ApiKeyOption, HomeOption, UrlOption
from aivailable.core.serving.status import ClusterStatus
from aivailable.errors import AivailableError


def recover(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Found the cluster anew from this node's copy, when the majority is gone for good."""
    where = target.find(url, api_key, home)
    status = target.run(where, lambda client: client.state(), "asking for the cluster")
    render.complain(_warning(status))
    if not yes:
        if not sys.stdin.isatty():
            raise AivailableError("recover gives up a cluster: say --yes to do it unasked")
        typer.confirm("Are the others gone for good?", abort=True)
    result = target.run(where, lambda client: client.recover(), "founding the cluster anew")
    render.say(f"the cluster is founded anew as {result.cluster_id[:8]}, with this node alone")
    if result.gone:
        render.note(
            f"No members any more: {', '.join(result.gone)}. One that comes back is let in again"
            " by itself, and takes over what this cluster says."
        )
    if result.lost_models:
        render.note(f"No copy is left of: {', '.join(result.lost_models)}; deploy the files again.")


def _warning(status: ClusterStatus) -> str:
    gone = ", ".join(sorted(node.name for node in status.nodes if node.node != status.here))
    return (
        f"this gives up the cluster {status.cluster_name!r} ({status.cluster_id[:8]}): its members"
        f" {gone or '(none)'}, what runs on them, and every change that only they had heard of"
        f" (this node's copy ends at version {status.version})"
    )
