"""`recover`: found the cluster anew from this node's copy, when the majority is gone for good.

Owns when that is refused and the order that makes it safe to die in: the new log, with the state as
its snapshot, is durable before the cluster file names it; until then the old cluster stands, from
then on the new one. It must not choose what stays (core.state.merging does).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aivailable.advice import REMOVE
from aivailable.core.ids import KeyId, NodeId, cluster_id, short
from aivailable.core.state.merging import Recovered, recovered
from aivailable.core.state.node_names import shown_name
from aivailable.core.state.records import Role
from aivailable.core.state.state import encode_state
from aivailable.errors import RequestError
from aivailable.peer.joining.cluster_file import ClusterFile
from aivailable.peer.ports import Ports
from aivailable.peer.session import ClusterSession
from aivailable.raft.seeding import seed

log = logging.getLogger("aivailable.recovery")

LEADERLESS_MIN_S = 10.0
"""This long must no leader be known: a node that has just started knows none yet."""
CLUSTER_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator wants of the cluster that is founded anew."""

    actor: str
    expected: tuple[NodeId, ...] | None
    """Who is let in again; None = all of them."""
    keep_keys: tuple[KeyId, ...] = ()
    """Of the admin keys that came through the others, those that stay."""


async def recover(
    session: ClusterSession,
    ports: Ports,
    wish: Wish,
    *,
    move: Callable[[ClusterFile], Awaitable[ClusterSession]],
) -> Recovered:
    """Found anew and `move` there. Raises RequestError 409 when it is refused, OSError."""
    _refuse_while_led(session)
    before = session.state
    node = ports.identity.node
    fresh = cluster_id(ports.randomness.token_bytes(CLUSTER_ID_BYTES))
    try:
        result = recovered(
            before,
            node,
            fresh,
            actor=wish.actor,
            at_ms=ports.clock.wall_ms(),
            expected=wish.expected,
            keep_keys=wish.keep_keys,
        )
    except ValueError as error:
        raise RequestError(409, "no_copy", f"cannot recover: {error}") from error
    store = ports.raft_store(fresh)
    try:
        await seed(store, node, encode_state(result.state))
    finally:
        await store.close()
    try:
        _refuse_while_led(session)
        if session.state.version != before.version:
            raise RequestError(409, "has_leader", "the cluster has changed just now: it lives")
    except RequestError:
        ports.drop_raft_store(fresh)
        raise
    log.warning(
        "founding %s anew as %s from version %d; given up: %s",
        short(session.file.cluster_id),
        short(fresh),
        before.version,
        ", ".join(result.gone) or "nobody",
    )
    await move(ClusterFile(fresh, session.file.name, Role.VOTER, (node,)))
    return result


def _refuse_while_led(session: ClusterSession) -> None:
    leader = session.raft.leader
    if leader is not None:
        name = shown_name(session.state.members, leader)
        raise RequestError(
            409,
            "has_leader",
            f"the cluster has a leader ({name}), so its majority lives and nothing is to be"
            f" recovered; {REMOVE} takes out a member that is gone",
        )
    missing_s = session.leaderless_ms() / 1000
    if missing_s < LEADERLESS_MIN_S:
        raise RequestError(
            409,
            "too_early",
            f"no leader is known for {missing_s:.0f} s only: the others may be about to answer;"
            f" try again in {LEADERLESS_MIN_S:.0f} s",
            retry_after_s=int(LEADERLESS_MIN_S),
        )
