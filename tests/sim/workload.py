"""What people and a stale controller do to the cluster while it breaks.

Owns the operators, the clients and the adversary, and what each of them was promised: an
acknowledgement, an answer. Run by sim.run; sim.checks keeps the acknowledgements.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fixtures.virtual_time import elapse
from sim.worker import expected_answer
from sim.world import Running, World

from aivailable.core.ids import key_hash, replica_id
from aivailable.core.state.commands import (
    Body,
    Place,
    PutDeployment,
    PutKey,
    RegisterModel,
    RemoveDeployment,
    SetDraining,
    SetWindow,
)
from aivailable.core.state.records import ApiKey, Claim, Deployment, Model, Scope
from aivailable.core.state.state import State
from aivailable.errors import ProposalError, ProposalRejected, RequestError
from aivailable.gguf.facts import ModelFacts
from aivailable.peer.service import Routing
from aivailable.wire.generation import Failed, Finished, Generate, Tokens

GIB = 1 << 30
OPERATIONS_PER_S = 6.0
REQUESTS_PER_S = 2.0
ADVERSARY_PERIOD_S = 1.0
OLD_STATES_MAX = 3
DEPLOYMENTS = tuple(f"model-{number}" for number in range(6))
SIZES_GIB = (1, 2, 3, 4, 5)
WINDOW_CHECK_S = 3.0
WINDOW_S = 900
REQUEST_DEADLINE_S = 20.0
REQUEST_GRACE_S = 10.0
"""A request that has not ended this long after its deadline hangs."""
BEFORE_THE_LOG = ("too_large", "busy")
"""Refusals of the proposer's own node: nothing was proposed."""
NO_FILE = "0" * 64
"""A digest outside the catalogue: a replica of it needs no file."""
FILES = ("file-a", "file-b")
FILE_BYTES = 200 * 1024
FACTS = ModelFacts(
    architecture="sim",
    name="sim",
    context_train=4096,
    layers=1,
    embedding=1,
    heads_kv=(1,),
    key_length=1,
    value_length=1,
    vocab=1000,
    weights_bytes=1,
)


@dataclass
class Request:
    """One client's request and how it ended ("" = not yet)."""

    number: int
    ingress: str
    deployment: str
    begun_s: float
    outcome: str = ""


