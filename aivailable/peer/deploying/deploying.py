"""From a user's words to a committed deployment: register the files, predict memory, check, commit.

Refuses early and with numbers; what it commits is checked again by `apply` and by the agent. Also
answers what a deployment would come to (`preview`) and where a model fits (`fit`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from aivailable.core.ids import NodeId, short, valid_deployment_name
from aivailable.core.planning.fit_report import chosen, device_fits
from aivailable.core.planning.forecast import device_name, forecast, steps
from aivailable.core.planning.placement import PlacementRefused, explain, newcomers, place
from aivailable.core.serving.status import FitStatus, PlanStatus
from aivailable.core.state.commands import Body, PutDeployment, RegisterModel
from aivailable.core.state.constraints import names_node, problem
from aivailable.core.state.learned_memory import learned_bytes, with_learned
from aivailable.core.state.node_names import choices, meant, shown_name, shown_names
from aivailable.core.state.records import Companion, Deployment, Growth, Member, Model, settled
from aivailable.core.state.state import State
from aivailable.errors import GgufError, RequestError
from aivailable.gguf.header import read_header
from aivailable.peer.control.cluster_view import ClusterView
from aivailable.peer.control.proposals import Proposer
from aivailable.peer.deploying.companions import Companions, same_file
from aivailable.peer.deploying.memory_need import MemoryNeed, ModelCandidate
from aivailable.peer.ports import Ports
from aivailable.peer.service import DeployRequest

CONTEXT_DEFAULT_TOKENS = 4096
SLOTS_DEFAULT = 4
FAKE_ENGINE = "fake"
FAKE_NEED_BYTES = 64 * 1024 * 1024
DEPLOY_DEADLINE_S = 10.0


class Deploying:
    """Serves `service.Deployments` for one session."""

    def __init__(self, ports: Ports, proposer: Proposer, cluster: ClusterView) -> None:
        self._node = cluster.node
        self._ports = ports
        self._proposer = proposer
        self._cluster = cluster
        self._memory_need = MemoryNeed(ports)
        self._companions = Companions(ports.model_store, cluster)

    async def deploy(self, request: DeployRequest, *, actor: str) -> Deployment:
        """Raises RequestError, ProposalError, GgufError, OSError."""
        request = self._validated(request)
        candidate = None
        if request.engine == FAKE_ENGINE:
            wanted = self._fake(request)
        else:
            candidate = await self._registered(await self._candidate(request), actor)
            wanted = await self._real(request, candidate)
        current = self._cluster.state.deployments.get(wanted.name)
        if current is not None:
            if _same_request(wanted, current):
                return current
            if not request.replace:
                raise RequestError(409, "exists", f"{wanted.name} is deployed already")
        self._check_fits(self._imagined(candidate), wanted, current)
        await self._proposer.propose(
            self._put(wanted, current, candidate),
            actor=actor,
            reason="deploy",
            deadline_s=DEPLOY_DEADLINE_S,
        )
        return self._cluster.state.deployments.get(wanted.name, wanted)

    async def preview(self, request: DeployRequest) -> PlanStatus:
        """The whole plan as it would become. Raises as `deploy`, but for ProposalError."""
        request = self._validated(request)
        wanted, candidate = await self._candidate_of(request)
        before = self._cluster.state
        current = before.deployments.get(wanted.name)
        refusal, changes = "", self._registering(candidate)
        if current is None or not _same_request(wanted, current):
            changes.append(self._put(wanted, current, candidate))
            if current is not None and not request.replace:
                refusal = f"{wanted.name} is deployed already"
        end = forecast(before, self._cluster.liveness(), *changes)
        refusal = refusal or end.outcome.message
        if not refusal:
            try:
                self._check_fits(self._imagined(candidate), wanted, current)
            except RequestError as error:
                refusal = str(error)
        return PlanStatus(
            deployment=wanted.name,
            weights_bytes=wanted.weights_bytes,
            kv_bytes=wanted.kv_bytes,
            compute_bytes=wanted.compute_bytes,
            predicted_by=wanted.predicted_by,
            refusal=refusal,
            steps=steps(before, end),
        )

    async def fit(self, request: DeployRequest) -> FitStatus:
        """Whether one more replica fits now, on each device. Raises as `preview`."""
        request = self._validated(request)
        wanted, candidate = await self._candidate_of(request)
        state, liveness = self._imagined(candidate), self._cluster.liveness()
        placed = chosen(state, liveness, wanted)
        devices: tuple[str, ...] = ()
        if placed is not None:
            devices = tuple(device_name(state, placed.node, c.device_id) for c in placed.claims)
        return FitStatus(
            model=candidate.model.name if candidate is not None else request.model,
            context=wanted.context,
            slots=wanted.slots,
            weights_bytes=wanted.weights_bytes,
            kv_bytes=wanted.kv_bytes,
            compute_bytes=wanted.compute_bytes,
            predicted_by=wanted.predicted_by,
            node_name=shown_name(state.members, placed.node) if placed is not None else "",
            devices_chosen=devices,
            devices=device_fits(
                state, liveness, wanted, candidate.model.facts if candidate is not None else None
            ),
        )

    def _validated(self, request: DeployRequest) -> DeployRequest:
        """With every node that is named as the records know it. Raises RequestError for a name or
        a constraint that can never hold: a node that no member is called is a slip, one that
        several are called is a question; a neighbour may well come later."""
        if request.name is not None and not valid_deployment_name(request.name):
            raise RequestError(
                400, "invalid_name", f"{request.name!r}: letters, digits and . _ : / @ - only"
            )
        wrong = problem(request.where, request.name or request.model)
        if wrong:
            raise RequestError(400, "invalid_where", wrong)
        members = self._cluster.state.members
        where = replace(
            request.where,
            nodes=tuple(_one_node(members, pattern) for pattern in request.where.nodes),
            not_nodes=tuple(_one_node(members, pattern) for pattern in request.where.not_nodes),
        )
        return replace(request, where=where)

    async def _candidate_of(
        self, request: DeployRequest
    ) -> tuple[Deployment, ModelCandidate | None]:
        """What would be deployed, with nothing registered for it. No model: the fake engine's."""
        if request.engine == FAKE_ENGINE:
            return self._fake(request), None
        candidate = await self._candidate(request)
        return await self._real(request, candidate), candidate

    def _put(
        self, wanted: Deployment, current: Deployment | None, candidate: ModelCandidate | None
    ) -> PutDeployment:
        held = candidate.held if candidate is not None else ()
        return PutDeployment(wanted, 0 if current is None else current.generation, held)

    async def _candidate(self, request: DeployRequest) -> ModelCandidate:
        """Model and companions, checked and not hashed. Raises RequestError."""
        candidate = await self._candidate_of_model(request.model)
        digest = candidate.model.digest
        beside = None
        if self._cluster.state.find_model(request.model) is None:
            beside = _as_path(request.model)
        elif (file := self._ports.model_store.held().get(digest)) is not None:
            beside = file.path
        current = self._cluster.state.deployments.get(request.name or candidate.model.name)
        architecture = candidate.model.facts.architecture
        found = await self._companions.find(request.options, beside, architecture, current)
        return replace(candidate, found=found)

    async def _candidate_of_model(self, name: str) -> ModelCandidate:
        known = self._cluster.state.find_model(name)
        if known is not None:
            return ModelCandidate(known)
        path = _as_path(name)
        if path is None:
            raise self._unknown(name)
        try:
            header = await self._ports.model_store.look(read_header, path)
        except GgufError as error:
            raise RequestError(400, "bad_model_file", str(error)) from error
        facts, size_bytes = header.facts, header.size_bytes
        for file in self._ports.model_store.held().values():
            model = self._cluster.state.models.get(file.digest)
            if model is not None and file.size_bytes == size_bytes and same_file(file.path, path):
                return ModelCandidate(model)
        digest = hashlib.sha256(f"not hashed: {path}".encode()).hexdigest()
        return ModelCandidate(
            Model(digest, _catalogue_name(path), size_bytes, str(path), facts), path
        )

    def _imagined(self, candidate: ModelCandidate | None) -> State:
        """The state, with the files that are asked about in the catalogue and held here."""
        state = self._cluster.state
        if candidate is None:
            return state
        copies = dict(state.copies)
        for digest in candidate.held:
            copies[digest] = (*state.holders(digest), self._node)
        if candidate.path is None:
            return replace(state, copies=copies)
        model = candidate.model
        return replace(
            state,
            models={**state.models, model.digest: model},
            copies={**copies, model.digest: (self._node,)},
        )

    def _registering(self, candidate: ModelCandidate | None) -> list[Body]:
        if candidate is None or candidate.path is None:
            return []
        return [RegisterModel(candidate.model, self._node)]

    async def _real(self, request: DeployRequest, candidate: ModelCandidate) -> Deployment:
        model = candidate.model
        trained = model.facts.context_train
        context = request.context or min(CONTEXT_DEFAULT_TOKENS, trained or CONTEXT_DEFAULT_TOKENS)
        if trained and context > trained:
            raise RequestError(
                400,
                "context_too_large",
                f"{model.name} was trained for {trained} tokens; --ctx {context} cannot work",
            )
        slots = request.slots or SLOTS_DEFAULT
        predicted = await self._memory_need.predict(candidate, context, slots, request.options)
        weights, kv = predicted.weights_bytes, predicted.kv_bytes
        sizes = weights, kv, predicted.compute_bytes
        options = settled(request.options, candidate.companions)
        learned = learned_bytes(self._cluster.state, model.digest, context, slots, options)
        return self._shape(
            request,
            name=request.name or model.name,
            digest=model.digest,
            context=context,
            slots=slots,
            sizes=sizes if learned is None else with_learned(weights, kv, learned),
            by=predicted.by if learned is None else "measured",
            growth=await self._memory_need.growth(request, candidate, context, slots, predicted),
            companions=candidate.companions,
        )

    def _fake(self, request: DeployRequest) -> Deployment:
        """A deployment of the fake engine: no file, its need given as an option."""
        if "fake" not in self._ports.devices.inventory(self._node).engines:
            raise RequestError(
                400, "no_fake_engine", "the fake engine is for tests; see AIVAILABLE_FAKE_ENGINE"
            )
        try:
            need_bytes = int(request.options.get("need_bytes", str(FAKE_NEED_BYTES)))
        except ValueError as error:
            raise RequestError(400, "invalid_options", "need_bytes is a number") from error
        if request.context_max is not None or request.slots_max is not None:
            raise RequestError(400, "invalid_options", "the fake engine's size is fixed")
        name = request.name or request.model
        return self._shape(
            request,
            name=name,
            digest=f"fake:{request.model}",
            context=request.context or CONTEXT_DEFAULT_TOKENS,
            slots=request.slots or SLOTS_DEFAULT,
            sizes=(need_bytes, 0, 0),
            by="option",
        )

    def _shape(
        self,
        request: DeployRequest,
        *,
        name: str,
        digest: str,
        context: int,
        slots: int,
        sizes: tuple[int, int, int],
        by: str,
        growth: Growth | None = None,
        companions: tuple[Companion, ...] = (),
    ) -> Deployment:
        return Deployment(
            name=name,
            digest=digest,
            context=context,
            slots=slots,
            replicas_min=request.replicas_min,
            replicas_max=max(request.replicas_min, request.replicas_max or request.replicas_min),
            copies=request.copies or self._cluster.state.settings.copies_default,
            idle_ttl_s=request.idle_ttl_s,
            pin=request.pin,
            priority=request.priority,
            engine=request.engine,
            options=dict(request.options),
            aliases=request.aliases,
            weights_bytes=sizes[0],
            kv_bytes=sizes[1],
            compute_bytes=sizes[2],
            predicted_by=by,
            where=request.where,
            growth=growth,
            companions=companions,
        )

    async def _registered(self, candidate: ModelCandidate, actor: str) -> ModelCandidate:
        """With the model in the catalogue and every digest known. Raises as `deploy`."""
        found = await self._companions.hashed(candidate.found)
        if candidate.path is None:
            return replace(candidate, found=found)
        return ModelCandidate(
            await self._register(candidate.model, candidate.path, actor), found=found
        )

    def _unknown(self, model: str) -> RequestError:
        names = ", ".join(sorted(entry.name for entry in self._cluster.state.models.values()))
        return RequestError(
            404,
            "unknown_model",
            f"no model {model!r} in the catalogue ({names or 'empty'}), and it is no"
            " path of a .gguf file",
        )

    async def _register(self, candidate: Model, path: Path, actor: str) -> Model:
        file = await self._ports.model_store.register(path)
        known = self._cluster.state.models.get(file.digest)
        if known is not None:
            return known
        model = replace(candidate, digest=file.digest, size_bytes=file.size_bytes)
        await self._proposer.propose(
            RegisterModel(model, self._node),
            actor=actor,
            reason="deploy of a path",
            deadline_s=DEPLOY_DEADLINE_S,
        )
        return model

    def _check_fits(self, state: State, wanted: Deployment, current: Deployment | None) -> None:
        """Refuse what fits nowhere now; a change may use the room of what it replaces."""
        if wanted.replicas_min == 0:
            return
        if current is not None:
            kept = {k: r for k, r in state.replicas.items() if r.deployment != wanted.name}
            others = {k: d for k, d in state.deployments.items() if k != wanted.name}
            state = replace(state, replicas=kept, deployments=others)
        answer = place(state, self._cluster.liveness(), wanted)
        if isinstance(answer, PlacementRefused):
            fresh = ", ".join(newcomers(answer))
            if fresh:
                raise RequestError(
                    409,
                    "devices_not_told",
                    f"{wanted.name} fits on no device yet, and the devices of {fresh} are not"
                    f" known yet, try again in some seconds: {explain(answer)}",
                )
            raise RequestError(
                422, "does_not_fit", f"{wanted.name} fits on no device: {explain(answer)}"
            )


