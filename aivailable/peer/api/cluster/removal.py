"""`/cluster/v1/members/NODE` and `/cluster/v1/recover`: who is out for good, and which keys end.

Owns how a key's record is shown, too. Needs an admin key.
"""

from __future__ import annotations

from aiohttp import web

from aivailable.core.ids import NodeId
from aivailable.core.state.records import ApiKey
from aivailable.peer.api.accounting import record_of
from aivailable.peer.api.cluster.nodes import asked, find_member, several
from aivailable.peer.api.description.answer_types import (
    KeyShown,
    KeysThrough,
    KeyThrough,
    MemberRemoved,
    RecoveredCluster,
)
from aivailable.peer.api.description.fields import Fields, String
from aivailable.peer.api.description.routes import Access, Answer, Route
from aivailable.peer.api.documents import json_answer
from aivailable.peer.service import ApiKeys, Members, Observation

KEYS_QUERY: Fields = {
    "keep_key": String(text="id of an admin key that stays; repeatable"),
    "revoke_key": String(text="id of a key that ends, too; repeatable"),
}
RECOVER_QUERY: Fields = {
    "with": String(text="a member that is let in again; repeatable; without it, all are"),
    "alone": String(words=("1", "true"), text="nobody is let in again"),
    "keep_key": String(text="id of an admin key that stays; repeatable"),
}


class RemovalApi:
    """The handlers."""

    def __init__(self, observation: Observation, api_keys: ApiKeys, members: Members) -> None:
        self._observation = observation
        self._api_keys = api_keys
        self._members = members

    def routes(self) -> list[Route]:
        prefix = "/cluster/v1"
        return [
            Route(
                "DELETE",
                f"{prefix}/members/{{node}}",
                self.remove,
                "Take a member out for good",
                (Answer(MemberRemoved, "it is a member no longer"),),
                access=Access.ADMIN,
                query=KEYS_QUERY,
                errors=(400, 409),
            ),
            Route(
                "GET",
                f"{prefix}/members/{{node}}/keys",
                self.keys_through,
                "Keys that came through a member, and which of them end when it is removed",
                (Answer(KeysThrough, "nothing is changed"),),
                access=Access.ADMIN,
                query=KEYS_QUERY,
                errors=(400,),
            ),
            Route(
                "POST",
                f"{prefix}/recover",
                self.recover,
                "Found the cluster anew from this node's copy",
                (Answer(RecoveredCluster, "the new cluster"),),
                access=Access.ADMIN,
                query=RECOVER_QUERY,
                errors=(404, 409),
            ),
        ]

    async def remove(self, request: web.Request) -> web.Response:
        """Take a member out by its id, a beginning of it, or its name."""
        record, node = record_of(request), self._named(request)
        found = await self._members.remove(
            node,
            actor=record.actor,
            keep_keys=several(request, "keep_key"),
            end_keys=several(request, "revoke_key"),
        )
        removed: MemberRemoved = {
            "removed": node,
            "ended_keys": list(found.ends),
            "kept_keys": list(found.stays),
        }
        return json_answer(removed)

    async def keys_through(self, request: web.Request) -> web.Response:
        """What `remove` with the same arguments does to keys."""
        node, all_keys = self._named(request), self._api_keys.keys()
        keys = {key.key_id: key for key in all_keys}
        found = self._members.removal(
            node, keep_keys=several(request, "keep_key"), end_keys=several(request, "revoke_key")
        )
        shown: list[KeyThrough] = [
            {**shown_key(keys[key]), "ends": key in found.ends}
            for key in sorted((*found.ends, *found.stays), key=lambda one: age(keys[one]))
        ]
        page: KeysThrough = {"node": node, "keys": shown, "problem": found.problem}
        return json_answer(page)

    def _named(self, request: web.Request) -> NodeId:
        return find_member(self._observation.status(), request.match_info["node"])

    async def recover(self, request: web.Request) -> web.Response:
        """Found the cluster anew from this node's copy; says what was given up."""
        record = record_of(request)
        expected = None
        if asked(request, "alone") or several(request, "with"):
            status = self._observation.status()
            expected = tuple(find_member(status, name) for name in several(request, "with"))
        keep_keys = several(request, "keep_key")
        result = await self._members.recover(
            actor=record.actor, expected=expected, keep_keys=keep_keys
        )
        cluster = result.state.cluster
        founded: RecoveredCluster = {
            "cluster_id": "" if cluster is None else cluster.cluster_id,
            "gone": list(result.gone),
            "awaited": list(result.awaited),
            "ended_keys": list(result.ended_keys),
            "lost_models": list(result.lost_models),
        }
        return json_answer(founded)


def shown_key(key: ApiKey) -> KeyShown:
    """A key's record without its hash."""
    return {
        "key_id": key.key_id,
        "scope": key.scope.value,
        "label": key.label,
        "created_at_ms": key.created_at_ms,
        "revoked": key.revoked,
        "node": key.node,
        "via": key.via,
        "by": key.by,
    }


def age(key: ApiKey) -> tuple[int, str]:
    """Oldest first."""
    return key.created_at_ms, key.key_id
