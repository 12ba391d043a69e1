"""Who asks: API keys, what loopback may do without one, and web pages that must not ask at all.

Owns the decision for one request; it must not answer it. Keys are compared by looking up their
SHA-256 (`ApiKeys.find_key`), so that no timing tells how much of a guess was right.

Rules:
  * a key that is wrong or revoked is 401, from loopback too: it is never quietly downgraded;
  * without a key, loopback is `user`; anywhere else is 401; `require_auth=False` makes everyone
    admin and a key only a label (clients that cannot send none may then send any);
  * a proxy's forwarding header says that the client is not on this machine: it needs a key;
  * who asks is also the account that fairness counts: the key by its id, never by its text; without
    one the client's address, of IPv6 the network (a machine has 2^64 addresses in it); on loopback
    this node, whose people are not those of another node's loopback;
  * without a key, Host must be an IP literal or localhost (DNS rebinding) and Origin, which only
    browsers send, must be the same host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import web

from aivailable.advice import KEY_CREATE, KEY_LIST
from aivailable.core.ids import AccountId, NodeId, short
from aivailable.core.state.records import ApiKey, Scope
from aivailable.errors import RequestError
from aivailable.peer.api.accounting import RequestRecord, record_of
from aivailable.peer.service import ApiKeys

KEY_MAX_CHARS = 256
ACCOUNT_IPV6_BITS = 64
"""Addresses of one network are one account."""
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")


def authenticate(
    request: web.Request,
    api_keys: ApiKeys,
    node: NodeId,
    *,
    require_auth: bool,
    open_paths: Collection[str],
) -> None:
    """Fills in the record's `key`, `account` and `admin`. `open_paths` are answered to
    everyone. Raises RequestError 401 or 403."""
    record = record_of(request)
    record.account = account_of_address(request.remote or "", node)
    presented = _presented_key(request)
    if presented is not None:
        record.key = _known(api_keys, presented, require_auth=require_auth)
        if record.key is not None:
            record.account = f"key:{record.key.key_id}"
            record.admin = record.key.scope is Scope.ADMIN or not require_auth
            return
    if request.path in open_paths:
        return
    local = _is_loopback(request)
    if require_auth and not local:
        raise RequestError(
            401,
            "missing_api_key",
            "an API key is needed: send 'Authorization: Bearer KEY'; "
            f"{KEY_CREATE} on a member makes one",
        )
    _refuse_web_pages(request, check_host=local)
    record.admin = not require_auth


def account_of_address(remote: str, node: NodeId) -> AccountId:
    """Whom a client without a key is counted for."""
    address = _address(remote)
    if address is None or address.is_loopback:
        return f"local:{short(node)}"
    if isinstance(address, ipaddress.IPv6Address) and not address.is_link_local:
        network = ipaddress.ip_network((address, ACCOUNT_IPV6_BITS), strict=False)
        return f"address:{network}"
    return f"address:{address}"


def require_admin(request: web.Request) -> RequestRecord:
    """For routes that change the cluster. Raises RequestError 403."""
    record = record_of(request)
    if record.admin:
        return record
    who = f"key {record.key.key_id} has scope user" if record.key is not None else "no key was sent"
    raise RequestError(
        403, "admin_required", f"this changes the cluster and needs an admin key, but {who}"
    )


def _presented_key(request: web.Request) -> str | None:
    header = request.headers.get("Authorization")
    if header is None:
        return None
    scheme, _, key = header.partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not 0 < len(key) <= KEY_MAX_CHARS or not key.isascii():
        raise RequestError(401, "invalid_api_key", "the Authorization header must be 'Bearer KEY'")
    return key


def _known(api_keys: ApiKeys, presented: str, *, require_auth: bool) -> ApiKey | None:
    key = api_keys.find_key(presented)
    if key is None and require_auth:
        raise RequestError(
            401,
            "invalid_api_key",
            "this API key is unknown to the cluster or revoked; "
            f"{KEY_LIST} on a member shows the valid ones",
        )
    return key


def _is_loopback(request: web.Request) -> bool:
    if any(name in request.headers for name in _FORWARDED):
        return False
    address = _address(request.remote or "")
    return address is not None and address.is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _refuse_web_pages(request: web.Request, *, check_host: bool) -> None:
    host = request.headers.get("Host", "")
    if check_host and host and not _is_literal_host(host):
        raise RequestError(
            403,
            "host_not_allowed",
            f"without an API key this node answers on localhost or its IP address, not on {host!r}",
        )
    origin = request.headers.get("Origin")
    if origin is not None and (not host or urlsplit(origin).netloc.lower() != host.lower()):
        raise RequestError(
            403, "origin_not_allowed", "a web page of another origin needs an API key"
        )


def _is_literal_host(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower() in ("localhost", "localhost.") or _address(name) is not None
