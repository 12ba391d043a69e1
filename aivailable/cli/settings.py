"""`aivailable set [KEY VALUE]`: what holds for the whole cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from aivailable import config
from aivailable.cli import render, target
from aivailable.cli.target import ApiKeyOption, HomeOption, UrlOption

if TYPE_CHECKING:
    from aivailable.client.answers import SettingInfo

YES = ("true", "on", "yes")
NO = ("false", "off", "no")


def set_(
    key: Annotated[str | None, typer.Argument(help="Left out: list them all.")] = None,
    value: Annotated[
        str | None, typer.Argument(help="Like 512MiB, 15m, 8 or off; a bare number has its unit.")
    ] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Show the cluster's settings, or change one for all nodes."""
    where = target.find(url, api_key, home)
    known = target.run(where, lambda client: client.settings(), "asking for the settings")
    if key is None:
        render.show(_table(known))
        return
    found = next((one for one in known if one.key == key), None)
    if found is None:
        names = ", ".join(one.key for one in known)
        raise typer.BadParameter(f"{key!r} is no setting; there are {names}", param_hint="KEY")
    if value is None:
        render.say(f"{found.key} = {_shown(found.value, found.unit)}: {found.meaning}")
        return
    try:
        wish = parse(found.unit, value)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="VALUE") from error
    after = target.run(where, lambda client: client.change_settings({key: wish}), "changing it")
    now = next(one for one in after if one.key == key)
    before, after_it = (_shown(one.value, found.unit) for one in (found, now))
    render.say(f"{key} = {after_it} (was {before})")


def parse(unit: str, text: str) -> int | bool:
    """A value in its unit. Raises ValueError."""
    word = text.strip().lower()
    if not unit:
        if word not in (*YES, *NO):
            raise ValueError(f"{text!r}: write on or off")
        return word in YES
    if word.isdecimal():
        return int(word)
    if unit == "bytes":
        return config.parse_size_bytes(text)
    if unit == "s":
        return config.parse_duration_s(text)
    if unit == "ms":
        number = word.removesuffix("ms")
        return int(number) if number.isdecimal() else config.parse_duration_s(text) * 1000
    raise ValueError(f"{text!r}: write a whole number")


def _shown(value: int | bool, unit: str) -> str:
    if not unit:
        return "on" if value else "off"
    return f"{int(value)} {unit}"


def _table(settings: tuple[SettingInfo, ...]) -> Table:
    table = Table("key", "value", "default", "from", "to", "meaning", box=None, pad_edge=False)
    for one in settings:
        bounds = (str(one.least), str(one.most)) if one.unit else ("off", "on")
        values = (_shown(value, one.unit) for value in (one.value, one.default))
        table.add_row(one.key, *values, *bounds, one.meaning)
    return table
