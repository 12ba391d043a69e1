"""`aivailable deploy|undeploy|fit|models`: what shall run, whether it fits, watching it come up."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aivailable import config
from aivailable.advice import CHAT, DEPLOY, STATUS, UNDEPLOY
from aivailable.cli import placing, render, render_plan, target
from aivailable.cli.progress import LoadProgress
from aivailable.cli.target import ApiKeyOption, HomeOption, UrlOption
from aivailable.core.serving.status import ClusterStatus
from aivailable.errors import AivailableError
from aivailable_tui import wording

if TYPE_CHECKING:
    from aivailable.client import Client
    from aivailable.core.state.records import Deployment

REPLICAS_MAX = 64
UNPLACEABLE_PATIENCE_S = 5.0
"""An unplaceable deployment may only be waiting for the planner's next look."""
WAIT_DEFAULT_S = 1800
DEVICES_WAIT_S = 30.0
"""For nodes that have joined and not told their devices."""
DEVICES_RETRY_S = 0.5

Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="An option of the engine, like kv_type=q8_0. Repeatable.",
    ),
]


def deploy(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|PATH", help="A model's name or digest, or a GGUF file.")
    ],
    name: Annotated[
        str | None, typer.Option("--as", help="Name of the deployment. Default: the model's.")
    ] = None,
    replicas: Annotated[str, typer.Option(metavar="MIN[..MAX]", help="How many copies run.")] = "1",
    ctx: placing.Context = None,
    slots: placing.Slots = None,
    pin: Annotated[bool, typer.Option("--pin", help="Never evict it for another.")] = False,
    idle_ttl: Annotated[
        str | None,
        typer.Option(
            "--idle-ttl",
            metavar="TIME",
            help="Unload replicas beyond MIN after this long, like 10m.",
        ),
    ] = None,
    priority: Annotated[
        int | None, typer.Option(help="Higher ones take the room of lower ones. Default: 0.")
    ] = None,
    option: Options = None,
    on: placing.On = None,
    not_on: placing.NotOn = None,
    gpu: placing.Gpu = None,
    vendor: placing.Vendor = None,
    backend: placing.BackendOption = None,
    min_arch: placing.MinArch = None,
    beside: placing.Beside = None,
    apart_from: placing.ApartFrom = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the plan that would result, and change nothing."),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Watch until it is ready.")] = True,
    engine: Annotated[str, typer.Option(hidden=True)] = "llama",
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Run a model on the cluster; it finds the devices by their memory."""
    low, high = parse_replicas(replicas)
    wanted: dict[str, Any] = {
        "name": name,
        **placing.context(ctx),
        **placing.slots(slots),
        "replicas_min": low,
        "replicas_max": high,
        "pin": pin,
        "engine": engine,
        **parse_options(option),
        **_policy(idle_ttl, priority),
        **placing.where(
            on=on,
            not_on=not_on,
            gpu=gpu,
            vendor=vendor,
            backend=backend,
            min_arch=min_arch,
            beside=beside,
            apart_from=apart_from,
        ),
    }
    where = target.find(url, api_key, home)
    if dry_run:
        _show_plan(where, model, wanted)
    else:
        _deploy(where, model, wanted, wait)


def _show_plan(where: target.ApiTarget, model: str, wanted: dict[str, Any]) -> None:
    """Raises AivailableError when the plan says no."""
    plan = target.run(
        where, lambda client: client.preview(absolute(model), **wanted), f"planning {model}"
    )
    for part in render_plan.plan_page(plan):
        render.show(part)
    if plan.refusal:
        raise AivailableError(f"{plan.deployment} would be refused: {plan.refusal}")


def _deploy(where: target.ApiTarget, model: str, wanted: dict[str, Any], wait: bool) -> None:
    async def work(client: Client) -> tuple[str, bool]:
        made = await _made(client, model, wanted)
        deployed = made.name
        if wait:
            known = (await wait_ready(client, deployed)).models
            chats = all(one.has_chat_template for one in known if one.digest == made.digest)
            return deployed, chats
        return deployed, True

    deployed, chats = target.run(where, work)
    if wait and chats:
        render.say(f"{deployed} is ready: {CHAT.of(deployed).line}")
    elif wait:
        render.say(
            f"{deployed} is ready. Its file has no chat template, so it does not chat: it answers"
            " /v1/completions, and other endpoints if it was made for them"
        )
    else:
        render.say(f"{deployed} is deployed; {STATUS} shows when it is ready")


async def _made(client: Client, model: str, wanted: dict[str, Any]) -> Deployment:
    """Deploy, once nodes that came a moment ago have told their devices. Raises AivailableError,
    which names them when that takes longer than DEVICES_WAIT_S."""
    clock = asyncio.get_running_loop().time
    deadline_s, doing = clock() + DEVICES_WAIT_S, f"deploying {model}"
    told = False
    with render.waiting(doing):
        while True:
            try:
                return await client.deploy(absolute(model), **wanted)
            except AivailableError as error:
                if getattr(error, "code", "") != "devices_not_told" or clock() > deadline_s:
                    raise
                if not told:
                    render.note(f"{error}. Waiting for them, {DEVICES_WAIT_S:.0f} s at most.")
                told = True
            await asyncio.sleep(DEVICES_RETRY_S)


def fit(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|PATH", help="A model's name or digest, or a GGUF file.")
    ],
    ctx: Annotated[int | None, typer.Option(min=1, help="Tokens of context per slot.")] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Requests one replica decodes at a time.")
    ] = None,
    option: Options = None,
    on: placing.On = None,
    not_on: placing.NotOn = None,
    gpu: placing.Gpu = None,
    vendor: placing.Vendor = None,
    backend: placing.BackendOption = None,
    min_arch: placing.MinArch = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as JSON.")] = False,
    engine: Annotated[str, typer.Option(hidden=True)] = "llama",
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Say on which devices a model fits now, and what would make it fit. Changes nothing."""
    asked = {"context": ctx, "slots": slots, "engine": engine, **parse_options(option)}
    asked |= placing.where(
        on=on, not_on=not_on, gpu=gpu, vendor=vendor, backend=backend, min_arch=min_arch
    )
    found = target.run(
        target.find(url, api_key, home),
        lambda client: client.fit(absolute(model), **asked),
        f"measuring {model}",
    )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2, sort_keys=True))
    else:
        for part in render_plan.fit_page(found):
            render.show(part)
    if not found.node_name:
        raise AivailableError(f"{found.model} fits nowhere now")


