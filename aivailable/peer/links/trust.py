"""Who may speak to us: the TLS contexts made from the member list.

Owns every `ssl` context of the process. Links and weights need a certificate of the current list;
the join channel (SNI `join`) needs none. It must not open sockets.

The verify mode of a TLS session is the outer context's, whichever context SNI picks (OpenSSL's
SSL_set_SSL_CTX changes certificate and trust anchors, not the mode: measured). So the outer
context asks for a certificate without insisting, and `peer_node` is what decides: every
connection that is not a join is cut unless it names a member.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from aivailable.core.ids import NodeId
from aivailable.errors import ConfigError, SchemaError
from aivailable.peer.links.identity import Identity, node_id_of

SNI_LINK: Final = "link"
SNI_WEIGHTS: Final = "weights"
SNI_JOIN: Final = "join"

# X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h: a board whose clock starts in 1970 must not
# find every certificate "not yet valid". Identity is the key; expiry plays no part.
_NO_CHECK_TIME: Final = 0x200000

log = logging.getLogger(__name__)


class Trust:
    """The TLS contexts of this node for the member list of the moment."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._members: dict[NodeId, bytes] = {}
        self._accept = self._context(ssl.PROTOCOL_TLS_SERVER, ())
        self._dial = self._context(ssl.PROTOCOL_TLS_CLIENT, ())
        self._join_accept = self._context(ssl.PROTOCOL_TLS_SERVER, ())
        self._join_accept.verify_mode = ssl.CERT_NONE
        self.server_context = self._context(ssl.PROTOCOL_TLS_SERVER, ())
        """For the listening socket. Stays the same object while the list changes."""
        self.server_context.verify_mode = ssl.CERT_OPTIONAL
        self.server_context.sni_callback = self._choose
        self.join_client_context = join_context()

    @property
    def client_context(self) -> ssl.SSLContext:
        """For dialling a member; the caller still compares `peer_node` with whom it wants."""
        return self._dial

    def set_members(self, certificates: Iterable[bytes]) -> None:
        """Replace the list (DER). A certificate that is none is left out and logged."""
        members: dict[NodeId, bytes] = {}
        for certificate in certificates:
            try:
                members[node_id_of(certificate)] = certificate
            except SchemaError as error:
                log.warning("a member's certificate is unusable, it cannot link: %s", error)
        if members == self._members:
            return
        self._members = members
        self._accept = self._context(ssl.PROTOCOL_TLS_SERVER, members.values())
        self._dial = self._context(ssl.PROTOCOL_TLS_CLIENT, members.values())

    def is_join(self, transport: asyncio.BaseTransport) -> bool:
        """Whether this accepted connection asked for the join channel."""
        session = transport.get_extra_info("ssl_object")
        return session is not None and session.context is self._join_accept

    def peer_node(self, transport: asyncio.BaseTransport) -> NodeId | None:
        """The member at the other end, by its certificate; None when it is none (any more)."""
        certificate = peer_certificate(transport)
        if certificate is None:
            return None
        try:
            node = node_id_of(certificate)
        except SchemaError:
            return None
        return node if node in self._members else None

    def _choose(
        self, session: ssl.SSLObject, name: str | None, _outer: ssl.SSLContext
    ) -> ssl.AlertDescription | None:
        if name == SNI_JOIN:
            session.context = self._join_accept
        elif name in (SNI_LINK, SNI_WEIGHTS):
            session.context = self._accept
        else:
            return ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        return None

    def _context(self, protocol: int, anchors: Iterable[bytes]) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags = ssl.VerifyFlags(context.verify_flags | _NO_CHECK_TIME)
        context.load_cert_chain(self._identity.pem_path)
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            # No resumption: each connection meets the list of the moment.
            context.num_tickets = 0
        for certificate in anchors:
            try:
                context.load_verify_locations(cadata=certificate)
            except ssl.SSLError as error:
                log.warning("TLS refuses a member's certificate, it cannot link: %s", error)
        return context


def join_context() -> ssl.SSLContext:
    """A stranger's side of the join channel. Trusts anybody and shows no certificate: the join
    handshake itself binds the server's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def peer_certificate(transport: asyncio.BaseTransport) -> bytes | None:
    """DER of what the other end presented, whether trusted or not."""
    session = transport.get_extra_info("ssl_object")
    certificate = None if session is None else session.getpeercert(binary_form=True)
    return certificate if isinstance(certificate, bytes) else None


def api_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """TLS for the HTTP API from the operator's PEM files; None without them.

    Raises ConfigError when they cannot be used.
    """
    if certificate is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the API's certificate {certificate} and key {key} cannot be used: {error}"
        ) from error
    return context
