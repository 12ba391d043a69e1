"""`runtime add` as a whole: the cards of this machine, the recipe for them, the making.

Owns the order of these. The only module of this room that looks at devices.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from aivailable.core.records import Backend
from aivailable.peer.devices.offload import Offload
from aivailable.peer.devices.system import SystemDevices
from aivailable.peer.runtimes.interpreters import BACKENDS, Runtime
from aivailable.peer.runtimes.making import Maker, Say, Wish, half_made, remove, whole
from aivailable.peer.runtimes.recipes import Recipe, RuntimeTrouble, missing, recipe
from aivailable.peer.runtimes.tools import look_around

__all__ = ["BACKENDS", "add", "half_made", "remove", "whole"]

_VENDORS = {Backend.CUDA: "nvidia", Backend.ROCM: "amd"}


async def add(
    home: Path,
    backend: Backend,
    architectures: tuple[str, ...],
    wheels: tuple[str, ...],
    offline: bool,
    say: Say,
) -> Runtime:
    """Make a runtime, or go on with a half-made one. `architectures`: instead of those of the
    cards seen. Raises RuntimeTrouble."""
    if offline and not wheels:
        raise RuntimeTrouble("--offline needs --find-links with a folder of wheels")
    tools = await asyncio.to_thread(look_around)
    wish = Wish(backend, wheels, offline)
    lacking = missing(backend, tools, compiles=wish.compiles)
    if lacking:
        # Before the cards are asked about: without nvcc no list of architectures helps.
        raise RuntimeTrouble("; ".join(lacking))
    if wish.compiles:
        seen = architectures or await cards_seen(backend)
        chosen = recipe(backend, seen, tools)
        say(f"building with {' '.join(chosen.options)}")
    else:
        chosen = Recipe(backend, ())
    for note in chosen.notes:
        say(note)
    return await Maker(home, wish, chosen, tools, say).make()


async def cards_seen(backend: Backend) -> tuple[str, ...]:
    """Architectures of this machine's cards of the backend's vendor."""

    async def nothing() -> Offload:
        return Offload(False)

    devices = SystemDevices((), dict, offload=nothing)
    await devices.look()
    devices.close()
    vendor = _VENDORS.get(backend)
    return tuple(
        gpu.architecture
        for gpu in devices.gpus
        if gpu.vendor == vendor and gpu.architecture and not gpu.integrated
    )
