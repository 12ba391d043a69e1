"""What was found out about this machine, its network and other nodes: facts without judgement.

Owns the shapes that `machine` and `network` fill in and `verdicts*` judge, and the shape of a
verdict. Pure data: reads nothing, decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from aivailable.core.serving.status import ClusterStatus
from aivailable.core.state.records import Device
from aivailable.peer.devices.gpus import Gpu
from aivailable.peer.ports import Sighting
from aivailable.wire.join import JoinOffer


class CheckVerdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `leg` groups: machine | interfaces | multicast | node | membership;
    `subject` names the node of a node's check, else "". `advice` is "" when nothing is to do."""

    leg: str
    name: str
    verdict: CheckVerdict
    found: str
    advice: str = ""
    subject: str = ""


@dataclass(frozen=True, slots=True)
class HomeFinding:
    path: str
    exists: bool
    """When not, `writable` and `free_bytes` are of the nearest folder above it."""
    writable: bool
    free_bytes: int
    locked_by: str = ""
    """Process id of the aivailable that holds it, "" when nobody does."""
    problem: str = ""
    """A file in it that cannot be used, in words."""


@dataclass(frozen=True, slots=True)
class PortFinding:
    purpose: str
    """API | links"""
    port: int
    problem: str = ""
    """Why it cannot be opened; "" when it is free."""


@dataclass(frozen=True, slots=True)
class MachineFinding:
    python: tuple[int, int, int]
    year: int
    home: HomeFinding
    ports: tuple[PortFinding, ...]
    """Empty when our own node runs and so holds them."""
    engine_missing: tuple[str, ...]
    """Modules that a worker needs and this interpreter does not find."""
    engine_problem: str
    """Why the engine that is there does not start; "" when it does."""
    devices: tuple[Device, ...]
    device_problems: tuple[str, ...]
    gpus: tuple[Gpu, ...] = ()
    """Every GPU that anybody saw, usable or not."""


@dataclass(frozen=True, slots=True)
class InterfaceFinding:
    name: str
    addresses: tuple[str, ...]
    """With the length of the network: 192.168.1.5/24. Only those used, when `used`."""
    used: bool
    left_out: str = ""
    """Why it is not used, in words."""
    carrier: bool = True
    """False: the kernel says that no cable or Wi-Fi is connected."""


@dataclass(frozen=True, slots=True)
class MulticastFinding:
    """One interface: did a packet to the mDNS group come back, and who else was heard."""

    interface: str
    address: str
    problem: str = ""
    """The socket could not be opened or the packet not sent."""
    own_heard: bool = False
    others: tuple[str, ...] = ()
    """Addresses of other machines that sent any mDNS at all."""


@dataclass(frozen=True, slots=True)
class HearingFinding:
    """What mDNS brought within the time of listening. `sightings` may hold our own."""

    problem: str
    sightings: tuple[Sighting, ...]
    listened_s: float


class Stage(IntEnum):
    """How far one attempt came: the stage that failed, or DONE."""

    NAME = 0
    CONNECT = 1
    TLS = 2
    OFFER = 3
    DONE = 4


class Fault(StrEnum):
    """Why an attempt ended before DONE."""

    NONE = ""
    UNRESOLVED = "unresolved"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    UNREACHABLE = "unreachable"
    NOT_TLS = "not_tls"
    TLS_REFUSED = "tls_refused"
    CLOSED = "closed"
    FOREIGN = "foreign"
    """Speaks TLS, but not our protocol."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One address of a node. `detail` is the system's own words."""

    address: tuple[str, int]
    stage: Stage
    fault: Fault = Fault.NONE
    detail: str = ""
    offer: JoinOffer | None = None


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """A node to try. `source`: asked (--peer) | heard (mDNS) | seed | member (of our cluster)."""

    label: str
    source: str
    addresses: tuple[tuple[str, int], ...]
    """(host name or IP literal, link port)."""
    seeking: bool = False
    """It announces that it has no cluster yet."""


@dataclass(frozen=True, slots=True)
class NodeFinding:
    target: ProbeTarget
    attempts: tuple[Attempt, ...]
    """One for each address, at least one."""

    @property
    def best(self) -> Attempt:
        return max(self.attempts, key=lambda attempt: attempt.stage)


@dataclass(frozen=True, slots=True)
class Own:
    """What this node knows of itself. `cluster_id` is "" while it belongs to none."""

    node: str
    """NodeId, "" before the first start."""
    cluster_id: str
    cluster_name: str
    """The cluster's, or the name that it would look for."""
    networks: tuple[str, ...] = ()
    """Ours, like 192.168.1.5/24."""
    seeds: tuple[tuple[str, int], ...] = ()
    keyed: bool = False
    """A join key is set here."""
    version: str = ""
    running_version: str = ""
    status: ClusterStatus | None = None
    """What our running node sees; None when none runs or it does not answer."""
    longest_stall_s: float | None = None
    """How long the running node's event loop stood still at most, lately; None: not told."""
    silence: str = ""
    """Why a node that should run here does not answer, in words."""
    states: Mapping[str, str] = field(default_factory=dict)
    """NodeId → here | up | silent | down, as our running node sees it."""
