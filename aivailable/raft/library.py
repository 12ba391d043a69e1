"""The one way to pysyncobj: pins it, disarms it, and lends it a node's clock, dice and journal.

PySyncObj keeps time, randomness, journal and serializer in module globals. Several nodes live in
one process (tests, simulation), so those globals are replaced once, at import, by stand-ins that
ask the ambient of the node that is acting right now: every call into the library happens inside
`acting(ambient)`. Nothing of it opens a socket, a pipe, a file, or reaches pickle any more.

Importing this module fails, and says what to do, when the installed version or one of the private
names that we rely on differs. Nobody outside raft may call it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, NoReturn

import pysyncobj
import pysyncobj.journal
import pysyncobj.pickle
import pysyncobj.serializer
import pysyncobj.syncobj as syncobj
import pysyncobj.transport
from pysyncobj.config import FAIL_REASON, SERIALIZER_STATE
from pysyncobj.node import Node

VERSION: Final = "0.3.17"
_REMEDY: Final = (
    f"aivailable.raft is written against the source of pysyncobj {VERSION}: install exactly that "
    f"(pip install pysyncobj=={VERSION}), or read the new source and port this module and its users"
)

_METHODS: Final = (
    "_SyncObj__applyLogEntries",
    "_SyncObj__changeCluster",
    "_SyncObj__connectedToAnyone",
    "_SyncObj__deleteEntriesTo",
    "_SyncObj__doApplyCommand",
    "_SyncObj__doChangeCluster",
    "_SyncObj__getCurrentLogIndex",
    "_SyncObj__getEntries",
    "_SyncObj__loadDumpFile",
    "_SyncObj__onBecomeLeader",
    "_SyncObj__onMessageReceived",
    "_SyncObj__onNodeConnected",
    "_SyncObj__onReadonlyNodeConnected",
    "_SyncObj__parseChangeClusterRequest",
    "_SyncObj__sendAppendEntries",
    "_SyncObj__setCurrentTerm",
    "_SyncObj__setState",
    "_SyncObj__updateClusterConfiguration",
    "_applyCommand",
    "_checkCommandsToApply",
    "_doDestroy",
    "_getLeader",
    "_isLeader",
    "_onTick",
    "doTick",
    "transferLeadership",
)
_ATTRIBUTES: Final = (
    "__changeClusterIDx",
    "__commandsQueue",
    "__connectedNodes",
    "__forceLogCompaction",
    "__lastResponseTime",
    "__needLoadDumpFile",
    "__noopIDx",
    "__otherNodes",
    "__raftCommitIndex",
    "__raftElectionDeadline",
    "__raftLastApplied",
    "__raftLeader",
    "__raftLog",
    "__raftMatchIndex",
    "__raftNextIndex",
    "__raftState",
    "__readonlyNodes",
    "__selfNode",
    "__serializer",
    "__transferInProgress",
    "__votedForNodeId",
    "__votesCount",
)
_GLOBALS: Final = (
    "PIPE_NOTIFIER_ENABLED",
    "Serializer",
    "createJournal",
    "createPoller",
    "monotonicTime",
    "random",
)

LEADER_STATE: Final = 2
CANDIDATE_STATE: Final = 1
FOLLOWER_STATE: Final = 0
REGULAR: Final = b"\x00"
NO_OP: Final = b"\x01"
MEMBERSHIP: Final = b"\x02"
"""First byte of a log entry's command (syncobj._COMMAND_TYPE)."""
SUCCESS: Final = FAIL_REASON.SUCCESS
DENIED: Final = FAIL_REASON.REQUEST_DENIED
IDLE: Final = SERIALIZER_STATE.NOT_SERIALIZING
BUSY: Final = SERIALIZER_STATE.SERIALIZING
DONE: Final = SERIALIZER_STATE.SUCCESS


SyncObj: Any = syncobj.SyncObj
SyncObjConf: Any = pysyncobj.SyncObjConf
Transport: Any = pysyncobj.transport.Transport


@dataclass(slots=True)
class Ambient:
    """What the acting node lends the library: monotonic seconds, dice, journal, serializer."""

    clock: Callable[[], float]
    rng: random.Random
    journal: Any
    serializer: Any


class StableNode(Node):  # type: ignore[misc]
    """A node whose hash is the same in every process, so that set order is, too."""

    def __init__(self, id: str, **kwargs: Any) -> None:  # noqa: A002 - the library's name
        super().__init__(id, **kwargs)
        self._stable_hash = zlib.crc32(id.encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.id == other.id

    def __hash__(self) -> int:
        return self._stable_hash


_actors: list[Ambient] = []


@contextmanager
def acting(ambient: Ambient) -> Iterator[None]:
    """Everything inside runs on this node's clock, dice, journal and serializer. Nests."""
    _actors.append(ambient)
    try:
        yield
    finally:
        _actors.pop()


def _actor() -> Ambient:
    if not _actors:
        raise RuntimeError("pysyncobj was called outside of library.acting(...)")
    return _actors[-1]


def now_s() -> float:
    """The acting node's clock."""
    return _actor().clock()


class _Dice:
    """Stands for the `random` module inside syncobj."""

    @staticmethod
    def random() -> float:
        return _actor().rng.random()


class _NoPoller:
    """Stands for the library's socket poller: there is nothing to poll."""

    def poll(self, timeout: float) -> None:
        """Returns at once; the asyncio loop does the waiting."""


class _NoPickle:
    """Stands for the pickle module: whatever still reaches for it fails loudly (defect D17)."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(f"pickle is disabled in aivailable.raft: {name}")


def _refuse(*_args: object, **_kwargs: object) -> NoReturn:
    raise RuntimeError("pickle is disabled in aivailable.raft")


def _missing(module: ModuleType) -> list[str]:
    """What of the private surface is not there; constants of code objects name the attributes."""
    cls = module.SyncObj
    missing = [name for name in _METHODS if not callable(getattr(cls, name, None))]
    missing += [name for name in _GLOBALS if not hasattr(module, name)]
    used: dict[str, None] = {}
    for member in vars(cls).values():
        code = getattr(member, "__code__", None)
        used.update(dict.fromkeys(code.co_names if code else ()))
    missing += [name for name in _ATTRIBUTES if f"_SyncObj{name}" not in used]
    return missing


def check_library(version: str = pysyncobj.syncobj.VERSION, module: ModuleType = syncobj) -> None:
    """Raises ImportError, saying what to do, unless this is the library we know."""
    if version != VERSION:
        raise ImportError(f"found pysyncobj {version}. {_REMEDY}")
    missing = _missing(module)
    if missing:
        raise ImportError(f"pysyncobj {version} lacks {', '.join(missing)}. {_REMEDY}")


def _disarm() -> None:
    syncobj.monotonicTime = now_s
    syncobj.random = _Dice
    syncobj.createPoller = lambda _kind: _NoPoller()
    syncobj.createJournal = lambda _path: _actor().journal
    syncobj.Serializer = lambda *_args: _actor().serializer
    syncobj.PIPE_NOTIFIER_ENABLED = False
    for module in (pysyncobj.pickle, pysyncobj.journal):
        for name in ("loads", "dumps", "load", "dump"):
            if hasattr(module, name):
                setattr(module, name, _refuse)
    pysyncobj.pickle.pickle = _NoPickle()


check_library()
_disarm()
