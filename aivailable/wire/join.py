"""The join channel: what a stranger and a member say before the stranger is a member.

TLS 1.3 with SNI `join`, no client certificate, frames ≤ JOIN_FRAME_MAX_BYTES, short deadlines.
Order: server JoinOffer → client JoinRequest → server JoinAnswer, then the connection ends.
A client that only looks around closes after JoinOffer. Fields with defaults came later: a side
that does not know them neither sends nor reads them, and is as one without a join key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aivailable.wire.envelope import Registry

NONCE_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class JoinOffer:
    """What the server tells any stranger; `nonce` is NONCE_BYTES fresh bytes."""

    nonce: bytes
    node: str
    cluster_id: str
    cluster_name: str
    members: int
    pristine: bool
    window_open: bool
    proto_min: int
    proto_max: int
    keyed: bool = False
    """It can check and make proofs of a join key."""


@dataclass(frozen=True, slots=True)
class MergeWish:
    """The cluster of the asker wants to end in the one asked: not the asker alone comes in, its
    `members` may come once they have dissolved (core.state.merging). The answer's seats are where
    to."""

    cluster_id: str
    name: str
    members: tuple[str, ...]
    pristine: bool
    feature_max: int = 1
    """The feature level that all of them can do."""


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
    client_nonce: bytes = b""
    """NONCE_BYTES fresh bytes when `key_proof` is there."""
    key_proof: bytes = b""
    """That the joiner holds the join key, over key_transcript(...); "" = it has none."""
    former: str = ""
    """The cluster that the joiner is a member of: it asks whether that one has ended here."""
    to: str = ""
    """The node that is asked, when no other will do: the asker's end checks its certificate."""
    merge: MergeWish | None = None
    """Asks for a whole cluster; with it nobody is admitted yet."""


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
    """`code` "" = admitted; else why not, with a message for the operator: window_closed, removed,
    merged_into, other_cluster, bad_proof, no_key, version, cloned_identity, seeking, busy,
    malformed.

    The seats fit one frame for about ten members; more are learnt from the log.
    """

    code: str
    message: str
    cluster_id: str = ""
    cluster_name: str = ""
    seats: tuple[Seat, ...] = ()
    key_proof: bytes = b""
    """That the server holds the join key; only for a joiner that proved it."""
    version: int = 0
    """Of the state that the seats are from: what the joiner replays before is older."""


JOIN = Registry(offer=JoinOffer, request=JoinRequest, answer=JoinAnswer)


def join_transcript(
    nonce: bytes, server_fingerprint: bytes, client_fingerprint: bytes, cluster_id: str
) -> bytes:
    """What the joiner signs: bound to this server, this nonce, this cluster, and itself."""
    return b"aivailable-join-1\0" + b"\0".join(
        (nonce.hex().encode(), server_fingerprint, client_fingerprint, cluster_id.encode())
    )


def key_transcript(
    server_nonce: bytes,
    client_nonce: bytes,
    server_fingerprint: bytes,
    client_fingerprint: bytes,
    cluster_id: str,
) -> bytes:
    """What both proofs of the join key cover. Raises ValueError unless both nonces have
    NONCE_BYTES: with that and 32-byte fingerprints no two handshakes have the same bytes."""
    if len(server_nonce) != NONCE_BYTES or len(client_nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce of the join handshake has {NONCE_BYTES} bytes")
    return b"".join(
        (server_nonce, client_nonce, server_fingerprint, client_fingerprint, cluster_id.encode())
    )
