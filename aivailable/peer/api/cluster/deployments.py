"""`/cluster/v1/deployments` and `/cluster/v1/fit`: what shall run, and what would come of it.

Owns the ranges of a deployment's fields. Needs an admin key, questions too: they start a dry run
and may name a path of this machine.

Not to be confused with `core.state.changes.deployments`, which applies the command.
"""

from __future__ import annotations

from aiohttp import web

from aivailable.core.ids import DEPLOYMENT_NAME, valid_deployment_name
from aivailable.core.serving.status import FitStatus, PlanStatus
from aivailable.core.state.commands import RemoveDeployment
from aivailable.core.state.records import Deployment
from aivailable.errors import RequestError
from aivailable.peer.api.accounting import record_of
from aivailable.peer.api.bodies.reading import read_body
from aivailable.peer.api.cluster.nodes import asked
from aivailable.peer.api.description.answer_types import Removed
from aivailable.peer.api.description.fields import (
    AnyOf,
    Fields,
    Flag,
    Integer,
    Items,
    Object,
    Only,
    String,
)
from aivailable.peer.api.description.routes import Access, Answer, Body, Route
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.parameters import RequestParameters
from aivailable.peer.service import Changes, Deployments, DeployRequest
from aivailable.wire.schema import from_plain

CONTEXT_MAX_TOKENS = 16 * 1024 * 1024
SLOTS_MAX = 1024
REPLICAS_MAX = 1024
PRIORITY_MAX = 1000
ALIASES_MAX = 16
OPTIONS_MAX = 32
MODEL_MAX_CHARS = 4096
SHOWN_CHARS = 160
"""Of what a client sent, in the words that refuse it."""
_TEXTS = Items(String(), null=False)
_NAME = String(pattern="^" + DEPLOYMENT_NAME.pattern.replace(r"\Z", "$"))
WHERE: Fields = {
    "nodes": Items(String(), null=False, text="patterns of names, or ids"),
    "not_nodes": _TEXTS,
    "gpus": Items(String(), null=False, text="patterns of names, or ids"),
    "vendors": _TEXTS,
    "backends": _TEXTS,
    "architecture_min": String(null=False, text="like 7.5, or gfx906"),
    "beside": Items(String(), null=False, text="deployments whose hosts it shares"),
    "apart_from": Items(String(), null=False, text="deployments whose hosts it keeps off"),
}
DEPLOY: Fields = {
    "model": String(
        MODEL_MAX_CHARS, required=True, text="a name, a digest, or a path on this node"
    ),
    "name": _NAME,
    "context": AnyOf(
        (Integer(1, CONTEXT_MAX_TOKENS), Only(("auto",))),
        text="tokens per slot; auto: as many as fit",
    ),
    "context_max": Integer(
        0, CONTEXT_MAX_TOKENS, text="as many more as fit at the place; 0: as trained"
    ),
    "slots": AnyOf(
        (Integer(1, SLOTS_MAX), Only(("auto",))),
        text="requests decoded at a time; auto: as many as fit",
    ),
    "slots_max": Integer(
        0, SLOTS_MAX, text="as many more as fit at the place; 0: as a worker takes"
    ),
    "replicas_min": Integer(0, REPLICAS_MAX, default=1),
    "replicas_max": Integer(1, REPLICAS_MAX),
    "copies": Integer(1, REPLICAS_MAX, text="of the model's file"),
    "pin": Flag(default=False),
    "priority": Integer(-PRIORITY_MAX, PRIORITY_MAX, default=0),
    "idle_ttl_s": Integer(0, text="replicas beyond replicas_min go after being idle this long"),
    "engine": String(default="llama"),
    "options": Object(values=String(), members_max=OPTIONS_MAX, text="of the engine"),
    "aliases": Items(_NAME, items_max=ALIASES_MAX),
    "where": Object(WHERE, closed=True, text="where replicas may go"),
    "replace": Flag(default=True, text="false: refuse to change a deployment that exists"),
}
"""The fields of `DeployRequest`."""
FIT: Fields = {
    name: DEPLOY[name]
    for name in ("model", "context", "slots", "options", "engine", "priority", "where")
}
DEPLOY_QUERY: Fields = {
    "dry_run": String(words=("1", "true"), text="say what it would come to, change nothing")
}


