"""Who asks: API keys, and what this machine may do without one.

Owns the decision for one request; it must not answer it. Keys are compared by looking up their
SHA-256 (`ApiKeys.find_key`), so that no timing tells how much of a guess was right.

Rules:
  * a key that is wrong or revoked is 401, from loopback too: it is never quietly downgraded;
  * without a key, this machine is `user`; anywhere else is 401. `source` says what counts as this
    machine, `web_pages` and `rules` which pages and names;
  * `require_auth=False` makes everyone admin and a key only a label (clients that cannot send none
    may then send any). Foreign pages and names are refused all the same;
  * who asks is also the account that fairness counts: the key by its id, never by its text;
    without one the client's address.
"""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

from aivailable.advice import KEY_LIST
from aivailable.core.ids import NodeId
from aivailable.core.state.records import ApiKey, Scope
from aivailable.errors import RequestError
from aivailable.peer.api.accounting import RequestRecord, record_of
from aivailable.peer.api.auth.rules import Asker, AuthRules, refusal
from aivailable.peer.api.auth.source import source_of
from aivailable.peer.api.auth.web_pages import host_kind, origin_kind
from aivailable.peer.service import ApiKeys

KEY_MAX_CHARS = 256


def authenticate(
    request: web.Request,
    api_keys: ApiKeys,
    node: NodeId,
    *,
    rules: AuthRules,
    open_paths: Collection[str],
) -> None:
    """Fills in the record's `key`, `account` and `admin`. `open_paths` are answered to
    everyone. Raises RequestError 401, 403 or 415."""
    record, headers = record_of(request), request.headers
    source = source_of(request.remote or "", headers, rules.trusted_proxies)
    record.account = source.account(node)
    presented = _presented_key(request)
    if presented is not None:
        record.key = _known(api_keys, presented, require_auth=rules.require_auth)
    if record.key is None and request.path in open_paths:
        return
    hosts = headers.getall("Host", [])
    asker = Asker(
        keyed=record.key is not None,
        local=source.local,
        host=host_kind(hosts, rules.hosts),
        origin=origin_kind(headers.getall("Origin", []), hosts, rules.origins),
        untyped_body=_has_body(request) and "Content-Type" not in headers,
    )
    refused = refusal(asker, require_auth=rules.require_auth)
    if refused is not None:
        raise refused
    record.admin = not rules.require_auth
    if record.key is not None:
        record.account = f"key:{record.key.key_id}"
        admin = record.key.scope is Scope.ADMIN and api_keys.believed(record.key)
        record.admin = admin or not rules.require_auth


def _has_body(request: web.Request) -> bool:
    headers = request.headers
    return "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"


def require_admin(request: web.Request) -> RequestRecord:
    """For routes that change the cluster. Raises RequestError 403."""
    record = record_of(request)
    if record.admin:
        return record
    if record.key is None:
        who = "no key was sent"
    elif record.key.scope is Scope.ADMIN:
        who = (
            f"this node has been cut off from the cluster for long, and key {record.key.key_id} "
            "may be revoked: use the node's own key, as commands on its machine do"
        )
    else:
        who = f"key {record.key.key_id} has scope user"
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