def undeploy(
    name: Annotated[str, typer.Argument(help="The deployment's name.")],
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    home: HomeOption = None,
) -> None:
    """Stop a deployment and free its memory. The model's files stay."""
    target.run(
        target.find(url, api_key, home), lambda client: client.undeploy(name), f"stopping {name}"
    )
    render.say(f"{name} is not deployed any more; requests under way finish first")


def list_models(
    url: UrlOption = None, api_key: ApiKeyOption = None, home: HomeOption = None
) -> None:
    """List the models that the cluster has."""
    status: ClusterStatus = target.run(
        target.find(url, api_key, home), lambda client: client.state(), "asking for the models"
    )
    if not status.models:
        render.note(f"No models yet: {DEPLOY.of('PATH')} adds a GGUF file.")
        return
    render.show(render.models_table(status.models, status))


def parse_replicas(text: str) -> tuple[int, int]:
    """(min, max) of `2` or `1..3`. Raises typer.BadParameter."""
    low, dots, high = text.partition("..")
    if not low.isdecimal() or (dots and not high.isdecimal()):
        raise typer.BadParameter(
            f"{text!r}: write MIN or MIN..MAX, like 1..3", param_hint="replicas"
        )
    bounds = int(low), int(high or low)
    if not 0 <= bounds[0] <= bounds[1] <= REPLICAS_MAX or bounds[1] == 0:
        raise typer.BadParameter(
            f"{text!r}: needs 0 ≤ MIN ≤ MAX ≤ {REPLICAS_MAX} and MAX ≥ 1", param_hint="replicas"
        )
    return bounds


def _policy(idle_ttl: str | None, priority: int | None) -> dict[str, int]:
    """What was given of how long it stays and whom it yields to. Raises typer.BadParameter."""
    given: dict[str, int] = {}
    if idle_ttl is not None:
        try:
            given["idle_ttl_s"] = config.parse_duration_s(idle_ttl)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--idle-ttl") from error
    if priority is not None:
        given["priority"] = priority
    return given


def parse_options(given: list[str] | None) -> dict[str, Any]:
    """`options` of `name=value` texts; nothing when there are none. Raises typer.BadParameter."""
    options: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals or name in options:
            raise typer.BadParameter(
                f"{text!r}: write NAME=VALUE, each name once", param_hint="--option"
            )
        options[name] = value
    return {"options": options} if options else {}


def absolute(model: str) -> str:
    """A path made absolute, because the node has another working directory; else unchanged.

    Names may contain slashes, so a text is a path when it begins like one, names a GGUF file, or
    a file of that name is here.
    """
    path = config.expanded(model)
    if model.startswith(("/", "./", "../", "~")) or model.endswith(".gguf") or path.is_file():
        return str(path)
    return model


async def wait_ready(client: Client, name: str, wait_s: float = WAIT_DEFAULT_S) -> ClusterStatus:
    """Show progress until the deployment has its replicas; returns the status that says so.

    Raises AivailableError with the explanation when it cannot be placed, is removed, or takes
    longer than `wait_s` seconds.
    """
    with LoadProgress() as progress:
        watch = ReadyWatch(name, progress)
        try:
            async with asyncio.timeout(wait_s):
                async for status in client.watch():
                    if watch.ready(status, asyncio.get_running_loop().time()):
                        return status
        except TimeoutError:
            raise AivailableError(
                f"{name} is not ready after {wording.span(wait_s)}{watch.why}; it goes on: "
                f"see {STATUS}"
            ) from None
    raise AivailableError(f"lost sight of {name}: no node answers; try {STATUS}")


class ReadyWatch:
    """Judges one status after another: ready, still coming, or hopeless."""

    def __init__(self, name: str, progress: LoadProgress) -> None:
        self.why = ""
        """The last explanation, as the end of a sentence."""
        self._name = name
        self._progress = progress
        self._seen = False
        self._unplaceable_since_s: float | None = None

    def ready(self, status: ClusterStatus, now_s: float) -> bool:
        """Whether the deployment is ready. Raises AivailableError when it will not be."""
        found = next((known for known in status.deployments if known.name == self._name), None)
        if found is None:
            if self._seen:
                raise AivailableError(f"{self._name} was undeployed meanwhile")
            return False
        self._seen = True
        mine = [part for part in status.replicas if part.deployment == self._name]
        self._progress.update(found, mine)
        self.why = f": {found.explanation}" if found.explanation else ""
        if found.state != "unplaceable":
            self._unplaceable_since_s = None
            ready = found.state == "ready" and found.replicas_ready >= found.replicas_min
            return ready or found.state == "on demand"
        if self._unplaceable_since_s is None:
            self._unplaceable_since_s = now_s
        if now_s - self._unplaceable_since_s >= UNPLACEABLE_PATIENCE_S:
            raise AivailableError(
                f"{self._name} cannot be placed now{self.why}. It stays deployed and starts when "
                f"there is room; {UNDEPLOY.of(self._name)} gives it up"
            )
        return False
