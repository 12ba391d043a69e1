"""From a user's words to a committed deployment: register the file, predict memory, check, commit.

Refuses early and with numbers; what it commits is checked again by `apply` and by the agent. Also
answers what a deployment would come to (`preview`) and where a model fits (`fit`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aivailable.core.commands import Body, PutDeployment, RegisterModel
from aivailable.core.constraints import names_node, problem
from aivailable.core.fitting import chosen, device_fits
from aivailable.core.forecast import device_name, forecast, steps
from aivailable.core.ids import NodeId, valid_deployment_name
from aivailable.core.liveness import Liveness
from aivailable.core.measuring import learned_bytes, with_learned
from aivailable.core.placement import Refused, explain, place
from aivailable.core.records import Deployment, Growth, Model
from aivailable.core.state import State
from aivailable.core.status import FitStatus, PlanStatus
from aivailable.errors import GgufError, RequestError
from aivailable.gguf.header import read_header
from aivailable.gguf.memory import CONTEXT_STEP_TOKENS, draft_tokens, need
from aivailable.peer.growing import divided_up, most_context, most_slots, steepest
from aivailable.peer.ports import Ports, Prediction, PredictRequest
from aivailable.peer.proposals import Proposer
from aivailable.peer.service import DeployRequest

CONTEXT_DEFAULT_TOKENS = 4096
CONTEXT_AUTO_MAX_TOKENS = 32_768
"""The most of an automatic context where the file does not say what it was trained for."""
SLOTS_DEFAULT = 4
FAKE_ENGINE = "fake"
FAKE_NEED_BYTES = 64 * 1024 * 1024
DEPLOY_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class _Thought:
    """A model that is only asked about: of the catalogue, or a file that is not in it (`path`),
    whose digest is a stand-in, since a question does not hash gigabytes."""

    model: Model
    path: Path | None = None


class Deploying:
    """Serves `Service.deploy`, `preview` and `fit` for one session."""

    def __init__(
        self,
        node: NodeId,
        ports: Ports,
        proposer: Proposer,
        state: Callable[[], State],
        liveness: Callable[[], Liveness],
    ) -> None:
        self._node = node
        self._ports = ports
        self._proposer = proposer
        self._state = state
        self._liveness = liveness

    async def deploy(self, request: DeployRequest, *, actor: str) -> Deployment:
        """Raises RequestError, ProposalError, GgufError, OSError."""
        self._check_words(request)
        if request.engine == FAKE_ENGINE:
            wanted = self._fake(request)
        else:
            wanted = await self._real(request, _Thought(await self._model(request, actor)))
        current = self._state().deployments.get(wanted.name)
        if current is not None:
            if _same_wish(wanted, current):
                return current
            if not request.replace:
                raise RequestError(409, "exists", f"{wanted.name} is deployed already")
        self._check_fits(self._state(), wanted, current)
        await self._proposer.propose(
            PutDeployment(wanted, 0 if current is None else current.generation),
            actor=actor,
            reason="deploy",
            deadline_s=DEPLOY_DEADLINE_S,
        )
        return self._state().deployments.get(wanted.name, wanted)

    async def preview(self, request: DeployRequest) -> PlanStatus:
        """The whole plan as it would become. Raises as `deploy`, but for ProposalError."""
        self._check_words(request)
        wanted, thought = await self._thought_of(request)
        before = self._state()
        current = before.deployments.get(wanted.name)
        refusal, wishes = "", self._registering(thought)
        if current is None or not _same_wish(wanted, current):
            wishes.append(PutDeployment(wanted, 0 if current is None else current.generation))
            if current is not None and not request.replace:
                refusal = f"{wanted.name} is deployed already"
        end = forecast(before, self._liveness(), self._now_ms(), *wishes)
        refusal = refusal or end.outcome.message
        if not refusal:
            try:
                self._check_fits(self._imagined(thought), wanted, current)
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
        self._check_words(request)
        wanted, thought = await self._thought_of(request)
        state, liveness = self._imagined(thought), self._liveness()
        placed = chosen(state, liveness, wanted)
        devices: tuple[str, ...] = ()
        if placed is not None:
            devices = tuple(device_name(state, placed.node, c.device_id) for c in placed.claims)
        return FitStatus(
            model=thought.model.name if thought is not None else request.model,
            context=wanted.context,
            slots=wanted.slots,
            weights_bytes=wanted.weights_bytes,
            kv_bytes=wanted.kv_bytes,
            compute_bytes=wanted.compute_bytes,
            predicted_by=wanted.predicted_by,
            node_name=state.members[placed.node].name if placed is not None else "",
            devices_chosen=devices,
            devices=device_fits(
                state, liveness, wanted, thought.model.facts if thought is not None else None
            ),
        )

    def _check_words(self, request: DeployRequest) -> None:
        """Raises RequestError for a name or a constraint that can never hold: a node that no
        member is called is a slip; a neighbour may well come later."""
        if request.name is not None and not valid_deployment_name(request.name):
            raise RequestError(
                400, "invalid_name", f"{request.name!r}: letters, digits and . _ : / @ - only"
            )
        wrong = problem(request.where, request.name or request.model)
        if wrong:
            raise RequestError(400, "invalid_where", wrong)
        members = self._state().members
        for pattern in (*request.where.nodes, *request.where.not_nodes):
            if not any(names_node(pattern, members[node]) for node in sorted(members)):
                names = ", ".join(sorted(member.name for member in members.values()))
                raise RequestError(
                    400, "unknown_node", f"no member is called {pattern!r}; there are: {names}"
                )

    async def _thought_of(self, request: DeployRequest) -> tuple[Deployment, _Thought | None]:
        """What would be deployed, with nothing registered for it. No model: the fake engine's."""
        if request.engine == FAKE_ENGINE:
            return self._fake(request), None
        thought = self._thought(request.model)
        return await self._real(request, thought), thought

    def _thought(self, name: str) -> _Thought:
        known = self._state().find_model(name)
        if known is not None:
            return _Thought(known)
        path = _as_path(name)
        if path is None:
            raise self._unknown(name)
        try:
            facts = read_header(path).facts
        except GgufError as error:
            raise RequestError(400, "bad_model_file", str(error)) from error
        size_bytes = path.stat().st_size
        for file in self._ports.model_store.held().values():
            model = self._state().models.get(file.digest)
            if model is not None and file.size_bytes == size_bytes and _same_file(file.path, path):
                return _Thought(model)
        digest = hashlib.sha256(f"not hashed: {path}".encode()).hexdigest()
        return _Thought(Model(digest, _catalogue_name(path), size_bytes, str(path), facts), path)

    def _imagined(self, thought: _Thought | None) -> State:
        """The state, with the file that is asked about in the catalogue."""
        state = self._state()
        if thought is None or thought.path is None:
            return state
        model = thought.model
        return replace(
            state,
            models={**state.models, model.digest: model},
            copies={**state.copies, model.digest: (self._node,)},
        )

    def _registering(self, thought: _Thought | None) -> list[Body]:
        if thought is None or thought.path is None:
            return []
        return [RegisterModel(thought.model, self._node)]

    def _now_ms(self) -> int:
        return self._ports.clock.wall_ms()

    async def _real(self, request: DeployRequest, thought: _Thought) -> Deployment:
        model = thought.model
        trained = model.facts.context_train
        context = request.context or min(CONTEXT_DEFAULT_TOKENS, trained or CONTEXT_DEFAULT_TOKENS)
        if trained and context > trained:
            raise RequestError(
                400,
                "context_too_large",
                f"{model.name} was trained for {trained} tokens; --ctx {context} cannot work",
            )
        slots = request.slots or SLOTS_DEFAULT
        predicted = await self._predict(thought, context, slots, request.options)
        sizes = predicted.weights_bytes, predicted.kv_bytes, predicted.compute_bytes
        learned = learned_bytes(self._state(), model.digest, context, slots, request.options)
        return self._shape(
            request,
            name=request.name or model.name,
            digest=model.digest,
            context=context,
            slots=slots,
            sizes=sizes if learned is None else with_learned(*sizes, learned),
            by=predicted.by if learned is None else "measured",
            growth=await self._growth(request, thought, context, slots, predicted),
        )

    async def _growth(
        self,
        request: DeployRequest,
        thought: _Thought,
        context: int,
        slots: int,
        least: Prediction,
    ) -> Growth | None:
        """What each token more costs, between the least context and the largest, and each slot
        more with the largest context.

        Compute grows ever faster and a cache with a sliding window ever slower: the chord and the
        first step, whichever is more, is never too little in between."""
        facts = thought.model.facts
        most = context
        if request.context_max is not None:
            most = request.context_max or facts.context_train or CONTEXT_AUTO_MAX_TOKENS
            most = min(most, facts.context_train or most, most_context(slots))
            most = max(context, most)
        slots_most = slots
        if request.slots_max is not None:
            slots_most = max(slots, most_slots(request.slots_max, most))
        if (most, slots_most) == (context, slots):
            return None
        counts = range(slots, slots_most + 1)
        if most == context:
            grown = Growth(context, 0, 0)
            return await self._with_slots(grown, thought, request.options, counts, least)
        kv_type = request.options.get("kv_type", "f16")
        far = largest = await self._predict(thought, most, slots, request.options)
        here = need(facts, context, slots, kv_type)
        step = need(facts, context + CONTEXT_STEP_TOKENS, slots, kv_type).kv_bytes - here.kv_bytes
        if far.by != least.by:  # One of the dry runs gave no sizes; never mix it with the formula.
            size = need(facts, most, slots, kv_type)
            far = Prediction(size.weights_bytes, size.kv_bytes, size.compute_bytes, "formula")
            least = Prediction(here.weights_bytes, here.kv_bytes, here.compute_bytes, "formula")
        more = most - context
        grown = Growth(
            context_max=most,
            token_kv_bytes=max(
                divided_up(far.kv_bytes - least.kv_bytes, more),
                divided_up(step, CONTEXT_STEP_TOKENS),
            ),
            token_compute_bytes=divided_up(max(0, far.compute_bytes - least.compute_bytes), more),
        )
        return await self._with_slots(grown, thought, request.options, counts, largest)

    async def _with_slots(
        self,
        grown: Growth,
        thought: _Thought,
        options: Mapping[str, str],
        counts: range,
        few: Prediction,
    ) -> Growth:
        """With what each slot more costs, from the first of `counts`, of which `few` is the need
        with the largest context, to the last.

        The formula gives the shape between the two dry runs: compute has kinks and cells come in
        steps, so the chord alone may lie below."""
        if len(counts) == 1:
            return grown
        many = await self._predict(thought, grown.context_max, counts[-1], options)
        curve = [self._by_formula(thought, grown.context_max, n, options) for n in counts]
        if few.by != many.by:
            few, many = curve[0], curve[-1]
        return replace(
            grown,
            slots_max=counts[-1],
            slot_kv_bytes=steepest(many.kv_bytes - few.kv_bytes, [size.kv_bytes for size in curve]),
            slot_compute_bytes=steepest(
                many.compute_bytes - few.compute_bytes, [size.compute_bytes for size in curve]
            ),
        )

    async def _predict(
        self, thought: _Thought, context: int, slots: int, options: Mapping[str, str]
    ) -> Prediction:
        """By the file when it is here, else by the catalogue's facts and the formula."""
        file = self._ports.model_store.held().get(thought.model.digest)
        path = file.path if file is not None else thought.path
        try:
            if path is not None:
                wanted = PredictRequest(path, context, slots, dict(options))
                return await self._ports.predict(wanted)
            return self._by_formula(thought, context, slots, options)
        except ValueError as error:
            raise RequestError(400, "invalid_options", str(error)) from error
        except GgufError as error:
            raise RequestError(400, "bad_model_file", str(error)) from error

    def _by_formula(
        self, thought: _Thought, context: int, slots: int, options: Mapping[str, str]
    ) -> Prediction:
        """Of adapters only their own host can tell the size. Raises ValueError."""
        size = need(
            thought.model.facts,
            context,
            slots,
            options.get("kv_type", "f16"),
            draft=draft_tokens(options.get("draft"), on_gpu=True),
            pooling=options.get("pooling"),
        )
        return Prediction(size.weights_bytes, size.kv_bytes, size.compute_bytes, "formula")

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
    ) -> Deployment:
        return Deployment(
            name=name,
            digest=digest,
            context=context,
            slots=slots,
            replicas_min=request.replicas_min,
            replicas_max=max(request.replicas_min, request.replicas_max or request.replicas_min),
            copies=request.copies or self._state().settings.copies_default,
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
        )

    async def _model(self, request: DeployRequest, actor: str) -> Model:
        """From the catalogue, or a file on this node that becomes part of it."""
        known = self._state().find_model(request.model)
        if known is not None:
            return known
        path = _as_path(request.model)
        if path is None:
            raise self._unknown(request.model)
        return await self._register(path, request, actor)

    def _unknown(self, model: str) -> RequestError:
        names = ", ".join(sorted(entry.name for entry in self._state().models.values()))
        return RequestError(
            404,
            "unknown_model",
            f"no model {model!r} in the catalogue ({names or 'empty'}), and it is no"
            " path of a .gguf file",
        )

    async def _register(self, path: Path, request: DeployRequest, actor: str) -> Model:
        try:
            facts = read_header(path).facts
        except GgufError as error:
            raise RequestError(400, "bad_model_file", str(error)) from error
        file = await self._ports.model_store.register(path)
        known = self._state().models.get(file.digest)
        if known is not None:
            return known
        model = Model(
            digest=file.digest,
            name=_catalogue_name(path),
            size_bytes=file.size_bytes,
            source=str(path),
            facts=facts,
        )
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
        answer = place(state, self._liveness(), wanted)
        if isinstance(answer, Refused):
            raise RequestError(
                422, "does_not_fit", f"{wanted.name} fits on no device: {explain(answer)}"
            )


def _same_file(held: Path, path: Path) -> bool:
    """A held file that has gone meanwhile is another one."""
    with contextlib.suppress(OSError):
        return held.samefile(path)
    return False


def _same_wish(wanted: Deployment, current: Deployment) -> bool:
    """Whether nothing would change. The prediction is none of the user's words: a node without
    the file predicts by formula what the oracle of another said exactly."""
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


def _as_path(model: str) -> Path | None:
    """The path that the user meant; None when it looks like a name."""
    path = Path(model).expanduser()
    return path if path.is_absolute() or path.suffix == ".gguf" else None


def _catalogue_name(path: Path) -> str:
    """The file's own name in the grammar of model names."""
    kept = "".join(char if char.isalnum() or char in "._-" else "-" for char in path.stem)
    return kept.strip("-._")[:120] or "model"
