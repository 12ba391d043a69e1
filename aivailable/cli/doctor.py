"""`aivailable doctor`: find out which leg between the machines fails, and say what to do.

Owns the options and the look of the report; probing and judging are `peer.doctor`'s.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from aivailable import config
from aivailable.cli import render, target
from aivailable.cli.target import API_FILE, ApiTarget, HomeOption
from aivailable.errors import AivailableError

if TYPE_CHECKING:
    from aivailable.core.serving.status import ClusterStatus
    from aivailable.peer.doctor import Check, DoctorReport

PEERS_MAX = 8
EXIT_FAILED = 1
TITLES: Mapping[str, str] = {
    "machine": "This machine",
    "interfaces": "Network interfaces",
    "multicast": "mDNS",
    "node": "Node",
    "membership": "Membership",
}
MARKS: Mapping[str, tuple[str, str]] = {
    "ok": ("●", "green"),
    "warning": ("▲", "yellow"),
    "failed": ("✕", "bold red"),
    "skipped": ("·", "dim"),
}
LOGGERS = ("aivailable", "zeroconf", "asyncio")
"""What they would say is in the report, in better words."""


def doctor(
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer", metavar="HOST[:PORT]", help="Also try the node at this link port. Repeatable."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The report as one JSON document.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Say why machines do not find each other, leg by leg. Takes up to 15 s."""
    settings = config.load({}, os.environ, home)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(logging.NullHandler())
    report = _examined(settings, _addresses(peer or []))
    if as_json:
        typer.echo(json.dumps(report.document(), indent=2))
    else:
        for part in page(report):
            render.show(part)
    if not report.healthy:
        raise typer.Exit(EXIT_FAILED)


def _addresses(texts: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Raises BadParameter."""
    if len(texts) > PEERS_MAX:
        raise typer.BadParameter(f"{len(texts)} nodes; at most {PEERS_MAX}", param_hint="--peer")
    try:
        return tuple(config.parse_seed(text) for text in texts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--peer") from error


def _examined(settings: config.Config, peers: tuple[tuple[str, int], ...]) -> DoctorReport:
    # The client, too, is loaded before its time limit runs.
    import aivailable.client  # noqa: F401
    from aivailable.peer.doctor import Case, examine

    _, version = _own_node(settings.home)
    case = Case(
        home=settings.home,
        cluster_name=settings.cluster,
        port=settings.port,
        link_port=settings.link_port,
        bind=settings.bind,
        interfaces=settings.interfaces or (),
        devices=tuple((one.kind, one.name, one.total_bytes) for one in settings.devices),
        seeds=settings.seeds,
        peers=peers,
        keyed=settings.key is not None,
        running_version=version,
    )

    async def ask() -> ClusterStatus | None:
        own, _ = _own_node(settings.home)  # One that is just starting has told nothing before.
        if own is None:
            return None
        async with target.open_client([own.url], own.api_key) as client:
            return await client.state()

    async def ask_stall() -> float | None:
        own, _ = _own_node(settings.home)
        if own is None:
            return None
        async with target.open_client([own.url], own.api_key) as client:
            return await client.longest_stall_s()

    with render.waiting("listening and asking"):
        return asyncio.run(examine(case, ask, ask_stall))


def _own_node(home: Path) -> tuple[ApiTarget | None, str]:
    """Where a node that runs from this home says it answers, and its version; None when it says
    nothing. What the files hold may be old: asking shows."""
    try:
        document: Any = json.loads((home / API_FILE).read_text("utf-8"))
        return target.find(None, None, home), str(document.get("version", ""))
    except (OSError, ValueError, AttributeError, AivailableError):
        return None, ""


def page(report: DoctorReport) -> Iterator[Text | Table]:
    """The report for people: a node without fault in one line, advice below what needs it."""
    groups = itertools.groupby(report.checks, lambda check: (check.leg, check.subject))
    for number, ((leg, subject), members) in enumerate(groups):
        checks = list(members)
        blank = "\n" if number else ""
        yield Text(f"{blank}{TITLES[leg]} {subject}".rstrip(), style="bold")
        lines = [(check.verdict, check.name, check.found, check.advice) for check in checks]
        yield _table(_legs(checks) if leg == "node" else lines)
    style = "bold green" if report.healthy else "bold red"
    yield Text(f"\n{report.summary}", style=style)


def _legs(checks: Sequence[Check]) -> list[tuple[str, str, str, str]]:
    """A node's legs: those that work in one line, then the first that does not."""
    works = [check for check in checks if check.verdict == "ok"]
    rest = [check for check in checks if check.verdict != "ok"][:1]
    found = "; ".join(check.found for check in works)
    lines = [("ok", "works", found, "")] if works else []
    return lines + [(check.verdict, check.name, check.found, check.advice) for check in rest]


def _table(lines: Sequence[tuple[str, str, str, str]]) -> Table:
    """`lines`: verdict, name, found, advice."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(width=1)
    table.add_column(min_width=14, no_wrap=True)
    table.add_column(overflow="fold")
    for verdict, name, found, advice in lines:
        mark, style = MARKS[verdict]
        text = Text(found, style="dim" if verdict == "skipped" else "")
        if advice and verdict != "ok":
            text.append(f"\n→ {advice}", style="yellow" if verdict != "skipped" else "dim")
        table.add_row(Text(mark, style=style), Text(name, style=style), text)
    return table
