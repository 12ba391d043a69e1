"""Whether one more replica would fit, device by device, and what would make it fit.

Owns the verdicts and the advice of `fit`. Which bytes are free and which node is out of the
question is placement's word. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aivailable.core.cluster.liveness import Liveness, device_load, replica_load
from aivailable.core.planning.placement import (
    CONTEXT_SUGGESTED_MIN,
    DeviceVerdict,
    Placed,
    PlacementRefused,
    format_bytes,
    place,
)
from aivailable.core.serving.status import DeviceFit
from aivailable.core.state.records import Backend, Deployment, Device, Replica
from aivailable.core.state.state import BYTES_MAX, State
from aivailable.gguf.facts import ModelFacts
from aivailable.gguf.memory import (
    CONTEXT_STEP_TOKENS,
    KV_TYPE_BYTES,
    UBATCH_DEFAULT_TOKENS,
    draft_tokens,
    largest_context,
    need,
)

PROBE = ""
"""The name under which placement is asked: no deployment can have it."""
SMALL_KV = "q8_0"
"""The KV type that halves the cache at next to no loss."""

_LARGE_KV = ("f32", "f16", "bf16")


def chosen(state: State, liveness: Liveness, wanted: Deployment) -> Placed | None:
    """Where one more replica would go now."""
    answer = place(state, liveness, replace(wanted, name=PROBE))
    return answer if isinstance(answer, Placed) else None


def device_fits(
    state: State, liveness: Liveness, wanted: Deployment, facts: ModelFacts | None
) -> tuple[DeviceFit, ...]:
    """A verdict on every device, by node and device. `facts`: None = no advice on its sizes."""
    # A need that fits nowhere makes placement say of every device what is free there.
    probe = replace(wanted, name=PROBE, weights_bytes=BYTES_MAX, kv_bytes=0, compute_bytes=0)
    answer = place(state, liveness, probe)
    sizes = _Sizes.of(wanted, facts) if facts is not None else None
    found: list[DeviceFit] = []
    for verdict in answer.reasons if isinstance(answer, PlacementRefused) else ():
        device = state.device(verdict.node, verdict.device_id)
        if device is not None and not verdict.need_bytes:
            out = DeviceFit(verdict.node, verdict.node_name, "", obstacle=verdict.text)
            found.append(_described(state, liveness, out, device))
            continue
        if device is not None:
            found.append(_on_device(state, liveness, wanted, sizes, verdict, device))
            continue
        out = DeviceFit(verdict.node, verdict.node_name, "", obstacle=verdict.text)
        inventory = state.inventories.get(verdict.node)
        known = inventory.devices if inventory is not None else ()
        found += [_described(state, liveness, out, each) for each in known] or [out]
    return tuple(found)


def _described(state: State, liveness: Liveness, fit: DeviceFit, device: Device) -> DeviceFit:
    load = device_load(liveness, fit.node, device.device_id, state.settings.down_after_ms)
    granted = device.backend in (Backend.CPU, Backend.SIM)
    return replace(
        fit,
        device_id=device.device_id,
        device_name=device.name,
        backend=device.backend.value,
        total_bytes=device.total_bytes,
        claimed_bytes=state.claimed_bytes(fit.node, device.device_id),
        used_by_others_bytes=load.used_by_others_bytes if load is not None else 0,
        margin_bytes=0 if granted else state.settings.margin_bytes,
    )


def _on_device(
    state: State,
    liveness: Liveness,
    wanted: Deployment,
    sizes: _Sizes | None,
    verdict: DeviceVerdict,
    device: Device,
) -> DeviceFit:
    free = verdict.free_bytes
    missing = max(0, wanted.need_bytes - free)
    base = DeviceFit(verdict.node, verdict.node_name, device.device_id, free_bytes=free)
    advice: tuple[str, ...] = ()
    if missing:
        smaller = sizes.smaller(free) if sizes is not None else ()
        advice = (*smaller, *_evictions(state, liveness, wanted, verdict, device, missing))
    return replace(
        _described(state, liveness, base, device),
        fits=missing == 0,
        missing_bytes=missing,
        context_max=sizes.context_max(free) if sizes is not None else 0,
        advice=advice,
    )


def _draft(wanted: Deployment) -> str | None:
    option = wanted.options.get("draft")
    try:
        draft_tokens(option, on_gpu=True)
    except ValueError:
        # Its load will refuse the option; until then it is sized without.
        return "0"
    return option


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The formula, shifted so that it says for the wanted shape what was predicted for it."""

    facts: ModelFacts
    context: int
    slots: int
    kv_type: str
    ubatch: int
    draft: str | None
    shift_bytes: int
    pooling: str

    @classmethod
    def of(cls, wanted: Deployment, facts: ModelFacts) -> _Sizes:
        kv_type = wanted.options.get("kv_type", "f16")
        kv_type = kv_type if kv_type in KV_TYPE_BYTES else "f16"
        given = wanted.options.get("ubatch", "")
        ubatch = int(given) if given.isdecimal() and int(given) else UBATCH_DEFAULT_TOKENS
        draft = _draft(wanted)
        pooling = wanted.options.get("pooling", facts.pooling)
        formula = need(
            facts, wanted.context, wanted.slots, kv_type, ubatch, draft=draft, pooling=pooling
        )
        shift = wanted.need_bytes - formula.total_bytes
        return cls(facts, wanted.context, wanted.slots, kv_type, ubatch, draft, shift, pooling)

    def need_bytes(self, slots: int, kv_type: str) -> int:
        size = need(
            self.facts,
            self.context,
            slots,
            kv_type,
            self.ubatch,
            draft=self.draft,
            pooling=self.pooling,
        )
        return size.total_bytes + self.shift_bytes

    def context_max(self, free: int, kv_type: str = "") -> int:
        """Up to what the model was trained for, or else what is wanted."""
        most = max(self.facts.context_train or self.context, CONTEXT_STEP_TOKENS)
        return largest_context(
            self.facts,
            free - self.shift_bytes,
            self.slots,
            kv_type or self.kv_type,
            self.ubatch,
            most=most,
            draft=self.draft,
            pooling=self.pooling,
        )

    def smaller(self, free: int) -> tuple[str, ...]:
        """Each shape of the same model, changed in one way, that fits `free`."""
        found = []
        context = self.context_max(free)
        if CONTEXT_SUGGESTED_MIN <= context < self.context:
            found.append(f"--ctx {context}")
        fewer = self.slots - 1
        while fewer and self.need_bytes(fewer, self.kv_type) > free:
            fewer -= 1
        if fewer:
            found.append(f"--slots {fewer}")
        if self.kv_type in _LARGE_KV:
            small = self.context_max(free, SMALL_KV)
            if self.need_bytes(self.slots, SMALL_KV) <= free:
                found.append(f"--option kv_type={SMALL_KV}")
            elif max(context + 1, CONTEXT_SUGGESTED_MIN) <= small < self.context:
                found.append(f"--option kv_type={SMALL_KV} --ctx {small}")
        return tuple(found)


