"""`aivailable invite`: a key that `up` takes, and what to do with it; no node needed."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from aivailable import config
from aivailable.cli import app
from aivailable.config import KEY_BITS_MIN, key_bits
from aivailable.peer.joining.join_key import JoinKey


def test_an_invitation_is_a_fresh_key_that_up_takes(tmp_path: Path) -> None:
    results = [CliRunner().invoke(app, ["invite"]) for _ in range(2)]
    assert [result.exit_code for result in results] == [0, 0]
    first, second = (result.stdout.strip() for result in results)
    assert first != second
    assert key_bits(first) >= KEY_BITS_MIN
    assert JoinKey.of(first) != JoinKey.of(second)
    assert config.load({"key": first}, {}, tmp_path).key == first


def test_it_says_what_to_do_on_both_sides_and_keeps_the_key_out_of_it() -> None:
    result = CliRunner().invoke(app, ["invite"])
    for text in ("AIVAILABLE_KEY=KEY aivailable up", "config.toml", "new ones"):
        assert text in result.stderr
    assert result.stdout.strip() not in result.stderr


def test_a_mistyped_key_ends_up_before_it_starts(tmp_path: Path) -> None:
    key = CliRunner().invoke(app, ["invite"]).stdout.strip()
    slip = key[:-1] + ("a" if key[-1] != "a" else "b")
    result = CliRunner().invoke(app, ["up", "--home", str(tmp_path), "--key", slip])
    assert result.exit_code == 2
    assert "--key: this join key is mistyped" in result.stderr
    assert not (tmp_path / "identity.pem").exists()
