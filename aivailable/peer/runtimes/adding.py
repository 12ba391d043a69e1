"""`runtime add` as a whole: the cards of this machine, the recipe for them, the making.

Owns the order of these. Who looks at the cards is an argument: `peer.devices` asks the runtimes
what they can use, so this room must not ask it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from aivailable.core.state.records import Backend
from aivailable.peer.runtimes.builder import Builder, BuildRequest, Say, half_made, remove, whole
from aivailable.peer.runtimes.interpreters import BACKENDS, Runtime
from aivailable.peer.runtimes.recipes import Recipe, RuntimeTrouble, missing, recipe
from aivailable.peer.runtimes.tools import look_around

__all__ = ["BACKENDS", "add", "half_made", "remove", "whole"]

CardsSeen = Callable[[Backend], Awaitable[tuple[str, ...]]]
"""The architectures of this machine's cards that a backend could serve."""


async def add(
    home: Path,
    backend: Backend,
    architectures: tuple[str, ...],
    wheels: tuple[str, ...],
    offline: bool,
    say: Say,
    cards_seen: CardsSeen,
) -> Runtime:
    """Make a runtime, or go on with a half-made one. `architectures`: instead of those of
    `cards_seen`, which is asked only where they are needed. Raises RuntimeTrouble."""
    if offline and not wheels:
        raise RuntimeTrouble("--offline needs --find-links with a folder of wheels")
    tools = await asyncio.to_thread(look_around)
    request = BuildRequest(backend, wheels, offline)
    lacking = missing(backend, tools, compiles=request.compiles)
    if lacking:
        # Before the cards are asked about: without nvcc no list of architectures helps.
        raise RuntimeTrouble("; ".join(lacking))
    if request.compiles:
        seen = architectures or await cards_seen(backend)
        chosen = recipe(backend, seen, tools)
        say(f"building with {' '.join(chosen.options)}")
    else:
        chosen = Recipe(backend, ())
    for note in chosen.notes:
        say(note)
    return await Builder(home, request, chosen, tools, say).make()
