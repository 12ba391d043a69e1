"""`aivailable up`: turn flags into a Config and run the peer until it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from aivailable import config
from aivailable.cli import render
from aivailable.cli.target import HomeOption


def _joining(text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Finding and joining")


def _serving(text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Serving")


Cluster = Annotated[
    str | None, _joining("Cluster to join, or to found when nobody has. Default: default.")
]
Seeds = Annotated[
    list[str] | None,
    _joining("Also look for members here, besides mDNS. Repeatable.", "HOST[:PORT]"),
]
Key = Annotated[
    str | None,
    _joining(
        "Join key, the same on both sides: admits at any time. Better given as AIVAILABLE_KEY, "
        "which other users of this machine cannot see."
    ),
]
JoinWindow = Annotated[
    str | None,
    _joining("How long a cluster founded here lets new nodes in; 0 = never. Default: 15m.", "TIME"),
]
Interfaces = Annotated[
    list[str] | None,
    _joining("Where to announce and look by mDNS. Repeatable. Default: all.", "NAME|IP"),
]
Devices = Annotated[
    list[str] | None,
    _serving("Extra devices: cpu:4GiB or sim:GTX1080Ti:11GiB,RX580:8GiB. Repeatable.", "SPEC"),
]
Port = Annotated[
    int | None, _serving("API port; links use the next one; 0 = any free. Default: 8420.")
]
Models = Annotated[Path | None, _serving("Where weights lie. Default: HOME/models.", "DIR")]
Bind = Annotated[
    list[str] | None, _serving("Address to listen on. Repeatable. Default: all.", "IP")
]
Certificate = Annotated[Path | None, _serving("Serve the API by HTTPS.", "PEM")]
CertificateKey = Annotated[Path | None, _serving("The certificate's private key.", "PEM")]
NoAuth = Annotated[
    bool,
    typer.Option(
        "--no-auth",
        help="Make everyone who reaches the port an admin of the cluster, without a key: they may "
        "use, deploy and remove models, make and revoke keys, let nodes in and take them out. Only "
        "web pages of others, and names not listed under `hosts`, are refused.",
        rich_help_panel="Serving",
    ),
]
Proxies = Annotated[
    list[str] | None,
    _serving(
        "A reverse proxy in front of the API: its word on where a request comes from counts, and "
        "whoever comes through it needs a key. Repeatable.",
        "IP[/BITS]",
    ),
]
NewIdentity = Annotated[
    bool,
    typer.Option(
        "--new-identity",
        help="Start as a new node that keeps its models: after a removal, or with a damaged"
        " identity. The old identity is set aside.",
        rich_help_panel="Finding and joining",
    ),
]
Name = Annotated[str | None, typer.Option(help="This node's name. Default: the host's.")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error. Default: info.")]


def up(
    home: HomeOption = None,
    cluster: Cluster = None,
    seed: Seeds = None,
    key: Key = None,
    join_window: JoinWindow = None,
    interfaces: Interfaces = None,
    devices: Devices = None,
    port: Port = None,
    models: Models = None,
    bind: Bind = None,
    no_auth: NoAuth = False,
    trusted_proxy: Proxies = None,
    name: Name = None,
    log_level: LogLevel = None,
    tls_certificate: Certificate = None,
    tls_key: CertificateKey = None,
    new_identity: NewIdentity = False,
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
        "trusted_proxies": trusted_proxy,
        "name": name,
        "log_level": log_level,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
    }
    flags = {setting: value for setting, value in given.items() if value not in (None, [])}
    settings = config.load(flags, os.environ, home)

    from aivailable.peer.app import run

    raise typer.Exit(run(settings, render.say, new_identity=new_identity))
