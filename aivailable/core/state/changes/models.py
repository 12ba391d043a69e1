"""Handlers: the catalogue of models, and who holds which file.

Not to be confused with `peer.api.openai.models`, which finds a deployment by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aivailable.advice import MODELS
from aivailable.core.ids import short
from aivailable.core.state.changes.change import Change, Handler, Reject
from aivailable.core.state.commands import (
    Command,
    RegisterModel,
    RemoveModel,
    ReportCopy,
)
from aivailable.core.state.records import (
    Model,
)
from aivailable.core.state.state import State

MODELS_MAX = 1024
MODEL_NAME_MAX_CHARS = 128
MODEL_SOURCE_MAX_CHARS = 1024
DIGEST_CHARS = 64


def register_model(state: State, command: Command, body: RegisterModel) -> Change | Reject:
    if body.holder != command.command_id.proposer:
        return Reject("not_yours", "a node registers the files that it holds")
    problem = _model_problem(body.model)
    if problem:
        return Reject("invalid_model", problem)
    named = state.find_model(body.model.name)
    if named is not None and named.digest != body.model.digest:
        return Reject(
            "name_taken",
            f"the catalogue has another file named {body.model.name!r}"
            f" (sha256 {short(named.digest)}…); give this one another name with --as",
        )
    if body.model.digest not in state.models and len(state.models) >= MODELS_MAX:
        return Reject("full", f"a catalogue has at most {MODELS_MAX} models")
    known = state.models.get(body.model.digest, body.model)
    after = replace(
        state,
        models={**state.models, known.digest: known},
        copies=with_copy(state.copies, known.digest, body.holder),
    )
    return Change(after, "model", known.name, f"model {known.name} registered")


def remove_model(state: State, _command: Command, body: RemoveModel) -> Change | Reject:
    if body.digest not in state.models:
        return Reject("unknown_model", f"no such model; see {MODELS}")
    users = [name for name in sorted(state.deployments) if _uses(state, name, body.digest)]
    if users:
        return Reject("in_use", f"deployed as {', '.join(users)}; undeploy first")
    name = state.models[body.digest].name
    after = replace(state, models={k: v for k, v in state.models.items() if k != body.digest})
    after = without_orphans(after)
    return Change(after, "model", name, f"model {name} removed from the catalogue")


def report_copy(state: State, command: Command, body: ReportCopy) -> Change | Reject:
    if body.node != command.command_id.proposer:
        return Reject("not_yours", "a node reports its own files only")
    if body.digest not in state.files():
        return Reject(
            "unknown_model", "this file is in no catalogue, and nothing deployed needs it"
        )
    model = state.models.get(body.digest)
    what = f"file {short(body.digest)}" if model is None else model.name
    held = body.node in state.holders(body.digest)
    if held == body.held:
        return Change(state)
    name = state.members[body.node].name
    if body.held:
        after = replace(state, copies=with_copy(state.copies, body.digest, body.node))
        return Change(after, "copy", what, f"{name} holds a copy of {what}")
    nodes = tuple(node for node in state.holders(body.digest) if node != body.node)
    after = replace(state, copies={**state.copies, body.digest: nodes})
    return Change(after, "copy", what, f"{name} lost its copy of {what}")


def without_orphans(state: State) -> State:
    """Nobody is asked any more who holds what neither catalogue nor deployment needs."""
    known = state.files()
    return replace(state, copies={k: v for k, v in state.copies.items() if k in known})


def _model_problem(model: Model) -> str:
    if not 0 < len(model.name) <= MODEL_NAME_MAX_CHARS:
        return f"a model's name has 1 to {MODEL_NAME_MAX_CHARS} characters"
    if not 0 < len(model.digest) <= DIGEST_CHARS or len(model.source) > MODEL_SOURCE_MAX_CHARS:
        return f"a digest has {DIGEST_CHARS} characters, a source {MODEL_SOURCE_MAX_CHARS} at most"
    return ""


def _uses(state: State, deployment: str, digest: str) -> bool:
    return state.deployments[deployment].digest == digest


def with_copy(
    copies: Mapping[str, tuple[str, ...]], digest: str, node: str
) -> dict[str, tuple[str, ...]]:
    nodes = tuple(sorted(frozenset((*copies.get(digest, ()), node))))
    return {**copies, digest: nodes}


MODEL_HANDLERS: Mapping[type[Any], Handler] = {
    RegisterModel: register_model,
    RemoveModel: remove_model,
    ReportCopy: report_copy,
}
