"""What commands print: tables, lines, progress, complaints.

Results go to stdout, everything else to stderr, so that pipes carry results only. Must not ask or
decide anything.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from aivailable.advice import ADMIT, DEPLOY, REMOVE
from aivailable_tui import wording

if TYPE_CHECKING:
    from aivailable.client import KeyInfo
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from aivailable.core.serving.status import ClusterStatus, EventStatus, ModelStatus

PIPE_WIDTH_CHARS = 200
"""Tables are cut at the terminal's edge; in a pipe there is none."""

_STYLES: Mapping[str, str] = {
    "good": "green",
    "busy": "cyan",
    "warn": "yellow",
    "bad": "red",
    "quiet": "dim",
}


def console(*, stderr: bool = False) -> Console:
    """A console on the stream as it is now (tests replace the streams)."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH_CHARS
    return Console(file=stream, width=width, highlight=False)


def say(text: str) -> None:
    """A line of result or news, word for word."""
    console().print(text, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """A remark that is not part of the result."""
    console(stderr=True).print(text, style="dim", markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """Why a command failed, in one sentence with the next step."""
    console(stderr=True).print(f"[bold red]aivailable:[/] {escape(text)}", soft_wrap=True)


def show(renderable: RenderableType) -> None:
    console().print(renderable)


@contextlib.contextmanager
def waiting(doing: str) -> Iterator[None]:
    """A spinner with `doing` while the body runs, on a terminal only."""
    screen = console(stderr=True)
    if not doing or not screen.is_terminal:
        yield
        return
    with screen.status(f"{escape(doing)} …"):
        yield


def state_text(state: str) -> Text:
    return Text(f"{wording.symbol(state)} {state}", style=_STYLES[wording.tone(state)])


def empty_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table without lines; `right` are columns of numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def status_page(status: ClusterStatus, *, long: bool = False) -> Iterator[RenderableType]:
    """The whole of `aivailable status`, part by part; `long`: with what the engines run with."""
    yield _headline(status)
    if status.advice:
        yield Text(f"→ {status.advice}", style="yellow")
    if status.nodes:
        yield Padding(nodes_table(status, long=long), (1, 0, 0, 0), expand=False)
    yield from level_lines(status)
    for node in status.nodes:
        for problem in wording.problems(node):
            yield Text(f"  {node.name}: {problem}", style="yellow")
    if status.deployments:
        yield Padding(_deployments_table(status, long=long), (1, 0, 0, 0), expand=False)
    elif status.phase == "member":
        yield Text(f"\nNo model is deployed: {DEPLOY}.", style="dim")
    yield from waiting_lines(status)


def _headline(status: ClusterStatus) -> Text:
    line = Text(wording.headline(status), style="bold")
    if status.phase != "member":
        return line
    line.append(f"  controller {wording.name_of(status, status.controller)}", style="not bold")
    line.append(f"  voters {wording.voters(status)}", style="not bold")
    line.append(f"  version {status.version}", style="not bold")
    line.append(f"  window {wording.window(status)}", style="not bold")
    if not status.quorum:
        line.append(f"  ▲ {wording.quorum(status)}", style="not bold yellow")
    return line


def level_lines(status: ClusterStatus) -> Iterator[Text]:
    """While an upgrade is under way: who holds the cluster back, and what to do."""
    if not status.held_back_by:
        return
    newest = max(node.feature_max for node in status.nodes)
    names = ", ".join(wording.name_of(status, node) for node in status.held_back_by)
    yield Text(
        f"Feature level {status.feature_level}; level {newest} waits for {names}: install the newer"
        f" version there, or {REMOVE} who never comes back.",
        style="yellow",
    )


def waiting_lines(status: ClusterStatus) -> Iterator[Text]:
    """Who asks to join, and what to type to let them in."""
    for waiter in status.waiting:
        yield Text(
            f"\n{wording.symbol('silent')} {waiter.name} ({waiter.node[:8]}, {waiter.address}) "
            f"waits to be let in: {ADMIT}",
            style="yellow",
        )


def nodes_table(status: ClusterStatus, *, long: bool = False) -> Table:
    """Nodes with their devices, one line each; `long`: with what each device does now."""
    table = empty_table(
        "NODE", "STATE", "ROLE", "DEVICE", "CLAIMED", "FREE", "TOTAL",
        right=("CLAIMED", "FREE", "TOTAL"),
    )  # fmt: skip
    if long:
        table.add_column("NOW", style="dim")
    for node in status.nodes:
        first: list[RenderableType] = [
            Text(node.name, style="bold"),
            state_text(node.state),
            wording.role_marks(status, node),
        ]
        for device in node.devices:
            free = wording.free_bytes(device)
            table.add_row(
                *first,
                wording.device_label(device),
                wording.size(device.claimed_bytes),
                wording.size(free),
                wording.size(device.total_bytes),
                *((wording.activity(device),) if long else ()),
            )
            first = ["", "", ""]
        if not node.devices:
            table.add_row(*first, Text("no device", style="dim"), "", "", "")
    return table


def _deployments_table(status: ClusterStatus, *, long: bool) -> Table:
    """Deployments, each followed by its replicas and, when not ready, the explanation."""
    table = empty_table("DEPLOYMENT", "STATE", "REPLICAS", "CONTEXT", "SLOTS", "WHERE")
    for deployment in status.deployments:
        options = " ".join(f"{name}={text}" for name, text in sorted(deployment.options.items()))
        table.add_row(
            Text(deployment.name, style="bold"),
            state_text(deployment.state),
            wording.replicas(deployment),
            str(deployment.context),
            str(deployment.slots),
            Text(
                "; ".join(part for part in (options, deployment.explanation) if part), style="dim"
            ),
        )
        for replica in status.replicas:
            if replica.deployment != deployment.name:
                continue
            progress = (
                f" {replica.progress:.0%}" if replica.status in ("fetching", "loading") else ""
            )
            table.add_row(
                Text(f"  {replica.replica.rpartition('#')[2]}", style="dim"),
                state_text(replica.status).append(progress),
                "",
                str(replica.context) if replica.context > deployment.context else "",
                f"{replica.slots_busy}/{replica.slots}",
                f"{replica.node_name}, {wording.size(replica.claimed_bytes)}"
                + (f": {replica.reason}" if replica.reason else ""),
            )
            if long and replica.notes:
                table.add_row(*[""] * 5, Text(", ".join(replica.notes), style="dim"))
    return table


def members_table(status: ClusterStatus) -> Table:
    table = empty_table("NODE", "ID", "STATE", "ROLE", "HEARD", "ADDRESS", "VERSION", "LEVEL")
    for node in status.nodes:
        address = f"{node.addresses[0]}:{node.api_port}" if node.addresses else ""
        table.add_row(
            Text(node.name, style="bold"),
            node.short,
            state_text(node.state),
            wording.role_marks(status, node),
            wording.age(node.age_ms),
            address,
            node.version,
            str(node.feature_max),
        )
    return table


def models_table(models: Sequence[ModelStatus], status: ClusterStatus) -> Table:
    table = empty_table("MODEL", "KIND", "SIZE", "CONTEXT", "HELD BY", "DIGEST", right=("SIZE",))
    for model in models:
        holders = ", ".join(wording.name_of(status, node) for node in model.holders)
        table.add_row(
            Text(model.name, style="bold"),
            " ".join(part for part in (model.architecture, model.quantization) if part),
            wording.size(model.size_bytes),
            str(model.context_train),
            holders or Text("nobody", style="yellow"),
            model.digest[:12],
        )
    return table


def keys_table(keys: Sequence[KeyInfo], status: ClusterStatus) -> Table:
    table = empty_table("ID", "SCOPE", "LABEL", "CREATED", "THROUGH", "BY", "STATE")
    for key in keys:
        state = Text("✕ revoked", style="red") if key.revoked else Text("● valid", style="green")
        table.add_row(
            key.key_id,
            key.scope,
            key.label,
            _date(key.created_at_ms),
            _through(key, status),
            key.by or "-",
            state,
        )
    return table


def _through(key: KeyInfo, status: ClusterStatus) -> str:
    """Who brought it, or at which node it was made."""
    brought = wording.name_of(status, key.node) if key.node else ""
    via = wording.name_of(status, key.via) if key.via else ""
    if brought:
        return f"brought by {brought}" if via in ("", brought) else f"brought by {brought} to {via}"
    return via or "-"


def key_endings(keys: Sequence[KeyInfo]) -> list[Text]:
    """What becomes of the keys that came through a member that is removed."""
    return [
        Text(f"  {'✕ ends ' if key.ends else '● stays'}  {key.key_id}  {key.scope:<5}  {key.label}")
        for key in keys
    ]


def event_line(event: EventStatus) -> Text:
    line = Text(f"{event.version:>6}  {_date(event.at_ms)}  ", style="dim")
    line.append(event.text or f"{event.kind} {event.subject}", style="not dim")
    if event.reason:
        line.append(f" ({event.reason})")
    return line


def _date(at_ms: int) -> str:
    if not at_ms:
        return "-"
    moment = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")
