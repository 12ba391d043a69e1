"""Measures each device once, when it is idle, and stops at once when it is wanted.

Owns when: after the node has been quiet for a while, one device after another, never beside a
replica. What is measured is the child's (`trials`), what is kept is `system`'s. Built and run by
`app`, beside the peer; a node that never finds the time has unknown speeds, which nothing needs.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Final

from aivailable.core.state.records import Device
from aivailable.peer.devices.system import SystemDevices, claim_for_speed
from aivailable.peer.devices.trial_cache import Speed
from aivailable.peer.devices.trials import Trials

OFF_VARIABLE: Final = "AIVAILABLE_BENCHMARK"
""" "0" = nothing is measured; for tests, and for a machine whose owner wants no surprise."""
QUIET_S: Final = 20.0
"""Idle for this long before a measurement begins: what is deployed at the start comes first."""
LOOK_S: Final = 0.5
"""Between two looks whether the device is still idle."""
ATTEMPTS_MAX: Final = 5
"""Measurements of one device that may be broken off or fail until the next start."""

log = logging.getLogger(__name__)


class Benchmark:
    """`run` measures what is unknown, then ends."""

    def __init__(
        self,
        devices: SystemDevices,
        trials: Trials,
        environment: Mapping[str, str] = os.environ,
        quiet_s: float = QUIET_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._devices = devices
        self._trials = trials
        self._off = environment.get(OFF_VARIABLE) == "0"
        self._quiet_s = quiet_s
        self._look_s = look_s

    async def run(self) -> None:
        """Ends when every device has its speed, or its attempts."""
        if self._off or "llama" not in self._devices.inventory("").engines:
            return
        attempts: dict[str, int] = {}
        while True:
            left = [
                device
                for device in self._devices.unmeasured()
                if attempts.get(device.device_id, 0) < ATTEMPTS_MAX
            ]
            if not left:
                return
            for device in left:
                await self._until_quiet(device)
                attempts[device.device_id] = attempts.get(device.device_id, 0) + 1
                await self._measure(device)

    async def _until_quiet(self, device: Device) -> None:
        quiet_s = 0.0
        while True:
            await asyncio.sleep(self._look_s)
            if not self._devices.idle(device):
                quiet_s = 0.0
                continue
            quiet_s += self._look_s
            if quiet_s >= self._quiet_s:
                return

    async def _measure(self, device: Device) -> None:
        """One child, ended as soon as a replica is placed on its device."""
        claim = claim_for_speed(device)
        child = asyncio.ensure_future(self._trials.measure(claim))
        try:
            while not child.done():
                await asyncio.wait((child,), timeout=self._look_s)
                if not child.done() and self._devices.wanted(device):
                    log.info("%s is wanted: its measurement waits", device.device_id)
                    return
            found = child.result()
        finally:
            if not child.done():
                child.cancel()
                await asyncio.gather(child, return_exceptions=True)
        if isinstance(found, Speed):
            self._devices.learn_speed(device, found)
            log.info(
                "%s (%s) decodes %.1f and reads %.1f tokens/s of the generated model",
                *(device.device_id, device.backend.value, found.decode, found.prefill),
            )
        else:
            log.warning("%s cannot be measured: %s", device.device_id, found)
