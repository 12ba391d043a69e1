"""`aivailable up`: turn flags into a Config and run the peer until it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from aivailable import config
from aivailable.cli import render
from aivailable.cli.target import HomeOption

_JOINING = "Finding and joining"
_SERVING = "Serving"


def up(
    home: HomeOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Cluster to join, or to found when nobody has. Default: default.",
            rich_help_panel=_JOINING,
        ),
    ] = None,
    seed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="Also look for members here, besides mDNS. Repeatable.",
            rich_help_panel=_JOINING,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="Join key, the same on both sides: admits at any time. Better given as "
            "AIVAILABLE_KEY, which other users of this machine cannot see.",
            rich_help_panel=_JOINING,
        ),
    ] = None,
    join_window: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long a cluster founded here lets new nodes in; 0 = never. Default: 15m.",
            rich_help_panel=_JOINING,
        ),
    ] = None,
    devices: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="Extra devices: cpu:4GiB or sim:GTX1080Ti:11GiB,RX580:8GiB. Repeatable.",
            rich_help_panel=_SERVING,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="API port; links use the next one; 0 = any free. Default: 8420.",
            rich_help_panel=_SERVING,
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where weights lie. Default: HOME/models.",
            rich_help_panel=_SERVING,
        ),
    ] = None,
    bind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IP",
            help="Address to listen on. Repeatable. Default: all.",
            rich_help_panel=_SERVING,
        ),
    ] = None,
    interfaces: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|IP",
            help="Where to announce and look by mDNS. Repeatable. Default: all.",
            rich_help_panel=_JOINING,
        ),
    ] = None,
    no_auth: Annotated[
        bool,
        typer.Option(
            "--no-auth",
            help="Let anyone who reaches the port use models without a key.",
            rich_help_panel=_SERVING,
        ),
    ] = False,
    name: Annotated[str | None, typer.Option(help="This node's name. Default: the host's.")] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error. Default: info.")
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Serve the API by HTTPS.", rich_help_panel=_SERVING),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Its private key.", rich_help_panel=_SERVING),
    ] = None,
) -> None:
    """Make this machine a node: join the cluster of the LAN, or found one."""
    given: dict[str, Any] = {
        "cluster": cluster,
        "seeds": seed,
        "key": key,
        "join_window": join_window,
        "devices": devices,
        "port": port,
        "models": models,
        "bind": bind,
        "interfaces": interfaces,
        "auth": False if no_auth else None,
        "name": name,
        "log_level": log_level,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
    }
    flags = {setting: value for setting, value in given.items() if value not in (None, [])}
    settings = config.load(flags, os.environ, home)

    from aivailable.peer.app import run

    raise typer.Exit(run(settings, render.say))
