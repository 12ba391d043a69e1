"""The join channel: what a stranger and a member say before the stranger is a member.

TLS 1.3 with SNI `join`, no client certificate, frames ≤ JOIN_FRAME_MAX_BYTES, short deadlines.
Order: server JoinOffer → client JoinRequest → server JoinAnswer, then the connection ends.
A client that only looks around closes after JoinOffer.
"""

from __future__ import annotations

from dataclasses import dataclass

from aivailable.wire.envelope import Registry

REFUSALS = (
    "window_closed",
    "removed",
    "merged_into",
    "other_cluster",
    "bad_proof",
    "version",
    "cloned_identity",
    "seeking",
    "busy",
    "malformed",
)


@dataclass(frozen=True, slots=True)
class JoinOffer:
    """What the server tells any stranger; `nonce` is 32 fresh bytes."""

    nonce: bytes
    node: str
    cluster_id: str
    cluster_name: str
    members: int
    pristine: bool
    window_open: bool
    proto_min: int
    proto_max: int


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """`signature` by the joiner's key over join_transcript(...)."""

    certificate: bytes
    signature: bytes
    name: str
    addresses: tuple[str, ...]
    link_port: int
    api_port: int
    version: str
    proto_min: int
    proto_max: int
    feature_max: int
    instance_id: str
    key_hashes: tuple[str, ...] = ()
    """SHA-256 hex of the joiner's own admin key(s), entered into the cluster at admission."""


@dataclass(frozen=True, slots=True)
class Seat:
    """What a new member must know of one other member to link to it."""

    node: str
    certificate: bytes
    addresses: tuple[str, ...]
    link_port: int
    voter: bool


@dataclass(frozen=True, slots=True)
class JoinAnswer:
    """`code` "" = admitted; else one of REFUSALS with a message for the operator.

    The seats fit one frame for about ten members; more are learnt from the log.
    """

    code: str
    message: str
    cluster_id: str = ""
    cluster_name: str = ""
    seats: tuple[Seat, ...] = ()


JOIN = Registry(offer=JoinOffer, request=JoinRequest, answer=JoinAnswer)


def join_transcript(
    nonce: bytes, server_fingerprint: bytes, client_fingerprint: bytes, cluster_id: str
) -> bytes:
    """What the joiner signs: bound to this server, this nonce, this cluster, and itself."""
    return b"aivailable-join-1\0" + b"\0".join(
        (nonce.hex().encode(), server_fingerprint, client_fingerprint, cluster_id.encode())
    )
