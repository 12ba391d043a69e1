"""What loads were measured to need, and what that means for the next one.

Owns the key of a measurement (model digest, device kind, backend, context, slots, KV type, and the
other engine options, which may need memory too) and how a deployment's size follows from it.
`apply` writes the measurements (`changes/models`); the planner and `deploy` read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aivailable.core.ids import Digest
from aivailable.core.state.records import Deployment, Device
from aivailable.core.state.state import State

KV_TYPE_DEFAULT = "f16"
NEEDS_NO_MEMORY = frozenset({"kv_type", "threads", "template"})
"""Options that the key names by themselves, or that change no size."""


def measured_key(
    digest: Digest, device: Device, context: int, slots: int, options: Mapping[str, str]
) -> str:
    """One configuration, with its settled options, on one kind of device."""
    kind = (device.backend.value, _plain(device.architecture or device.name))
    return "|".join((digest, *kind, *_shape(context, slots, options)))


def learned_bytes(
    state: State, digest: Digest, context: int, slots: int, options: Mapping[str, str]
) -> int | None:
    """The most that this configuration was measured to use on any kind of device; None = it has
    never been loaded on a single one. `options`: settled, so that a file of the same name counts
    as the other one that it is."""
    shape = _shape(context, slots, options)
    found = [
        entry.used_bytes
        for key, entry in state.measured.items()
        if (parts := key.split("|"))[0] == digest and tuple(parts[3:]) == shape
    ]
    return max(found) if found else None


def sized(state: State) -> tuple[Deployment, ...]:
    """All deployments, by name, as large as they were learned to be since they were predicted: a
    load that failed for memory is tried again with what it asked for. Never smaller: what runs by
    its prediction stays where it is."""
    more: dict[tuple[str, ...], int] = {}
    for key, entry in state.measured.items():
        if entry.used_bytes > entry.predicted_bytes:
            parts = key.split("|")
            learned = (parts[0], *parts[3:], str(entry.predicted_bytes))
            more[learned] = max(more.get(learned, 0), entry.used_bytes)
    return tuple(_sized(state.deployments[name], more) for name in sorted(state.deployments))


def _sized(deployment: Deployment, more: Mapping[tuple[str, ...], int]) -> Deployment:
    if not more:
        return deployment
    shape = _shape(deployment.context, deployment.slots, deployment.settled_options)
    need = deployment.need_bytes
    extra = more.get((deployment.digest, *shape, str(need)), need) - need
    return replace(deployment, compute_bytes=deployment.compute_bytes + extra)


def with_learned(weights_bytes: int, kv_bytes: int, learned: int) -> tuple[int, int, int]:
    """The three sizes, adding up to what was measured. Compute takes the difference, then the KV
    cache: weights are what the file says."""
    compute = max(0, learned - weights_bytes - kv_bytes)
    kv = max(0, min(kv_bytes, learned - weights_bytes))
    return min(weights_bytes, learned), kv, compute


def _shape(context: int, slots: int, options: Mapping[str, str]) -> tuple[str, ...]:
    others = [f"{name}={options[name]}" for name in sorted(options) if name not in NEEDS_NO_MEMORY]
    kv_type = options.get("kv_type", KV_TYPE_DEFAULT)
    return (str(context), str(slots), _plain(kv_type), _plain(";".join(others)))


def _plain(text: str) -> str:
    """A "|" in a card's name or an option's value must not look like the next part."""
    return text.replace("|", "/")
