"""A cluster of two versions: every second node packs and reads with the first version's code.

Owns the switch between `aivailable.wire.schema` and `fixtures.schema_by_msgpack`, by the process on
whose behalf the running code acts. On both sides of every link, in every log and every home there
is the other version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from fixtures import schema_by_msgpack as old
from sim.loop import current_process

from aivailable.core.state import codec, state
from aivailable.peer.control import member_list
from aivailable.peer.joining import cluster_file
from aivailable.peer.membership import carryover
from aivailable.wire.envelope import Registry

_USERS = {
    codec: ("pack", "from_plain", "unpack_plain"),
    state: ("pack", "from_plain", "unpack_plain"),
    cluster_file: ("pack", "unpack"),
    carryover: ("pack", "unpack"),
    member_list: ("pack", "unpack"),
}


def runs_old_code(name: str) -> bool:
    """By the machine's number; a clone ("n4-clone") runs what its original runs."""
    return int(name.removeprefix("n").partition("-")[0]) % 2 == 1


@contextmanager
def both_versions(used: Counter[str]) -> Iterator[None]:
    """Counts in `used` what each version did, as "old pack", "new decode", …"""
    registries: dict[int, old.Registry] = {}

    def by_node(
        name: str, new: Callable[..., Any], first: Callable[..., Any]
    ) -> Callable[..., Any]:
        def chosen(*given: Any, **named: Any) -> Any:
            process = current_process()
            is_old = process is not None and runs_old_code(process.name)
            used[f"{'old' if is_old else 'new'} {name}"] += 1
            return (first if is_old else new)(*given, **named)

        return chosen

    def of_registry(name: str, registry: Registry, value: Any) -> Any:
        if id(registry) not in registries:
            registries[id(registry)] = old.Registry(**registry.kinds)
        return getattr(registries[id(registry)], name)(value)

    kept: list[tuple[Any, str, Any]] = []
    places: list[tuple[Any, str, Callable[..., Any]]] = [
        (module, name, getattr(old, name)) for module, names in _USERS.items() for name in names
    ]
    places += [(Registry, name, partial(of_registry, name)) for name in ("encode", "decode")]
    try:
        for owner, name, first in places:
            new = getattr(owner, name)
            kept.append((owner, name, new))
            if owner is Registry:
                first = _method(first)
            setattr(owner, name, by_node(name, new, first))
        yield
    finally:
        for owner, name, new in reversed(kept):
            setattr(owner, name, new)


def _method(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda registry, value: call(registry, value)
