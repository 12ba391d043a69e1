"""AMD cards by AMD's own package `amdsmi`, where it is installed: what the kernel does not say.

Owns the calls of `amdsmi`, imported when first used. The package comes with ROCm and binds one
version of libamd_smi.so: without the library it prints and raises KeyError, with an older one
AttributeError, at the import; both mean that there is nothing to ask. A field that a card lacks
costs that field, a card that stops answering is lost until it answers again. Must not decide
whether a card can be used. Where it fails, `sysfs` stands in.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from aivailable.peer.devices.nvml import CARDS_MAX, TEXT_MAX_CHARS, CardReading

T = TypeVar("T")

_PCI_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")
_TARGET = re.compile(r"gfx[0-9a-f]{3,4}\Z")
_UNKNOWN = ("", "N/A", "0x0000")
_SENSORS = ("EDGE", "HOTSPOT", "JUNCTION")
"""AmdSmiTemperatureType; data-centre cards have no sensor at the edge."""
_CELSIUS_MAX = 1000.0
"""Early versions tell thousandths."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AmdCard:
    """One card. Fields that nobody tells are "" or 0."""

    device_id: str
    """PCI id, as in "0000:03:00.0"."""
    name: str = ""
    total_bytes: int = 0
    architecture: str = ""
    """LLVM target, as in "gfx906"."""
    link_width: int = 0


class AmdSmi:
    """A session with AMD's library: opened by the first question, closed once."""

    def __init__(self, library: Any | None = None) -> None:
        """`library` stands in for the module `amdsmi` in tests."""
        self._library: Any = library
        self._opened = False
        self._faults: tuple[type[Exception], ...] = (
            *(AttributeError, KeyError, TypeError, ValueError, ImportError, OSError),
        )
        self._handles: dict[str, Any] = {}

    def cards(self) -> tuple[AmdCard, ...]:
        """Every card that tells its PCI id; () when the library is not there."""
        problem = self._open()
        if problem:
            log.info("amdsmi is not used: %s", problem)
            return ()
        return tuple(self._card(device_id) for device_id in sorted(self._handles))

    def read(self, card: AmdCard) -> CardReading:
        """Live figures, each on its own; `lost` when the card does not tell its memory."""
        library = self._library
        try:
            handle = self._handles[card.device_id]
            vram = library.AmdSmiMemoryType.VRAM
            total = int(library.amdsmi_get_gpu_memory_total(handle, vram))
            used = int(library.amdsmi_get_gpu_memory_usage(handle, vram))
        except self._faults as error:
            return CardReading(None, 0.0, None, lost=_told(error))
        busy = self._field(
            lambda: float(library.amdsmi_get_gpu_activity(handle)["gfx_activity"]), 0.0
        )
        return CardReading(
            free_bytes=max(0, total - used),
            utilization=min(1.0, busy / 100.0),
            temperature_c=self._temperature(handle),
            power_w=self._power(handle),
        )

    def close(self) -> None:
        if self._opened:
            self._opened = False
            self._field(self._library.amdsmi_shut_down, None)

    def _open(self) -> str:
        """ "" when the library answers, else why not."""
        try:
            if self._library is None:
                # It prints what it then raises.
                with contextlib.redirect_stdout(io.StringIO()):
                    self._library = importlib.import_module("amdsmi")
            self._faults = (*self._faults, self._library.AmdSmiException)
            self._library.amdsmi_init()
            self._opened = True
            for handle in self._library.amdsmi_get_processor_handles()[:CARDS_MAX]:
                device_id = self._field(
                    lambda handle=handle: str(  # type: ignore[misc]
                        self._library.amdsmi_get_gpu_device_bdf(handle)
                    ).lower(),
                    "",
                )
                if _PCI_ID.match(device_id):
                    self._handles[device_id] = handle
        except self._faults as error:
            return _told(error)
        return ""

    def _card(self, device_id: str) -> AmdCard:
        library, handle = self._library, self._handles[device_id]
        asic: dict[str, Any] = self._field(lambda: library.amdsmi_get_gpu_asic_info(handle), {})
        name = str(asic.get("market_name", "")).strip()[:TEXT_MAX_CHARS]
        target = str(asic.get("target_graphics_version", ""))
        vram = self._field(lambda: library.AmdSmiMemoryType.VRAM, None)
        return AmdCard(
            device_id=device_id,
            name="" if name in _UNKNOWN else name,
            total_bytes=self._field(
                lambda: int(library.amdsmi_get_gpu_memory_total(handle, vram)), 0
            ),
            architecture=target if _TARGET.match(target) else "",
            link_width=self._field(
                lambda: int(library.amdsmi_get_pcie_info(handle)["pcie_metric"]["pcie_width"]), 0
            ),
        )

    def _temperature(self, handle: Any) -> float | None:
        library = self._library
        for name in _SENSORS:
            found = self._field(
                lambda name=name: float(  # type: ignore[misc]
                    library.amdsmi_get_temp_metric(
                        handle,
                        getattr(library.AmdSmiTemperatureType, name),
                        library.AmdSmiTemperatureMetric.CURRENT,
                    )
                ),
                None,
            )
            if found is not None:
                return found / 1000.0 if found > _CELSIUS_MAX else found
        return None

    def _power(self, handle: Any) -> float | None:
        told: dict[str, Any] = self._field(lambda: self._library.amdsmi_get_power_info(handle), {})
        for name in ("current_socket_power", "average_socket_power"):
            found = self._field(lambda name=name: float(told[name]), None)  # type: ignore[misc]
            if found:
                return found
        return None

    def _field(self, read: Callable[[], T], default: T) -> T:
        """One value, or what stands for it when card, driver or library lack it."""
        try:
            return read()
        except self._faults:
            return default


def _told(error: Exception) -> str:
    """The library's errors carry their sentence in several lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:TEXT_MAX_CHARS]
