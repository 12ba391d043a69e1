"""The interfaces between the peer's logic and the world.

The real ones are built in `app`; the simulation builds others. Each is as small as its consumer
needs. All callbacks run on the event loop; none may block.
"""

from __future__ import annotations

import enum
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aivailable.core.ids import ClusterId, NodeId
from aivailable.core.state.records import Inventory
from aivailable.wire.join import JoinAnswer, JoinOffer, JoinRequest
from aivailable.wire.peer import DeviceLoad
from aivailable.wire.worker import Load

if TYPE_CHECKING:
    from aivailable.raft.settings import RaftSettings
    from aivailable.raft.store import Store

T = TypeVar("T")


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Seconds; never goes back. Decides."""
        ...

    def wall_ms(self) -> int:
        """UTC milliseconds; for people only."""
        ...


@dataclass(frozen=True, slots=True)
class Contact:
    """A member as the link layer needs it."""

    node: NodeId
    certificate: bytes
    """DER."""
    addresses: tuple[tuple[str, int], ...]
    """(IP literal, link port), best first; looked up again at each dial."""


class MessageStream(Protocol):
    """One request over a link: messages both ways, with credit, ended by either side."""

    async def send(self, message: Any) -> None:
        """Waits for credit. Raises LinkLost or StreamReset."""
        ...

    async def receive(self) -> Any | None:
        """Next message, None at the other side's orderly end. Raises LinkLost, StreamReset."""
        ...

    def finish(self) -> None:
        """Orderly end of our direction."""
        ...

    def reset(self, code: str, message: str = "") -> None:
        """Ends both directions at once; the other side's receive raises StreamReset."""
        ...


class LinkListener(Protocol):
    """What the peer does with what its links bring."""

    def link_up(self, node: NodeId, instance_id: str, version: str) -> None: ...

    def link_down(self, node: NodeId, reason: str) -> None: ...

    def message(self, node: NodeId, message: Any) -> None:
        """A control-class message of wire.peer.PEER."""
        ...

    async def serve_stream(self, node: NodeId, first: Any, stream: MessageStream) -> None:
        """A stream the other side opened with `first`. Cancelled when the link dies."""
        ...

    def refused(self, node: NodeId, code: str, message: str) -> None:
        """A dialled member refused us (removed, other_cluster, cloned_identity, …)."""
        ...


class Links(Protocol):
    """One multiplexed, mutually authenticated connection to each other member."""

    port: int
    """What it listens on, once started."""

    def set_contacts(self, cluster_id: str, contacts: tuple[Contact, ...]) -> None:
        """Replaces the member list: dials who is new, cuts who is gone, at once."""
        ...

    def connected(self) -> tuple[NodeId, ...]:
        """Sorted."""
        ...

    def send(self, node: NodeId, message: Any) -> bool:
        """Control class. False when there is no link; a full queue cuts the link."""
        ...

    async def open_stream(self, node: NodeId, first: Any) -> MessageStream:
        """Raises LinkLost when there is no link."""
        ...

    async def fetch_stream(self, node: NodeId, first: Any) -> MessageStream:
        """A stream on a fresh connection of its own (weights). Raises LinkError."""
        ...

    async def start(self, listener: LinkListener) -> None: ...

    async def stop(self) -> None: ...


class KeyCheck(enum.Enum):
    """What a joiner's request showed about the join key of the server that it asked."""

    NONE = "none"
    """It showed no proof: the window rule applies."""
    PROVED = "proved"
    WRONG = "wrong"
    """It holds another key: it means another cluster."""


class JoinServer(Protocol):
    """Answers strangers at the join channel."""

    def offer(self, nonce: bytes) -> JoinOffer | None:
        """None: say nothing (not founded yet, stopping)."""
        ...

    async def admit(
        self, request: JoinRequest, node: NodeId, key: KeyCheck = KeyCheck.NONE
    ) -> JoinAnswer:
        """The signature is already verified; `node` is the id of the certificate's key, `key`
        what the request's proof of the join key was found to be."""
        ...


class JoinClient(Protocol):
    """Asks at another node's join channel."""

    async def look(self, address: tuple[str, int]) -> JoinOffer:
        """Raises LinkError."""
        ...

    async def join(self, address: tuple[str, int], request: JoinRequest) -> JoinAnswer:
        """Signs `request` for this server and sends it. Raises LinkError."""
        ...


@dataclass(frozen=True, slots=True)
class Sighting:
    """What an mDNS announcement says: a hint, nothing more."""

    short_node: str
    instance: str
    cluster_prefix: str
    """"" while the node seeks."""
    cluster_name: str
    window_open: bool
    api_port: int
    addresses: tuple[tuple[str, int], ...]
    """(IP literal, link port)."""
    proto: int = 1