class Workload:
    """Everything that is asked of the cluster in one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = random.Random(f"workload {world.seed}")
        self._count = 0
        self._old: deque[State] = deque(maxlen=OLD_STATES_MAX)
        self.requests: list[Request] = []
        self.outcomes: dict[str, int] = {}
        """How often what happened to operations."""

    async def run(self, duration_s: float) -> None:
        end = self._world.loop.time() + duration_s
        await asyncio.gather(
            self._often(self._operate, OPERATIONS_PER_S, end),
            self._often(self._ask, REQUESTS_PER_S, end),
            self._often(self._usurp, 1 / ADVERSARY_PERIOD_S, end),
        )

    async def _often(self, act: Callable[[], None], per_s: float, end: float) -> None:
        while self._world.loop.time() < end:
            await elapse(self._rng.expovariate(per_s))
            act()

    def _number(self) -> int:
        self._count += 1
        return self._count

    # Operators.

    def register_files(self) -> None:
        """Each of FILES is registered where it lies, at a machine of the seed's choice."""
        for name in FILES:
            where = self._rng.choice(self._world.names)
            data = self._rng.randbytes(FILE_BYTES)
            digest = hashlib.sha256(data).hexdigest()
            machine = self._world.machine(where)
            machine.model_files[digest] = data
            model = Model(digest, name, len(data), f"/models/{name}", FACTS)
            self.propose(where, RegisterModel(model, machine.node), f"register {name}")

    def _operate(self) -> None:
        names = sorted(self._world.running)
        if not names:
            return
        name = self._rng.choice(names)
        state = self._world.state_of(name)
        number = self._number()
        dice = self._rng.random()
        body: Body
        if dice < 0.70 or state is None:
            body = PutKey(make_key(f"{self._world.seed} {number}"))
        elif dice < 0.86:
            body = self._deployment(state)
        elif dice < 0.97:
            body = RemoveDeployment(self._rng.choice(DEPLOYMENTS))
        else:
            node = self._world.machine(self._rng.choice(self._world.names)).node
            body = SetDraining(node, self._rng.random() < 0.5)
        self.propose(name, body, f"op-{number}")

    async def keep_window_open(self) -> None:
        """The operator types `admit` when the founder died with the only clock of the window."""
        while True:
            await elapse(WINDOW_CHECK_S)
            for name in sorted(self._world.running):
                state = self._world.state_of(name)
                if state is not None and state.cluster is not None and not state.window.open:
                    self.propose(name, SetWindow(WINDOW_S), f"admit-{self._number()}")
                    break

    def _deployment(self, state: State) -> PutDeployment:
        name = self._rng.choice(DEPLOYMENTS)
        current = state.deployments.get(name)
        size = self._rng.choice(SIZES_GIB) * GIB
        minimum = self._rng.choice((1, 1, 2))
        digest = self._rng.choice([NO_FILE, *sorted(state.models)])
        return PutDeployment(
            fake_deployment(name, size, minimum, digest),
            replace_generation=0 if current is None else current.generation,
        )

    def propose(self, name: str, body: Body, reason: str) -> asyncio.Task[str] | None:
        """Propose at a node; the task says what came of it. None: the node is down."""
        return self._world.on_behalf(name, lambda run: self._propose(run, body, reason))

    async def _propose(self, run: Running, body: Body, reason: str) -> str:
        how = await self._answer(run, body, reason)
        if run.process.alive:
            self.outcomes[how] = self.outcomes.get(how, 0) + 1
            self._world.trace.add(run.process.name, f"{reason} {how}")
        return how

    async def _answer(self, run: Running, body: Body, reason: str) -> str:
        """acknowledged, refused, unknown, no session, or died."""
        session = run.peer.session
        if session is None or self._world.main not in ("", session.file.cluster_id):
            return "no session"
        try:
            await run.peer.changes.propose(body, actor="operator:sim", reason=reason)
        except ProposalRejected as error:
            if error.code not in BEFORE_THE_LOG:
                self._world.checker.refused(session.file.cluster_id, reason)
            return "refused"
        except (ProposalError, RequestError):
            return "unknown"
        if not run.process.alive:
            return "died"
        self._world.checker.acknowledged(session.file.cluster_id, reason)
        return "acknowledged"

    # Clients.

    def _ask(self) -> None:
        names = sorted(self._world.running)
        if not names:
            return
        ingress = self._rng.choice(names)
        state = self._world.state_of(ingress)
        known = [] if state is None else sorted(state.deployments)
        self.ask(ingress, self._rng.choice([*known, *known, *known, "nobody-knows"]))

    def ask(self, ingress: str, deployment: str) -> Request:
        """A client's request at `ingress`; its outcome is filled in when it ends."""
        request = Request(self._number(), ingress, deployment, self._world.loop.time())
        self.requests.append(request)
        tokens = self._rng.randint(1, 80)
        task = self._world.on_behalf(ingress, lambda run: self._run_request(run, request, tokens))
        if task is None:
            request.outcome = "no ingress"
        else:
            task.add_done_callback(lambda done: self._request_ended(request, done))
        return request

    async def _run_request(self, run: Running, request: Request, tokens: int) -> str:
        prompt = f"request {request.number} of seed {self._world.seed}"
        generate = Generate(
            request_id=f"r{request.number}",
            deployment=request.deployment,
            prompt=prompt,
            max_tokens=tokens,
            deadline_s=REQUEST_DEADLINE_S,
        )
        text, ended = "", ""
        try:
            routing = Routing(ingress=run.peer.node)
            async for event in run.peer.inference.generate(generate, "", routing):
                match event:
                    case Tokens(text=piece):
                        text += piece
                    case Finished(reason=reason, text=piece):
                        text, ended = text + piece, f"finished {reason}"
                    case Failed(code=code):
                        ended = f"failed {code}"
        except RequestError as error:
            ended = f"refused {error.code}"
        expected = expected_answer(prompt, tokens)
        if run.process.alive:
            if ended == "finished length" and text != expected:
                self._world.checker.problem(f"r{request.number} answered {text!r}")
            if not expected.startswith(text):
                self._world.checker.problem(f"r{request.number} began with {text!r}")
        return ended or "ended without an end"

    def _request_ended(self, request: Request, task: asyncio.Task[str]) -> None:
        if task.cancelled():
            request.outcome = "ingress died"
        elif task.exception() is not None:
            request.outcome = f"raised {task.exception()!r}"
        else:
            request.outcome = task.result()
        self._world.trace.add(request.ingress, f"r{request.number} {request.outcome}")

    def judge_requests(self) -> None:
        """Every request was answered or refused, or has time left."""
        now = self._world.loop.time()
        for request in self.requests:
            name = f"r{request.number} at {request.ingress}"
            if request.outcome.startswith(("raised", "ended without")):
                self._world.checker.problem(f"{name}: {request.outcome}")
            late_s = now - request.begun_s - REQUEST_DEADLINE_S
            if not request.outcome and late_s > REQUEST_GRACE_S:
                self._world.checker.problem(f"{name} hangs")

    # The adversary.

    def _usurp(self) -> None:
        """Propose a placement as a controller would that planned on an empty cluster: with the
        committed control, the right replica number, and a device that is full by now."""
        name = self._world.leader()
        state = None if name is None else self._world.state_of(name)
        if name is None or state is None or state.control is None:
            return
        body = stale_place(state, self._rng)
        if body is None:
            return
        number = self._number()

        def work(run: Running) -> Awaitable[None]:
            return self._place(run, body, number)

        self._world.on_behalf(name, work)

    async def _place(self, run: Running, body: Place, number: int) -> None:
        session = run.peer.session
        if session is None:
            return
        try:
            await session.proposer.propose(
                body,
                actor="planner",
                reason=f"stale-{number}",
                control=session.state.control,
            )
        except ProposalError as error:
            self._world.trace.add(run.process.name, f"stale-{number} {type(error).__name__}")


