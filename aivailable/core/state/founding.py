"""Found a cluster, join one, or wait: what a node without a cluster does next.

Owns the rules of founding without configuration. Safety never rests on them: two nodes that both
found are found out by `cluster_id`, and `gives_up` brings pristine ones together. Resuming one's
own cluster is decided before this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from aivailable.core.ids import ClusterId

FOUNDER_TURN_S = 10.0
"""So long a seeker waits for each seeker with a lower id to found."""


class AnnouncedCluster(Protocol):
    """What an announcement on the LAN says (peer.ports.Sighting): a hint."""

    @property
    def short_node(self) -> str: ...
    @property
    def cluster_prefix(self) -> str:
        """ "" while the node seeks."""
        ...

    @property
    def cluster_name(self) -> str: ...
    @property
    def window_open(self) -> bool: ...


S = TypeVar("S", bound=AnnouncedCluster)


@dataclass(frozen=True, slots=True)
class Seeking:
    """A node that looks for a cluster. Times are seconds of its monotonic clock."""

    short_node: str
    cluster_name: str
    started_s: float
    look_s: float
    """How long it looks around: 3 s plus jitter."""
    now_s: float
    unreachable: tuple[str, ...] = ()
    """Short ids of nodes that are announced but did not answer: as if not seen."""


@dataclass(frozen=True, slots=True)
class FoundCluster:
    """Found a cluster of one, and go on looking."""


@dataclass(frozen=True, slots=True)
class Join(Generic[S]):
    """Ask there. With a closed window this only tells that we are here: the other side says
    `window_closed` and shows us as waiting."""

    sighting: S


@dataclass(frozen=True, slots=True)
class WaitFor:
    reason: str
    until_s: float


def decide(seek: Seeking, sightings: Sequence[S]) -> FoundCluster | Join[S] | WaitFor:
    """The next step by what is seen now.

    An open window of our name is taken at once; a closed one only after looking around, since
    an open one may yet be heard.
    """
    ours = [
        sighting
        for sighting in sightings
        if sighting.cluster_name == seek.cluster_name
        and sighting.short_node not in seek.unreachable
        and sighting.short_node != seek.short_node
    ]
    founded = sorted(
        (sighting for sighting in ours if sighting.cluster_prefix),
        key=lambda entry: (not entry.window_open, entry.cluster_prefix, entry.short_node),
    )
    looked_s = seek.started_s + seek.look_s
    if founded and (founded[0].window_open or seek.now_s >= looked_s):
        return Join(founded[0])
    if seek.now_s < looked_s:
        return WaitFor(f"looking for a cluster named {seek.cluster_name!r}", looked_s)
    before = sorted(entry.short_node for entry in ours if entry.short_node < seek.short_node)
    turn_s = looked_s + FOUNDER_TURN_S * len(before)
    if seek.now_s >= turn_s:
        return FoundCluster()
    return WaitFor(f"{before[0]} is about to found the cluster", turn_s)


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What two clusters of one name tell each other when they meet."""

    cluster_id: ClusterId
    members: int
    pristine: bool
    """One member, nothing deployed, no operator's hand (core.state.state.State.pristine)."""


def gives_up(mine: ClusterFacts, other: ClusterFacts) -> bool:
    """Whether we dissolve into the other. Of two, at most one ever does.

    Only a pristine cluster of one does: for one that is bigger or in use, and for its like with
    the smaller id (no two nodes' clocks are comparable, so age cannot decide).
    """
    if mine.cluster_id == other.cluster_id or not mine.pristine or mine.members != 1:
        return False
    if not other.pristine or other.members > 1:
        return True
    return other.cluster_id < mine.cluster_id
