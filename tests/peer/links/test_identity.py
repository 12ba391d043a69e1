"""The identity on disk, and what is read from other people's certificates."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.ids import NODE_ID_CHARS
from aivailable.errors import ConfigError, SchemaError
from aivailable.peer.home import FileHome
from aivailable.peer.links.identity import Identity, fingerprint_of, node_id_of, verify


def test_it_is_made_once_and_read_ever_after(tmp_path: Path) -> None:
    first, second = Identity.load_or_create(tmp_path), Identity.load_or_create(tmp_path)
    assert first.node == second.node == node_id_of(first.certificate)
    assert first.certificate == second.certificate
    assert first.fingerprint == fingerprint_of(second.certificate)
    assert first.instance_id != second.instance_id
    assert len(first.node) == NODE_ID_CHARS
    assert first.pem_path.stat().st_mode & 0o777 == 0o600


def test_a_readable_key_file_is_closed_again(tmp_path: Path) -> None:
    path = Identity.load_or_create(tmp_path).pem_path
    path.chmod(0o644)
    Identity.load_or_create(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_signatures_hold_for_the_key_and_the_text_only(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    ours, other = Identity.load_or_create(tmp_path), Identity.load_or_create(tmp_path / "other")
    signature = ours.sign(b"text")
    assert verify(ours.certificate, signature, b"text")
    assert not verify(ours.certificate, signature, b"texts")
    assert not verify(other.certificate, signature, b"text")
    assert not verify(ours.certificate, b"", b"text")


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "mixed"])
def test_a_damaged_identity_says_what_to_do(tmp_path: Path, damage: str) -> None:
    path = Identity.load_or_create(tmp_path).pem_path
    pem = path.read_bytes()
    (tmp_path / "other").mkdir()
    other = Identity.load_or_create(tmp_path / "other").pem_path.read_bytes()
    split = b"-----BEGIN CERTIFICATE"
    path.write_bytes(
        {
            "empty": b"",
            "cut": pem[: len(pem) // 2],
            "noise": bytes(300),
            "mixed": pem.split(split)[0] + split + other.split(split)[1],
        }[damage]
    )
    with pytest.raises(ConfigError, match=r"identity\.pem is damaged .* up --new-identity"):
        Identity.load_or_create(tmp_path)


def test_an_identity_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "identity.pem").mkdir()
    with pytest.raises(ConfigError, match=r"identity\.pem cannot be read"):
        Identity.load_or_create(tmp_path)


@given(st.binary(max_size=2048))
def test_garbage_is_no_certificate(garbage: bytes) -> None:
    with pytest.raises(SchemaError):
        node_id_of(garbage)


def test_home_keeps_facts_privately(tmp_path: Path) -> None:
    home = FileHome(tmp_path / "home")
    assert home.load("fact") is None
    home.save("fact", b"one")
    home.save("fact", b"two")
    assert home.load("fact") == b"two"
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "home" / "fact").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path / "home")) == ["fact", "lock"]
    home.remove("fact")
    home.remove("fact")
    assert home.load("fact") is None
    home.close()


def test_two_processes_never_share_a_home(tmp_path: Path) -> None:
    home = FileHome(tmp_path)
    with pytest.raises(ConfigError, match=rf"pid {os.getpid()}.*--home"):
        FileHome(tmp_path)
    home.close()
    FileHome(tmp_path).close()


def test_a_home_that_is_a_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    with pytest.raises(ConfigError, match="--home"):
        FileHome(tmp_path / "home")


@pytest.mark.parametrize("name", ["", "lock", "../x", "a/b", "UPPER"])
def test_facts_stay_inside_home(tmp_path: Path, name: str) -> None:
    home = FileHome(tmp_path)
    with pytest.raises(ValueError, match="cannot name a fact"):
        home.save(name, b"")
    home.close()
