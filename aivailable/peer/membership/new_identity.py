"""`up --new-identity`: this machine becomes a new node, and keeps its models.

For a node that was removed for good, and for one whose identity is damaged. Owns when that is
refused, and the order that makes it safe to die in: the identity goes last, so that a second try
finishes what the first began. Nothing is deleted: what the old node had is set aside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aivailable.advice import LEAVE, UP
from aivailable.core.ids import ClusterId, short
from aivailable.errors import ConfigError
from aivailable.peer.home import ADMIN_KEY_FILE, FileHome
from aivailable.peer.joining.cluster_file import CLUSTER_FILE, ClusterFile
from aivailable.peer.links.identity import IDENTITY_NAME, Identity
from aivailable.peer.membership.rejoining import REMOVED_FILE

SET_ASIDE_MAX: Final = 1000
"""Old identities in one home."""


def start_anew(
    home: FileHome, drop_log: Callable[[ClusterId], None], tell: Callable[[str], None]
) -> None:
    """Set the node that this home was aside. Raises ConfigError while it belongs to a cluster,
    OSError."""
    if home.load(IDENTITY_NAME) is None:
        return
    file, node = _cluster_of(home), _old_node(home)
    removed = home.load(REMOVED_FILE) == node.encode()
    if file is not None and node and file.is_of(node) and not removed:
        raise ConfigError(
            f"this node belongs to the cluster {file.name!r} ({short(file.cluster_id)}): start it"
            f" with {UP} and take it out with {LEAVE}; then --new-identity makes it a new node"
        )
    number = _free_number(home)
    for name in (CLUSTER_FILE, ADMIN_KEY_FILE, IDENTITY_NAME):
        data = home.load(name)
        if data is not None:
            home.save(f"{name}.removed-{number}", data)
            home.remove(name)
        if name == CLUSTER_FILE and file is not None:
            drop_log(file.cluster_id)
    home.remove(REMOVED_FILE)
    tell(f"a new node: the old identity is set aside as {IDENTITY_NAME}.removed-{number}")


def _cluster_of(home: FileHome) -> ClusterFile | None:
    """Of the old node; None when it has none, or one that cannot be read."""
    try:
        return ClusterFile.load(home)
    except ConfigError:
        return None


def _old_node(home: FileHome) -> str:
    """The old node's id; "" when its identity is damaged."""
    try:
        return Identity.load_or_create(home.path).node
    except ConfigError:
        return ""


def _free_number(home: FileHome) -> int:
    for number in range(1, SET_ASIDE_MAX + 1):
        if home.load(f"{IDENTITY_NAME}.removed-{number}") is None:
            return number
    raise ConfigError(f"{SET_ASIDE_MAX} old identities are in {home.path}: remove some of them")