class DeploymentsApi:
    """The handlers."""

    def __init__(self, deployments: Deployments, changes: Changes) -> None:
        self._deployments = deployments
        self._changes = changes

    def routes(self) -> list[Route]:
        prefix = "/cluster/v1"
        return [
            Route(
                "POST",
                f"{prefix}/deployments",
                self.deploy,
                "Deploy a model, or change a deployment",
                (
                    Answer(Deployment, "it shall run", status=201),
                    Answer(PlanStatus, "with dry_run: what it would come to"),
                ),
                access=Access.ADMIN,
                body=Body("DeployRequest", Object(DEPLOY, closed=True)),
                query=DEPLOY_QUERY,
                errors=(404, 409),
            ),
            Route(
                "DELETE",
                f"{prefix}/deployments/{{name:.+}}",
                self.undeploy,
                "Remove a deployment",
                (Answer(Removed, "it is removed"),),
                access=Access.ADMIN,
                errors=(409,),
            ),
            Route(
                "POST",
                f"{prefix}/fit",
                self.fit,
                "Where a model fits now, and what would make it fit",
                (Answer(FitStatus, "a verdict for each device; nothing is changed"),),
                access=Access.ADMIN,
                body=Body("FitRequest", Object(FIT, closed=True)),
                errors=(404, 409),
            ),
        ]

    async def deploy(self, request: web.Request) -> web.Response:
        """`?dry_run=1`: what it would come to, with nothing changed."""
        record = record_of(request)
        wanted = _deploy_request(await read_body(request), DEPLOY)
        if asked(request, "dry_run"):
            return json_answer(await self._deployments.preview(wanted))
        deployment = await self._deployments.deploy(wanted, actor=record.actor)
        return json_answer(deployment, status=201)

    async def undeploy(self, request: web.Request) -> web.Response:
        record = record_of(request)
        name = request.match_info["name"]
        if not valid_deployment_name(name):
            raise RequestError(400, "invalid_value", f"{name!r} cannot be a deployment's name")
        await self._changes.propose(
            RemoveDeployment(name), actor=record.actor, reason=f"api {record.request_id}"
        )
        removed: Removed = {"removed": name}
        return json_answer(removed)

    async def fit(self, request: web.Request) -> web.Response:
        """A verdict for each device; nothing is changed."""
        wanted = _deploy_request(await read_body(request), FIT)
        return json_answer(await self._deployments.fit(wanted))


def _deploy_request(given: RequestParameters, fields: Fields) -> DeployRequest:
    """Ranges only: whether it fits is the planner's to say. Raises RequestError 400."""
    # All fields are read: those that the table of /fit lacks are refused here, so never given.
    body, plain = given.declared(DEPLOY), given.plain()
    for key in sorted(plain):
        if key not in fields:
            shown = key[:SHOWN_CHARS]
            raise ParameterError(
                shown, f"'{shown}' is unknown to this version", code="unknown_parameter"
            )
    body.required_text("model")
    if plain.get("context") == "auto":
        plain["context"] = None
        plain.setdefault("context_max", 0)
    else:
        body.integer("context")
    body.integer("context_max")
    if plain.get("slots") == "auto":
        plain["slots"] = None
        plain.setdefault("slots_max", 0)
    else:
        body.integer("slots")
    body.integer("slots_max")
    low = body.integer("replicas_min")
    high = body.integer("replicas_max")
    if high is not None and high < (1 if low is None else low):
        raise ParameterError("replicas_max", "'replicas_max' is less than 'replicas_min'")
    body.integer("copies")
    body.integer("idle_ttl_s")
    body.integer("priority")
    name = body.text("name")
    aliases = body.items("aliases") or ()
    if len(aliases) > ALIASES_MAX:
        raise ParameterError("aliases", f"more than {ALIASES_MAX} aliases")
    for param, one in (("name", name), *(("aliases", alias) for alias in aliases)):
        if one is not None and not (isinstance(one, str) and valid_deployment_name(one)):
            raise ParameterError(
                param,
                f"{repr(one)[:SHOWN_CHARS]} cannot be a name: letters, digits and . _ : / @ - are, "
                "128 at most",
            )
    options = body.object("options")
    if options is not None and len(options.plain()) > OPTIONS_MAX:
        raise ParameterError("options", f"more than {OPTIONS_MAX} options")
    where = body.object("where")
    for key in sorted(where.plain()) if where is not None else ():
        if key not in WHERE:
            shown = key[:SHOWN_CHARS]
            raise ParameterError(
                f"where.{shown}",
                f"'where.{shown}' is unknown; there are: {', '.join(sorted(WHERE))}",
                code="unknown_parameter",
            )
    return from_plain(DeployRequest, plain, "body")
