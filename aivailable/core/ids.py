"""Names of things: how an id is made from its ingredients and how it is shown.

Pure: randomness and digests come in as arguments.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

NodeId = str
"""SHA-256 of the node's public key (SubjectPublicKeyInfo, DER), base32, lower case: 52 chars."""
ClusterId = str
"""16 random bytes, base32, lower case: 26 chars. Minted once, at founding."""
ReplicaId = str
"""`deployment#generation.number`, unique for the life of the cluster."""
Digest = str
"""SHA-256 of a model file, hex."""
KeyId = str
"""First 8 hex digits of the SHA-256 of an API key: shown, never secret."""
AccountId = str
"""Whom fairness counts: an API key by its KeyId, or an address. "" = from an older version."""

SHORT_CHARS = 8
PROOF_NONCE_CHARS = 64
"""Hex digits of 256 random bits: no answer to a challenge is ever of use again."""
NODE_ID_CHARS = 52
DEPLOYMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}\Z")
"""One grammar for what a request's `model` may be: deployment names and aliases."""


@dataclass(frozen=True, slots=True, order=True)
class CommandId:
    """Makes a command idempotent: `seq` only grows for one proposer, restarts included."""

    proposer: NodeId
    seq: int


def node_id(public_key_der: bytes) -> NodeId:
    """NodeId of a public key in SubjectPublicKeyInfo DER."""
    return _base32(hashlib.sha256(public_key_der).digest())


def cluster_id(random_bytes: bytes) -> ClusterId:
    """ClusterId from 16 random bytes. Raises ValueError for another length."""
    if len(random_bytes) != 16:
        raise ValueError("a cluster id takes 16 random bytes")
    return _base32(random_bytes)


def short(identity: str) -> str:
    """How a NodeId or ClusterId is shown to people."""
    return identity[:SHORT_CHARS]


def key_hash(api_key: str) -> str:
    """What the replicated state keeps of an API key: SHA-256, hex.

    A plain hash suffices because keys are random with 160 bits, never chosen by people.
    """
    return hashlib.sha256(api_key.encode()).hexdigest()


def key_proof(hashed: str, nonce: str, port: int) -> str:
    """What only a node that knows a key's hash can say of a nonce: HMAC-SHA256, hex. `port` is
    where it was asked."""
    text = f"aivailable.proof 1 {nonce} {port}".encode()
    return hmac.new(bytes.fromhex(hashed), text, hashlib.sha256).hexdigest()


def key_id(hashed: str) -> KeyId:
    return hashed[:8]


def replica_id(deployment: str, generation: int, number: int) -> ReplicaId:
    return f"{deployment}#{generation}.{number}"


def standalone_id(deployment: str, generation: int, node: NodeId) -> ReplicaId:
    """A replica that a node runs by itself while there is no quorum."""
    return f"{deployment}#{generation}.island-{short(node)}"


def valid_deployment_name(name: str) -> bool:
    return DEPLOYMENT_NAME.fullmatch(name) is not None


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()
