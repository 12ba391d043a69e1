"""`aivailable invite`: a fresh join key, and what to do with it on both sides.

Owns the words only; the key is made by the peer's code and kept nowhere. Needs no running node.
"""

from __future__ import annotations

import typer

from aivailable.advice import LOCK, UP
from aivailable.cli import render


def invite() -> None:
    """Print a fresh join key: nodes started with the same one let each other in at any time."""
    from aivailable.peer.app import new_join_key

    typer.echo(new_join_key())
    render.note(
        "Shown only now and kept nowhere. Start each node with it, those of the cluster and the "
        "new ones (restart one that runs):\n"
        f"  AIVAILABLE_KEY=KEY {UP.line}\n"
        'or put  key = "KEY"  into config.toml in the home of the node. Nodes with the key join '
        f"each other only, the join window open or not; {LOCK} keeps out the rest.\n"
        "Whoever has the key can become a member: send it as you would send a password."
    )
