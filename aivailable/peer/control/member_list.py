"""Who else belongs to the cluster, as far as this node knows.

The replicated state names the members, but a node that comes back applies old states first, and one
that was off for long knows only members of that time, perhaps none of whom leads now. Whom it does
not list it cannot link to, and whom it does not hear it never learns of. So a seat is given up only
for a state at least as new as the one it came from, and a node without a leader asks the members
that it can reach whom they know. Owned by peer.session; members are trusted (SECURITY.md).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from aivailable.core.ids import NodeId, short
from aivailable.core.state.state import State
from aivailable.errors import AivailableError, SchemaError
from aivailable.peer.control.cluster_view import ClusterView
from aivailable.peer.control.rpc import Method, Rpc
from aivailable.peer.joining.cluster_file import ClusterFile, seats_of
from aivailable.peer.ports import Links
from aivailable.wire.join import Seat
from aivailable.wire.schema import pack, unpack

log = logging.getLogger("aivailable.member_list")

ASK_PERIOD_S = 2.0
LEADERLESS_MS = 3_000
"""An election is over by then; so long without a leader, the list may be what is wrong."""
METHOD = "roster"


@dataclass(frozen=True, slots=True)
class Told:
    """A member's list, and the version of the state that it is from."""

    version: int
    seats: tuple[Seat, ...]


def seen(file: ClusterFile, state: State, node: NodeId) -> ClusterFile:
    """The file after `state` was applied here; an older state than the list's changes nothing."""
    if state.version < file.seats_version:
        return file
    seats = tuple(seat for seat in seats_of(state) if seat.node != node)
    return replace(file, seats=seats, seats_version=state.version)


def told(file: ClusterFile, news: Told, node: NodeId) -> ClusterFile:
    """The file after a member told its list; an older one than ours changes nothing."""
    if news.version <= file.seats_version:
        return file
    seats = tuple(seat for seat in news.seats if seat.node != node)
    return replace(file, seats=seats, seats_version=news.version)


def methods(cluster: ClusterView) -> Mapping[str, Method]:
    """What other members may ask here."""

    async def answer(_caller: NodeId, _arguments: Mapping[str, str]) -> Mapping[str, str]:
        now = cluster.state
        news = pack(Told(now.version, seats_of(now)))
        return {"told": base64.b64encode(news).decode()}

    return {METHOD: answer}


async def keep_asking(
    rpc: Rpc,
    links: Links,
    cluster: ClusterView,
    learn: Callable[[Told], None],
) -> None:
    """While there is no leader, ask every linked member for its list, now and then."""
    while True:
        await asyncio.sleep(ASK_PERIOD_S)
        if cluster.leaderless_ms() < LEADERLESS_MS:
            continue
        for node in links.connected():
            try:
                learn(_news(await rpc.ask(node, METHOD, {})))
            except AivailableError as error:
                log.debug("%s did not tell whom it knows: %s", short(node), error)


def _news(values: Mapping[str, str]) -> Told:
    """Raises SchemaError when the answer is no list."""
    try:
        return unpack(Told, base64.b64decode(values.get("told", ""), validate=True))
    except binascii.Error as error:
        raise SchemaError(f"told: {error}") from error
