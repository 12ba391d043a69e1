"""This node's key and certificate, and what can be read from anybody's certificate.

Owns identity.pem in home: a P-256 key and its self-signed certificate, made once, valid from 2000
to 9999 because old boards have dead clocks. It must not know who is a member.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aivailable.advice import UP_NEW_IDENTITY
from aivailable.core.ids import NodeId, node_id, short
from aivailable.errors import ConfigError, SchemaError
from aivailable.peer.home import write_durably

IDENTITY_NAME: Final = "identity.pem"
INSTANCE_BYTES: Final = 8
CERTIFICATE_MAX_BYTES: Final = 1024
"""Ours has about 320; this bounds what others may put into the replicated state."""

_SIGNATURE: Final = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is. `pem_path` holds key and certificate for the TLS library, which reads
    them only from a file."""

    node: NodeId
    certificate: bytes
    """DER."""
    instance_id: str
    """Random at each process start: tells a restart, and a cloned disk."""
    pem_path: Path
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def load_or_create(
        cls, home_dir: Path, token_bytes: Callable[[int], bytes] = os.urandom
    ) -> Identity:
        """Raises ConfigError, with the remedy, when the file is damaged or cannot be used."""
        path = home_dir / IDENTITY_NAME
        try:
            try:
                pem = path.read_bytes()
            except FileNotFoundError:
                pem = _make_pem()
                write_durably(path, pem)
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
        except OSError as error:
            raise ConfigError(
                f"the identity {path} cannot be read or written ({error.strerror}): give this "
                "user the right to it, or choose another home with --home"
            ) from error
        try:
            key = serialization.load_pem_private_key(pem, password=None)
            certificate = x509.load_pem_x509_certificate(pem)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError("not a P-256 key")
            if key.public_key() != certificate.public_key():
                raise ValueError("key and certificate do not belong together")
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"the identity {path} is damaged ({error}): restore it from a backup, or start "
                f"as a new node that keeps its models with {UP_NEW_IDENTITY}"
            ) from error
        return cls(
            node=_node_id_of_key(key.public_key()),
            certificate=certificate.public_bytes(serialization.Encoding.DER),
            instance_id=token_bytes(INSTANCE_BYTES).hex(),
            pem_path=path,
            _key=key,
        )

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate: the same in every cluster."""
        return fingerprint_of(self.certificate)

    def sign(self, data: bytes) -> bytes:
        """ECDSA over SHA-256 (FIPS 186-5), DER."""
        return self._key.sign(data, _SIGNATURE)


def fingerprint_of(certificate: bytes) -> bytes:
    """SHA-256 of a certificate's DER, 32 bytes."""
    return hashlib.sha256(certificate).digest()


def node_id_of(certificate: bytes) -> NodeId:
    """NodeId of a certificate's key. Raises SchemaError unless it is a small P-256 certificate."""
    return _node_id_of_key(_public_key(certificate))


def verify(certificate: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the certificate's key signed `data`. Raises SchemaError like node_id_of."""
    try:
        _public_key(certificate).verify(signature, data, _SIGNATURE)
    except InvalidSignature:
        return False
    return True


def _public_key(certificate: bytes) -> ec.EllipticCurvePublicKey:
    if len(certificate) > CERTIFICATE_MAX_BYTES:
        raise SchemaError(f"a certificate is over {CERTIFICATE_MAX_BYTES} bytes")
    try:
        with warnings.catch_warnings():
            # What the library only warns of (a serial number below 1) is damage to us.
            warnings.simplefilter("error")
            key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, Warning) as error:
        raise SchemaError(f"not a certificate: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SchemaError("a certificate without a P-256 key")
    return key


def _node_id_of_key(key: ec.EllipticCurvePublicKey) -> NodeId:
    return node_id(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def _make_pem() -> bytes:
    """A fresh key and certificate. The subject differs from node to node, because TLS libraries
    look trust anchors up by it; it is short, because seats must fit the join channel's frame."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, short(_node_id_of_key(key.public_key())))]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)
