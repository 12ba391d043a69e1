"""`/cluster/v1/deployments` and `/cluster/v1/fit`: what shall run, and what would come of it.

Owns the ranges of a deployment's fields. Needs an admin key, questions too: they start a dry run
and may name a path of this machine. Its routes are part of `cluster.ClusterApi`.
"""

from __future__ import annotations

from aiohttp import web

from aivailable.core.commands import RemoveDeployment
from aivailable.core.ids import valid_deployment_name
from aivailable.core.records import Where
from aivailable.errors import RequestError
from aivailable.peer.api.auth import require_admin
from aivailable.peer.api.cluster_nodes import asked
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.parameters import Parameters, read_body
from aivailable.peer.service import DeployRequest, Service
from aivailable.wire.schema import from_plain

CONTEXT_MAX_TOKENS = 16 * 1024 * 1024
SLOTS_MAX = 1024
REPLICAS_MAX = 1024
PRIORITY_MAX = 1000
ALIASES_MAX = 16
OPTIONS_MAX = 32
_DEPLOY_FIELDS = frozenset(DeployRequest.__dataclass_fields__)
_WHERE_FIELDS = frozenset(Where.__dataclass_fields__)
_FIT_FIELDS = frozenset({"model", "context", "slots", "options", "engine", "priority", "where"})


class DeploymentsApi:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[web.RouteDef]:
        prefix = "/cluster/v1"
        return [
            web.post(f"{prefix}/deployments", self.deploy),
            web.delete(f"{prefix}/deployments/{{name:.+}}", self.undeploy),
            web.post(f"{prefix}/fit", self.fit),
        ]

    async def deploy(self, request: web.Request) -> web.Response:
        """`?dry_run=1`: what it would come to, with nothing changed."""
        call = require_admin(request)
        wanted = _deploy_request(await read_body(request))
        if asked(request, "dry_run"):
            return json_answer(await self._service.preview(wanted))
        deployment = await self._service.deploy(wanted, actor=call.actor)
        return json_answer(deployment, status=201)

    async def undeploy(self, request: web.Request) -> web.Response:
        call = require_admin(request)
        name = request.match_info["name"]
        if not valid_deployment_name(name):
            raise RequestError(400, "invalid_value", f"{name!r} cannot be a deployment's name")
        await self._service.propose(
            RemoveDeployment(name), actor=call.actor, reason=f"api {call.request_id}"
        )
        return json_answer({"removed": name})

    async def fit(self, request: web.Request) -> web.Response:
        """A verdict for each device; nothing is changed."""
        require_admin(request)
        wanted = _deploy_request(await read_body(request), _FIT_FIELDS)
        return json_answer(await self._service.fit(wanted))


def _deploy_request(body: Parameters, fields: frozenset[str] = _DEPLOY_FIELDS) -> DeployRequest:
    """Ranges only: whether it fits is the planner's to say. Raises RequestError 400."""
    plain = body.plain()
    for key in sorted(plain):
        if key not in fields:
            raise ParameterError(
                key, f"'{key}' is unknown to this version", code="unknown_parameter"
            )
    body.required_text("model", chars_max=4096)
    if plain.get("context") == "auto":
        plain["context"] = None
        plain.setdefault("context_max", 0)
    else:
        body.integer("context", 1, CONTEXT_MAX_TOKENS)
    body.integer("context_max", 0, CONTEXT_MAX_TOKENS)
    if plain.get("slots") == "auto":
        plain["slots"] = None
        plain.setdefault("slots_max", 0)
    else:
        body.integer("slots", 1, SLOTS_MAX)
    body.integer("slots_max", 0, SLOTS_MAX)
    low = body.integer("replicas_min", 0, REPLICAS_MAX)
    high = body.integer("replicas_max", 1, REPLICAS_MAX)
    if high is not None and high < (1 if low is None else low):
        raise ParameterError("replicas_max", "'replicas_max' is less than 'replicas_min'")
    body.integer("copies", 1, REPLICAS_MAX)
    body.integer("idle_ttl_s", 0)
    body.integer("priority", -PRIORITY_MAX, PRIORITY_MAX)
    name = body.text("name")
    aliases = body.items("aliases") or ()
    if len(aliases) > ALIASES_MAX:
        raise ParameterError("aliases", f"more than {ALIASES_MAX} aliases")
    for param, one in (("name", name), *(("aliases", alias) for alias in aliases)):
        if one is not None and not (isinstance(one, str) and valid_deployment_name(one)):
            raise ParameterError(
                param,
                f"{one!r} cannot be a name: letters, digits and . _ : / @ - are, 128 at most",
            )
    options = body.object("options")
    if options is not None and len(options.plain()) > OPTIONS_MAX:
        raise ParameterError("options", f"more than {OPTIONS_MAX} options")
    where = body.object("where")
    for key in sorted(where.plain()) if where is not None else ():
        if key not in _WHERE_FIELDS:
            raise ParameterError(
                f"where.{key}",
                f"'where.{key}' is unknown; there are: {', '.join(sorted(_WHERE_FIELDS))}",
                code="unknown_parameter",
            )
    return from_plain(DeployRequest, plain, "body")
