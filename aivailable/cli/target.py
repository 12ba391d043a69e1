"""Which node a command talks to, with which key, and what to say when nobody answers there.

Owns the common options --url, --api-key and --home. Reads two small files of the home that a
running peer wrote (`api.json`, `admin.key`).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer

from aivailable import config
from aivailable.advice import UP, UP_PORT
from aivailable.cli import render
from aivailable.cli.port_owner import port_owner
from aivailable.errors import AivailableError

if TYPE_CHECKING:
    from aivailable.client import Client

T = TypeVar("T")

API_FILE = "api.json"
ADMIN_KEY_FILE = "admin.key"
SMALL_FILE_MAX_BYTES = 4096
URL_DEFAULT = f"http://127.0.0.1:{config.API_PORT_DEFAULT}"

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="AIVAILABLE_URL",
        help="A node's API address. Default: the node that runs from this home.",
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="AIVAILABLE_API_KEY",
        help="API key. Default: admin.key in home.",
        show_envvar=True,
    ),
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", envvar="AIVAILABLE_HOME", help="Where the local node keeps its files."),
]


class NobodyListens(AivailableError):
    """No node answers at the target's address."""


@dataclass(frozen=True, slots=True)
class ApiTarget:
    url: str
    api_key: str | None
    chosen: bool
    """The user named the address; it was not guessed from the home."""


def find(url: str | None, api_key: str | None, home: Path | None) -> ApiTarget:
    """Where a command goes. Raises AivailableError when a file of the home cannot be used."""
    home = config.expanded(home) if home else config.default_home(os.environ)
    text = _read_small(home / API_FILE) if url is None else None
    found = _url_of(text, home / API_FILE) if text else URL_DEFAULT
    if api_key is None:
        api_key = (_read_small(home / ADMIN_KEY_FILE) or "").strip() or None
    address = (url or found).rstrip("/")
    if not address.startswith(("http://", "https://")):
        address = f"http://{address}"
    return ApiTarget(address, api_key, url is not None)


def open_client(urls: list[str], api_key: str | None, *, mapped: bool = False) -> Client:
    """The one place where commands make a client (tests put a fake here)."""
    from aivailable.client import Client

    return Client(urls, api_key, mapped=mapped)


def run(target: ApiTarget, work: Callable[[Client], Awaitable[T]], doing: str = "") -> T:
    """Run `work` with a client of the target, showing `doing` while it takes long.

    Raises AivailableError; an unreachable node becomes NobodyListens with the next step.
    """

    async def session() -> T:
        client = open_client([target.url], target.api_key, mapped=target.chosen)
        async with client:
            return await work(client)

    try:
        with render.waiting(doing):
            return asyncio.run(session())
    except AivailableError as error:
        raise explain(error, target) from error


def explain(error: AivailableError, target: ApiTarget) -> AivailableError:
    """The same error, or one that says how to get a node or a key."""
    code = getattr(error, "code", "")
    if code == "unreachable":
        if target.chosen:
            return NobodyListens(f"nobody answers at {target.url}; is a node up there?")
        return NobodyListens(f"no AIvailable runs here ({target.url}): start it with {UP}")
    if code == "not_ours":
        return AivailableError(_whose(target))
    if getattr(error, "status", 0) in (401, 403) and target.api_key is None:
        return AivailableError(
            f"{error}; give a key with --api-key, or --home of a node on this machine"
        )
    return error


def _whose(target: ApiTarget) -> str:
    """Why no key was sent, and what to do."""
    said = f"the node at {target.url} does not know your API key, so the key was not sent to it"
    if target.chosen:
        return (
            f"{said}: it was revoked, or the node is of another cluster or an older version; give "
            "a valid key with --api-key"
        )
    port = urlsplit(target.url).port or 0
    return (
        f"{said}: port {port} belongs to {port_owner(port)}, or the key was revoked, or a node of "
        f"an older version must be restarted. Start a node of your own with {UP_PORT}, "
        "or name a node with --url and its key with --api-key"
    )


def _read_small(path: Path) -> str | None:
    """A small text file; None when there is none. Raises AivailableError."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(SMALL_FILE_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise AivailableError(
            f"cannot read {path}: {reason}; run as the user of the node, or give --url and "
            "--api-key"
        ) from error


def _url_of(text: str, path: Path) -> str:
    try:
        document: Any = json.loads(text)
        url = document["url"]
    except (ValueError, KeyError, TypeError):
        url = None
    if not isinstance(url, str):
        raise AivailableError(f"{path} is damaged; restart the node, or give --url")
    return url
