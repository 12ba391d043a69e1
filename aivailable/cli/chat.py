"""`aivailable chat`: ask a model, once or in a conversation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from aivailable.cli import render, target
from aivailable.cli.target import ApiKeyOption, HomeOption, UrlOption

if TYPE_CHECKING:
    from aivailable.client import ChatStream, Client

PROMPT_MAX_CHARS = 1_000_000
Message = dict[str, str]


def chat(
    model: Annotated[str, typer.Argument(help="A deployment's name or alias.")],
    prompt: Annotated[
        str | None,
        typer.Argument(help="One question. Without it: a conversation, or standard input."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0)] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Ask a model through any node; the answer streams as it is made."""
    where = target.find(url, api_key, home)
    params = {"max_tokens": max_tokens, "temperature": temperature}
    given = {key: value for key, value in params.items() if value is not None}
    history: list[Message] = [{"role": "system", "content": system}] if system else []
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read(PROMPT_MAX_CHARS)

    async def talk(client: Client) -> None:
        if prompt is not None:
            await answer(client, model, [*history, {"role": "user", "content": prompt}], given)
            return
        render.note("Empty line or Ctrl-D ends.")
        while line := _ask():
            history.append({"role": "user", "content": line})
            text, _ = await answer(client, model, history, given)
            history.append({"role": "assistant", "content": text})

    target.run(where, talk)


async def answer(
    client: Client, model: str, messages: list[Message], params: dict[str, float]
) -> tuple[str, ChatStream]:
    """Stream one answer to the terminal; returns its text, and the stream, which knows who took
    part. Raises ClientError."""
    parts: list[str] = []
    thinking = False
    ended, used = "", None
    stream = client.chat(model, messages, **params)
    async for delta in stream:
        if delta.reasoning:
            # On standard error: whoever reads the answer from a pipe gets the answer.
            typer.secho(delta.reasoning, nl=False, err=True, dim=True)
            thinking = True
        if delta.text and thinking:
            typer.echo(err=True)
            thinking = False
        parts.append(delta.text)
        typer.echo(delta.text, nl=False)
        ended, used = delta.finish_reason or ended, delta.usage or used
    typer.echo()
    if ended == "length" and used is not None:
        render.note(
            f"cut off: the limit is {used.completion_tokens} tokens, or the context, where"
            f" {used.prompt_tokens} stand before them; --max-tokens N sets another limit"
        )
    return "".join(parts), stream


def _ask() -> str:
    try:
        return input("› ").strip()
    except EOFError:
        typer.echo()
        return ""
