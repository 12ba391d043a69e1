"""Which deployment a client means by the name of a model.

Owns the lookup and its refusal; it must not route.

Not to be confused with `core.state.changes.models`, the catalogue in the state.
"""

from __future__ import annotations

from aivailable.advice import DEPLOY
from aivailable.core.state.records import Deployment
from aivailable.errors import RequestError
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.service import Observation

RETRY_AFTER_S = 3
MODELS_NAMED_MAX = 20
"""How many existing models a refusal of an unknown one lists."""


def find_deployment(observation: Observation, name: str) -> Deployment:
    """A deployment's name first, then an alias. Raises RequestError 404, or 503 while this node
    cannot know."""
    deployments = observation.deployments()
    for one in deployments:
        if one.name == name:
            return one
    for one in deployments:
        if name in one.aliases:
            return one
    raise unknown_model(observation, name)


def unknown_model(observation: Observation, name: str) -> RequestError:
    ready, reason = observation.ready()
    if not ready:
        return RequestError(
            503,
            "not_ready",
            f"this node cannot answer yet: {reason}",
            retry_after_s=RETRY_AFTER_S,
        )
    names = [one.name for one in observation.deployments()]
    if not names:
        return _not_found(
            f"there is no model {name!r}: nothing is deployed yet; {DEPLOY} on a member deploys one"
        )
    more = ", …" if len(names) > MODELS_NAMED_MAX else ""
    known = ", ".join(names[:MODELS_NAMED_MAX])
    return _not_found(f"there is no model {name!r}; deployed are: {known}{more}")


def _not_found(message: str) -> ParameterError:
    return ParameterError("model", message, code="model_not_found", status=404)