def _same_request(wanted: Deployment, current: Deployment) -> bool:
    """Whether nothing would change. The prediction is none of the user's words: a node without
    the file predicts by formula what the dry run of another said exactly."""
    return current == replace(
        wanted,
        generation=current.generation,
        weights_bytes=current.weights_bytes,
        kv_bytes=current.kv_bytes,
        compute_bytes=current.compute_bytes,
        predicted_by=current.predicted_by,
        growth=current.growth if _reach(wanted) == _reach(current) else wanted.growth,
    )


def _reach(deployment: Deployment) -> tuple[int, int]:
    return deployment.context_most, deployment.slots_most


def _one_node(members: Mapping[NodeId, Member], pattern: str) -> str:
    """The pattern, or the short id of the one member that it names and that shares its name with
    others: `vm-ab12` is how people see it, not how a version before this one finds it."""
    matching = [node for node in sorted(members) if names_node(pattern, members[node])]
    if matching and any(char in pattern for char in "*?["):
        return pattern
    shown = shown_names(members)
    found = meant(shown, pattern)
    if len(found) > 1:
        raise RequestError(
            409, "ambiguous_node", f"{pattern!r} can be {choices(shown, found)}; name one of them"
        )
    if not found:
        names = choices(shown, sorted(members))
        raise RequestError(
            400, "unknown_node", f"no member is called {pattern!r}; there are: {names}"
        )
    return pattern if matching == list(found) else short(found[0])


def _as_path(model: str) -> Path | None:
    """The path that the user meant; None when it looks like a name."""
    path = Path(os.path.expanduser(model))
    return path if path.is_absolute() or path.suffix == ".gguf" else None


def _catalogue_name(path: Path) -> str:
    """The file's own name in the grammar of model names."""
    kept = "".join(char if char.isalnum() or char in "._-" else "-" for char in path.stem)
    return kept.strip("-._")[:120] or "model"
