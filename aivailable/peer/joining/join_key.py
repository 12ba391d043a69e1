"""The join key: its text as people carry it, and what proves to the other side that we hold it.

Owns the format of `aivailable invite` and the proofs of both directions; must not see a socket or
decide who is admitted.

Why a proof may be shown to anybody, also to a fake server: it is HMAC-SHA256 under a key of at
least 100 random bits over two fresh nonces. It tells nothing that helps to guess the key (2^100
trials, offline or not), and it is good for one handshake between two certificates only: the
label makes it useless in the other direction, the fingerprints at another server, the nonces
another time. So no slow password hash is needed, and none would help.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Final

from aivailable.advice import INVITE

JOIN_KEY_BYTES: Final = 16
"""Random bytes that go into a printed key; 125 of the 128 bits are shown."""
PREFIX: Final = "join"
GROUP_CHARS: Final = 5
GROUPS: Final = 5
"""Groups of random characters; one group of checksum follows."""
DISTINCT_CHARS_MIN: Final = 6
"""Patterns like `aaaa…` or `0101…` have fewer; of random keys of 100 bits less than one in 10^6
(31 decimal digits with at most five different ones: 252 / 2^31)."""

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"
_PRINTED: Final = re.compile(
    f"{PREFIX}((?:-[{_ALPHABET}]{{{GROUP_CHARS}}}){{{GROUPS}}})-([{_ALPHABET}]{{{GROUP_CHARS}}})"
)
_DERIVE_LABEL: Final = b"aivailable join key 1"
_CHECK_LABEL: Final = b"aivailable join key checksum 1\0"


@dataclass(frozen=True, slots=True)
class JoinKey:
    """A key that can prove itself. Holds a derived secret, never the text."""

    _secret: bytes = field(repr=False)

    @classmethod
    def of(cls, text: str) -> JoinKey:
        """From what the operator gave. Raises ValueError, with the remedy, for a mistyped key of
        `aivailable invite` and for a text that no random source would make."""
        canonical = _canonical(text)
        # HKDF-Extract of RFC 5869 §2.2: a key for this one use, from however long a text.
        return cls(hmac.digest(_DERIVE_LABEL, canonical.encode(), hashlib.sha256))

    def client_proof(self, transcript: bytes) -> bytes:
        """32 bytes: the joiner holds the key."""
        return hmac.digest(self._secret, b"client\0" + transcript, hashlib.sha256)

    def server_proof(self, transcript: bytes) -> bytes:
        """32 bytes: the cluster holds the key."""
        return hmac.digest(self._secret, b"server\0" + transcript, hashlib.sha256)

    def is_client_proof(self, proof: bytes, transcript: bytes) -> bool:
        """In constant time."""
        return hmac.compare_digest(proof, self.client_proof(transcript))

    def is_server_proof(self, proof: bytes, transcript: bytes) -> bool:
        """In constant time."""
        return hmac.compare_digest(proof, self.server_proof(transcript))


def make_join_key(random_bytes: bytes) -> str:
    """The printed form of JOIN_KEY_BYTES random bytes: `join-xxxxx-…`, base32, the last group a
    checksum. Raises ValueError for another length."""
    if len(random_bytes) != JOIN_KEY_BYTES:
        raise ValueError(f"a join key takes {JOIN_KEY_BYTES} random bytes")
    body = base64.b32encode(random_bytes).decode().lower()[: GROUPS * GROUP_CHARS]
    groups = [body[start : start + GROUP_CHARS] for start in range(0, len(body), GROUP_CHARS)]
    return "-".join((PREFIX, *groups, _checksum(body)))


def _canonical(text: str) -> str:
    """One spelling of a key. Raises ValueError."""
    text = text.strip()
    if text.lower().startswith(f"{PREFIX}-"):
        match = _PRINTED.fullmatch(text.lower())
        if match is None:
            raise ValueError(
                f"this join key is incomplete or mistyped: {INVITE} prints "
                f"`{PREFIX}-` and {GROUPS + 1} groups of {GROUP_CHARS} of the characters "
                "a–z and 2–7"
            )
        body = match[1].replace("-", "")
        if match[2] != _checksum(body):
            raise ValueError(
                "this join key is mistyped (its last group does not fit the others): copy it "
                f"again from where {INVITE} printed it"
            )
        return match[0]
    if len(frozenset(text)) < DISTINCT_CHARS_MIN:
        raise ValueError(f"this join key is a pattern, not random: use one that {INVITE} prints")
    return text


def _checksum(body: str) -> str:
    digest = hashlib.sha256(_CHECK_LABEL + body.encode()).digest()
    return base64.b32encode(digest).decode().lower()[:GROUP_CHARS]
