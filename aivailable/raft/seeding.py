"""A log that begins with a given state: how a cluster is founded anew from a survivor's copy.

Owns which bytes a store must hold so that the first voter starts from the state, and so that every
later member receives it as a snapshot. The store is one that nothing uses yet.
"""

from __future__ import annotations

from aivailable.core.ids import NodeId
from aivailable.raft.journal import Journal
from aivailable.raft.library import NO_OP
from aivailable.raft.snapshot import Snapshot, seal
from aivailable.raft.store import Durability, Operation, Store

FIRST_INDEX = 8
"""A fresh member's log ends at index 1: it must miss what comes before ours begins, or it would
take our entries for the continuation of its own and never ask for the snapshot."""
TERM = 1


async def seed(store: Store, node: NodeId, state: bytes) -> None:
    """Make `state` the begin of the log in an empty store, with `node` as the only voter.

    On return all of it is durable; the store is open still. Raises OSError; ValueError when the
    store holds a log already.
    """
    stored = await store.load()
    if stored.journal or stored.snapshot is not None:
        raise ValueError("only an empty store can be seeded")
    disk = Durability(store)
    journal = Journal(b"", disk, voters=(node,))
    journal.setCurrentTerm(TERM, None)
    prev, last = (NO_OP, FIRST_INDEX, TERM), (NO_OP, FIRST_INDEX + 1, TERM)
    disk.put(Operation("snapshot", seal(Snapshot(state, last, prev, journal.base_voters))))
    journal.rebase(last, prev, journal.base_voters)
    await journal.sync()
