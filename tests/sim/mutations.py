"""Breaking the product on purpose: the simulation must notice, or it proves nothing.

Owns the switches; each is a context manager that is off outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from aivailable.core.state.changes import replicas
from aivailable.core.state.changes.change import Reject
from aivailable.core.state.codec import decode_command
from aivailable.core.state.commands import Place
from aivailable.core.state.state import State
from aivailable.errors import SchemaError
from aivailable.peer import session
from aivailable.peer.control.leaving import Leaving
from aivailable.raft import journal
from aivailable.raft.guards import Guards
from aivailable.raft.node import RaftNode


@contextmanager
def nothing() -> Iterator[None]:
    """The product as it is."""
    yield


@contextmanager
def no_claim_check() -> Iterator[None]:
    """`apply` believes every claim of the controller."""
    original = replicas.claim_problem

    def believe(state: State, body: Place) -> Reject | None:
        return None

    replicas.claim_problem = believe
    try:
        yield
    finally:
        replicas.claim_problem = original


def without(guards: Guards) -> Callable[[], AbstractContextManager[None]]:
    """A defect of PySyncObj (raft/DESIGN.md) stays open on every node."""

    @contextmanager
    def opened() -> Iterator[None]:
        original = RaftNode.__init__

        def init(self: RaftNode, **given: Any) -> None:
            original(self, **given, guards=guards)

        RaftNode.__init__ = init  # type: ignore[method-assign]
        try:
            yield
        finally:
            RaftNode.__init__ = original  # type: ignore[method-assign]

    return opened


@contextmanager
def no_checksum() -> Iterator[None]:
    """The journal believes every byte of its disk."""
    original = journal._record_end

    def believe(data: bytes, offset: int) -> int | None:
        start = offset + journal._HEADER.size
        if start > len(data):
            return None
        magic, length, _ = journal._HEADER.unpack_from(data, offset)
        whole = magic == journal._MAGIC and 0 < length <= len(data) - start
        return start + length if whole else None

    journal._record_end = believe
    try:
        yield
    finally:
        journal._record_end = original


MUTATIONS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "": nothing,
    "no_claim_check": no_claim_check,
    "no_checksum": no_checksum,
    "open_d1": without(Guards(snapshot_commit=False)),
    "open_d5": without(Guards(synced_promises=False, synced_commit=False)),
}


@contextmanager
def replaced(owner: Any, name: str, by: Any) -> Iterator[None]:
    """One check of the product is another one for a while."""
    original = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _is_command(_state: State, _node: str, payload: bytes) -> bool:
    """The leader passes on what can be read, whosever it is."""
    try:
        decode_command(payload)
    except SchemaError:
        return False
    return True


HOSTILE: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "": nothing,
    "anybody_speaks": without(Guards(voters_only=False)),
    "anybody_plans": lambda: replaced(session, "may_forward", _is_command),
    "anybody_takes_votes": lambda: replaced(Leaving, "_may_take_out", lambda *_: None),
}
"""What a hostile member (sim.adversary) must not get away with."""
