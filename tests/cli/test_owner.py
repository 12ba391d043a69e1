"""`pause` and `set`: what is sent, and what is wrong said in words."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from aivailable.cli import app
from aivailable.cli.settings import parse


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("pause 2h", ("pause", "", 7200)),
        ("pause 30m rig2", ("pause", "rig2", 1800)),
        ("pause --off", ("pause", "", 0)),
        ("pause --off rig2", ("pause", "rig2", 0)),
    ],
)
def test_what_a_pause_sends(client: Any, typed: str, sent: tuple[object, ...]) -> None:
    result = run(*typed.split())
    assert result.exit_code == 0, result.output
    assert client.calls == [sent]
    assert ("serves again" in result.stdout) == (sent[2] == 0)
    assert ("ending: qwen#1.1" in result.stdout) == (sent[2] != 0)


@pytest.mark.parametrize("typed", ["pause", "pause soon", "pause 0", "pause 2h rig2 --off"])
def test_a_pause_needs_a_time(client: Any, typed: str) -> None:
    assert run(*typed.split()).exit_code == 2
    assert client.calls == []


def test_set_lists_shows_and_changes(client: Any) -> None:
    listed = run("set").stdout
    for text in ("idle_ttl_s", "600 s", "spare_fill", "on", "fills"):
        assert text in listed
    assert "idle_ttl_s = 600 s: idle" in run("set", "idle_ttl_s").stdout
    client.calls.clear()
    result = run("set", "idle_ttl_s", "2h")
    assert client.calls[1] == ("change_settings", {"idle_ttl_s": 7200})
    assert result.stdout == "idle_ttl_s = 7200 s (was 600 s)\n"
    assert "spare_fill = off (was on)" in run("set", "spare_fill", "off").stdout


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (("set", "nonsense", "1"), "idle_ttl_s"),
        (("set", "idle_ttl_s", "soon"), "duration"),
        (("set", "spare_fill", "7"), "on or off"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_sent(
    client: Any, typed: tuple[str, ...], text: str
) -> None:
    result = run(*typed)
    assert result.exit_code == 2
    assert text in result.output
    assert ("settings",) in client.calls
    assert len(client.calls) == 1


def test_values_in_their_units() -> None:
    assert parse("bytes", "512MiB") == 512 * 2**20
    assert parse("bytes", "0") == 0
    assert (parse("ms", "5s"), parse("ms", "1500ms"), parse("ms", "700")) == (5000, 1500, 700)
    assert (parse("", "yes"), parse("", "false")) == (True, False)
    with pytest.raises(ValueError, match="whole number"):
        parse("copies", "many")
