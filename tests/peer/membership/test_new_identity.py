"""A machine that becomes a new node: what is set aside, what stays, and when it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aivailable.core.state.records import Role
from aivailable.errors import ConfigError
from aivailable.peer.home import FileHome
from aivailable.peer.joining.cluster_file import CLUSTER_FILE, ClusterFile
from aivailable.peer.links.identity import IDENTITY_NAME, Identity
from aivailable.peer.membership.new_identity import start_anew

CLUSTER = "c" * 26


@pytest.fixture
def home(tmp_path: Path) -> Iterator[FileHome]:
    home = FileHome(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").write_bytes(b"weights")
    home.save("admin.key", b"old")
    yield home
    home.close()


def anew(home: FileHome) -> tuple[list[str], list[str]]:
    """The logs that were dropped, and what a person was told."""
    dropped: list[str] = []
    told: list[str] = []
    start_anew(home, dropped.append, told.append)
    return dropped, told


def member(home: FileHome, node: str) -> None:
    ClusterFile(CLUSTER, "lab", Role.OBSERVER, ("n1",), node=node).save(home)


def test_the_old_node_is_set_aside_and_its_models_stay(home: FileHome) -> None:
    old = Identity.load_or_create(home.path).node
    for number in (1, 2):
        dropped, told = anew(home)
        assert dropped == []
        assert f"{IDENTITY_NAME}.removed-{number}" in told[0]
        assert Identity.load_or_create(home.path).node != old
    assert home.load("admin.key.removed-1") == b"old"
    assert home.load("admin.key") is None
    assert (home.path / "models" / "tiny.gguf").exists()


def test_a_member_is_told_to_leave_first(home: FileHome) -> None:
    member(home, Identity.load_or_create(home.path).node)
    before = home.load(IDENTITY_NAME)
    with pytest.raises(ConfigError, match="`aivailable leave`"):
        anew(home)
    assert home.load(IDENTITY_NAME) == before
    assert home.load("admin.key") == b"old"


@pytest.mark.parametrize("damaged", [True, False])
def test_a_cluster_of_another_identity_holds_nobody_back(home: FileHome, damaged: bool) -> None:
    member(home, "another node")
    Identity.load_or_create(home.path)
    if damaged:
        home.save(IDENTITY_NAME, b"damaged")
    assert anew(home)[0] == [CLUSTER]
    assert home.load(CLUSTER_FILE) is None
    assert home.load(f"{CLUSTER_FILE}.removed-1") is not None


def test_nothing_is_there_to_set_aside(home: FileHome) -> None:
    assert anew(home) == ([], [])


def test_a_file_from_before_names_its_node_by_its_vote() -> None:
    voter = ClusterFile(CLUSTER, "lab", Role.VOTER, ("n1", "n2"))
    assert (voter.is_of("n1"), voter.is_of("n9")) == (True, False)
    observer = ClusterFile(CLUSTER, "lab", Role.OBSERVER, ("n1",))
    assert observer.is_of("n9")