def stale_place(state: State, rng: random.Random) -> Place | None:
    """A claim of a deployment on the device that has the least room left."""
    if not state.deployments:
        return None
    deployment = state.deployments[rng.choice(sorted(state.deployments))]
    rooms: list[tuple[int, str, str]] = []
    for node in sorted(state.inventories):
        if node in state.members and not state.members[node].down:
            for device in state.inventories[node].devices:
                room = device.total_bytes - state.claimed_bytes(node, device.device_id)
                if deployment.need_bytes <= device.total_bytes:
                    rooms.append((room, node, device.device_id))
    if not rooms:
        return None
    _, node, device_id = min(rooms)
    return Place(
        replica=replica_id(
            deployment.name,
            deployment.generation,
            state.replica_numbers.get(deployment.name, 0) + 1,
        ),
        deployment=deployment.name,
        generation=deployment.generation,
        node=node,
        claims=(Claim(device_id, deployment.need_bytes),),
    )


def fake_deployment(name: str, need_bytes: int, replicas: int, digest: str = NO_FILE) -> Deployment:
    return Deployment(
        name=name,
        digest=digest,
        context=512,
        slots=2,
        replicas_min=replicas,
        replicas_max=replicas,
        engine="fake",
        weights_bytes=need_bytes,
    )


def make_key(text: str) -> ApiKey:
    hashed = key_hash(text)
    return ApiKey(hashed[:8], hashed, Scope.USER, "sim")
