"""Who may go from one cluster into another, and who may come in: one rule for every path.

Pure. Asked wherever a node's cluster can end or its node can move (seeking, yielding, merging, an
operator's merge, following, rejoining), and wherever a node or a cluster is let in. Which of two
clusters should go, if one may, is core.state.founding's and core.state.merging's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Way(StrEnum):
    """Why a node asks another cluster to let it in."""

    SEEKING = "seeking"
    """It has no cluster: nothing can end."""
    YIELDING = "yielding"
    """Unasked, by a cluster of one that nobody has touched."""
    MERGING = "merging"
    """Unasked, by a cluster that nobody has used."""
    ORDERED = "ordered"
    """Our operator named the other cluster's id."""
    FOLLOWING = "following"
    """Our own log says that our cluster has ended in that one."""
    REJOINING = "rejoining"
    """A member that our own state names is there, and we know no leader."""


@dataclass(frozen=True, slots=True)
class Departure:
    """Our side, as the node itself knows it: nothing here is a stranger's word, but `other_open`,
    which never suffices."""

    way: Way
    unused: bool = False
    """Nothing deployed, no operator's hand in it."""
    window_open: bool = False
    """Ours, as far as we know. Unknown counts as closed."""
    other_open: bool = False
    keyed: bool = False
    """The join client has a join key: whoever does not prove the same one is not believed."""


def may_go(leaving: Departure) -> bool:
    """Whether our node may ask to be let in elsewhere, and give up what it has.

    A closed window never gives up unasked: whoever closed it told us to trust no stranger. With an
    open one nothing is lost, for the stranger could as well have walked in.
    """
    match leaving.way:
        case Way.SEEKING | Way.ORDERED | Way.FOLLOWING | Way.REJOINING:
            return True
        case Way.YIELDING:
            return leaving.unused and (leaving.window_open or leaving.keyed)
        case Way.MERGING:
            both_open = leaving.window_open and leaving.other_open
            return leaving.unused and (both_open or leaving.keyed)


@dataclass(frozen=True, slots=True)
class Arrival:
    """Who asks to come in. Its identity, and `by_key`, are proved before this is asked."""

    window_open: bool
    """Ours."""
    by_key: bool
    """It proved our join key."""
    expected: bool = False
    """A member already, or listed by an ended cluster that the state remembers."""


def may_come(arriving: Arrival) -> bool:
    """Whether a node, or a cluster that wants to end in ours, is let in."""
    return arriving.window_open or arriving.by_key or arriving.expected
