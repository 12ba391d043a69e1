"""What the operator has set, and the table that decides on a request.

Owns `refusal`: pure, so that the whole matrix of keys, origins, hosts and addresses is a test.
"""

from __future__ import annotations

from dataclasses import dataclass

from aivailable.advice import KEY_CREATE
from aivailable.errors import RequestError
from aivailable.peer.api.auth.source import Network
from aivailable.peer.api.auth.web_pages import HostKind, OriginKind


@dataclass(frozen=True, slots=True)
class AuthRules:
    """The settings of `config` that say who may ask."""

    require_auth: bool = True
    trusted_proxies: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Asker:
    """What is known of who sends one request."""

    keyed: bool
    """With a key of the cluster."""
    local: bool
    """From this machine itself."""
    host: HostKind
    origin: OriginKind
    untyped_body: bool = False
    """With a body that does not say of what type it is."""


def refusal(asker: Asker, *, require_auth: bool) -> RequestError | None:
    """Why the request is not answered; None when it is.

    1. A key of the cluster answers for page and name: a page that has it was given it.
    2. Without one, only this machine, by a name of its own, is a user. `--no-auth` lets every
       address in, but no name that a stranger may have pointed here.
    3. A page of another origin needs a key, or the operator's word.
    4. What a page of another origin sends says its type: else a browser would not ask us first.
    """
    if not asker.keyed:  # 1
        refused = _by_place(asker) if require_auth else _by_name(asker)  # 2
        if refused is None and asker.origin is OriginKind.FOREIGN:  # 3
            refused = RequestError(
                403,
                "origin_not_allowed",
                "a web page of another origin needs an API key; or list its origin under "
                "'origins' in config.toml of this node",
            )
        if refused is not None:
            return refused
    if asker.untyped_body and asker.origin in (OriginKind.FOREIGN, OriginKind.LISTED):  # 4
        return RequestError(
            415, "content_type_needed", "a body from a web page needs 'Content-Type'"
        )
    return None


def _by_place(asker: Asker) -> RequestError | None:
    if asker.local and asker.host is HostKind.OWN:
        return None
    why = "an API key is needed"
    if asker.local:
        why += (
            ": without one this machine is answered by the names localhost and 127.0.0.1, and by "
            "those under 'hosts' in config.toml"
        )
    return RequestError(
        401,
        "missing_api_key",
        f"{why}; send 'Authorization: Bearer KEY'; {KEY_CREATE} on a member makes one",
    )


def _by_name(asker: Asker) -> RequestError | None:
    if asker.host is not HostKind.NAME:
        return None
    return RequestError(
        403,
        "host_not_allowed",
        "without an API key this node is asked by an IP address or localhost; list other names "
        "under 'hosts' in config.toml of this node",
    )