class Discovery(Protocol):
    """Hears and makes announcements on the LAN."""

    async def start(self) -> None: ...

    async def announce(self, sighting: Sighting) -> None:
        """Publish or update our own announcement (addresses are filled in by the port)."""
        ...

    def sightings(self) -> tuple[Sighting, ...]:
        """Everyone else heard and not yet expired, sorted by (short_node, instance)."""
        ...

    async def changed(self) -> None:
        """Returns when the set of sightings may have changed."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Our own reachable IP literals, best first."""
        ...

    def reach(self, addresses: tuple[str, ...]) -> None:
        """Where members are now: our addresses that lead there count as reachable, too."""
        ...

    async def stop(self) -> None: ...


class DevicePort(Protocol):
    """The GPUs of this machine."""

    def inventory(self, node: NodeId) -> Inventory: ...

    def load(self) -> tuple[DeviceLoad, ...]:
        """Live free bytes per device. For cpu and sim devices: total − what workers hold."""
        ...


class Worker(Protocol):
    """A running worker process."""

    pid: int

    def send(self, message: Any) -> None:
        """A message of wire.worker.TO_WORKER. Never blocks."""
        ...

    def messages(self) -> AsyncIterator[Any]:
        """Messages of wire.worker.FROM_WORKER until the process ends."""
        ...

    async def exit_reason(self) -> str:
        """Waits for the end: "" when orderly, else signal or code and the last log line."""
        ...

    def kill(self) -> None: ...


class WorkerLauncher(Protocol):
    async def launch(self, load: Load) -> Worker:
        """Raises WorkerError when the process cannot be started."""
        ...


@dataclass(frozen=True, slots=True)
class FileStatus:
    digest: str
    path: Path
    size_bytes: int


class ModelStore(Protocol):
    """Verified model files of this node, by digest."""

    def held(self) -> Mapping[str, FileStatus]: ...

    async def look(self, read: Callable[[Path], T], path: Path) -> T:
        """What `read` says of the file, off the loop. Raises what it raises, and GgufError when
        the file does not answer in time."""
        ...

    async def register(self, path: Path) -> FileStatus:
        """Hash a file in place (off the loop) and remember it. Raises GgufError, OSError."""
        ...

    async def fetch(self, digest: str, size_bytes: int, source: MessageStream) -> FileStatus:
        """Write a peer's FileChunks, paced, hashed while writing; resumes a partial file.
        Raises LinkError, OSError, WorkerError on a digest mismatch (the partial is removed)."""
        ...

    async def send(self, digest: str, offset: int, stream: MessageStream) -> None:
        """Serve FileChunks to a peer. Raises OSError, LinkError."""
        ...

    def partial_bytes(self, digest: str) -> int: ...


class Home(Protocol):
    """This node's small persistent facts (files in home, fsynced)."""

    def load(self, name: str) -> bytes | None: ...

    def save(self, name: str, data: bytes) -> None:
        """Atomic and durable. Raises OSError."""
        ...

    def remove(self, name: str) -> None: ...


class Randomness(Protocol):
    """Where chance comes from: seeded in the simulation, the system's otherwise."""

    @property
    def random(self) -> random.Random:
        """For jitter and elections."""
        ...

    def token_bytes(self, count: int) -> bytes:
        """For secrets and ids."""
        ...


class IdentityPort(Protocol):
    """Who this node is (see peer.links.identity)."""

    @property
    def node(self) -> NodeId: ...

    @property
    def certificate(self) -> bytes:
        """DER."""
        ...

    @property
    def instance_id(self) -> str:
        """Random per process start."""
        ...


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """What the peer's logic needs of the configuration."""

    name: str
    cluster_name: str = "default"
    join_window_s: int = 900
    version: str = "0.1.0"
    look_s: float = 3.0
    """How long a new node looks around before it founds."""
    heartbeat_s: float = 1.0
    seeds: tuple[tuple[str, int], ...] = ()
    """(host, link port) to ask besides what mDNS brings."""
    keyed: bool = False
    """The join client has a join key."""


@dataclass(slots=True)
class Endpoints:
    """The ports this node listens on: known once it does, since 0 means any free one."""

    link_port: int = 0
    api_port: int = 0


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything of the world that a peer touches, built in `app` or by the simulation."""

    clock: Clock
    randomness: Randomness
    identity: IdentityPort
    home: Home
    links: Links
    join_client: JoinClient
    discovery: Discovery
    devices: DevicePort
    launcher: WorkerLauncher
    model_store: ModelStore
    raft_store: Callable[[ClusterId], Store]
    """Opens (or makes) the durable log of one cluster."""
    drop_raft_store: Callable[[ClusterId], None]
    """Sets aside the log of a cluster that was given up."""
    raft_settings: RaftSettings
    predict: Callable[[PredictRequest], Awaitable[Prediction]]
    """Exact bytes by the engine's dry run, else the formula (see
    peer.deploying.memory_predictor)."""
    endpoints: Endpoints


@dataclass(frozen=True, slots=True)
class PredictRequest:
    path: Path
    context: int
    slots: int
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Prediction:
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    by: str
    """oracle | formula"""