def _evictions(
    state: State,
    liveness: Liveness,
    wanted: Deployment,
    verdict: DeviceVerdict,
    device: Device,
    missing: int,
) -> tuple[str, ...]:
    """The replicas whose going would make the room: least important, then idle, then large ones
    first; pinned ones and those of a higher priority never."""
    candidates = sorted(
        (
            (owner.priority, _busy(state, liveness, replica), -_claim(replica, device), replica)
            for replica in state.replicas_on(verdict.node)
            if (owner := state.deployments.get(replica.deployment)) is not None
            and not owner.pin
            and owner.priority <= wanted.priority
            and not replica.drain
            and _claim(replica, device)
        ),
        key=lambda entry: (*entry[:3], entry[3].replica),
    )
    taken: list[tuple[Replica, int]] = []
    for _, busy, _, replica in candidates:
        if missing <= 0:
            break
        taken.append((replica, busy))
        missing -= _claim(replica, device)
    if missing > 0 or not taken:
        return ()
    return (f"evicting {', '.join(_named(taken, device))}",)


def _named(taken: Sequence[tuple[Replica, int]], device: Device) -> list[str]:
    return [
        f"{replica.deployment} ({format_bytes(_claim(replica, device))},"
        f" {f'{busy} requests' if busy else 'idle now'})"
        for replica, busy in taken
    ]


def _claim(replica: Replica, device: Device) -> int:
    return sum(c.claim_bytes for c in replica.claims if c.device_id == device.device_id)


def _busy(state: State, liveness: Liveness, replica: Replica) -> int:
    """Requests that it serves or holds in its line."""
    load = replica_load(liveness, replica.node, replica.replica, state.settings.down_after_ms)
    return load.slots_busy + load.waiting if load is not None else 0
