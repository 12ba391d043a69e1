"""Breaking the product on purpose: the simulation must notice, or it proves nothing.

Owns the switches; each is a context manager that is off outside of it. Used by sim.run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from aivailable.core import changes_models
from aivailable.core.change import Reject
from aivailable.core.commands import Place
from aivailable.core.state import State
from aivailable.raft.guards import Guards
from aivailable.raft.node import RaftNode


@contextmanager
def nothing() -> Iterator[None]:
    """The product as it is."""
    yield


@contextmanager
def no_claim_check() -> Iterator[None]:
    """`apply` believes every claim of the controller."""
    original = changes_models.claim_problem

    def believe(state: State, body: Place) -> Reject | None:
        return None

    changes_models.claim_problem = believe
    try:
        yield
    finally:
        changes_models.claim_problem = original


@contextmanager
def open_d1() -> Iterator[None]:
    """RAFT.md's D1 stays open: snapshot messages carry a commit index."""
    original = RaftNode.__init__

    def init(self: RaftNode, **given: Any) -> None:
        original(self, **given, guards=Guards(snapshot_commit=False))

    RaftNode.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        RaftNode.__init__ = original  # type: ignore[method-assign]


MUTATIONS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "": nothing,
    "no_claim_check": no_claim_check,
    "open_d1": open_d1,
}
