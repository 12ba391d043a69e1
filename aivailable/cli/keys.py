"""`aivailable key create|list|revoke`: API keys of the cluster."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from aivailable.advice import KEY_LIST
from aivailable.cli import render, target
from aivailable.cli.target import ApiKeyOption, HomeOption, UrlOption
from aivailable.core.serving.status import ClusterStatus

if TYPE_CHECKING:
    from aivailable.client import Client, KeyInfo

app = typer.Typer(help="API keys: create, list, revoke.", no_args_is_help=True)


class ScopeChoice(enum.StrEnum):
    """What a key may do."""

    ADMIN = "admin"
    USER = "user"


@app.command()
def create(
    label: Annotated[str, typer.Argument(help="Whom or what the key is for.")] = "",
    scope: Annotated[
        ScopeChoice, typer.Option(help="user: use models; admin: change the cluster, too.")
    ] = ScopeChoice.USER,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Make a key and print it, once: the cluster keeps only its hash."""
    where = target.find(url, api_key, home)
    text, info = target.run(
        where, lambda client: client.create_key(scope.value, label), "making a key"
    )
    typer.echo(text)
    render.note(
        f"This is key {info.key_id}, shown only now; clients send it as "
        "`Authorization: Bearer KEY`."
    )


@app.command(name="list")
def list_keys(url: UrlOption = None, api_key: ApiKeyOption = None, home: HomeOption = None) -> None:
    """List all keys: id, scope, label, and which node and key each came through."""

    async def work(client: Client) -> tuple[tuple[KeyInfo, ...], ClusterStatus]:
        return await client.keys(), await client.state()

    found, status = target.run(target.find(url, api_key, home), work, "asking for the keys")
    render.show(render.keys_table(found, status))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help=f"As {KEY_LIST} shows it.")],
    force: Annotated[bool, typer.Option("--force", help="Also the last admin key.")] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Make a key useless, everywhere and at once."""
    where = target.find(url, api_key, home)
    target.run(where, lambda client: client.revoke_key(key_id, force=force), "revoking")
    render.say(f"key {key_id} is revoked")
