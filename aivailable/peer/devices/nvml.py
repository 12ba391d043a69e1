"""NVIDIA cards by NVML: what is there, and what is free now.

Owns the calls of `pynvml`, imported when first used. A library or driver that is missing is a
sentence for the operator, a field that an old card or driver lacks costs that field only. Must
not decide whether a card can be used; called by `system`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

CARDS_MAX = 64
TEXT_MAX_CHARS = 128
TEMPERATURE_GPU = 0
"""nvmlTemperatureSensors_t NVML_TEMPERATURE_GPU."""


@dataclass(frozen=True, slots=True)
class Card:
    """One card. `index` is NVML's order, which is the order of PCI ids."""

    index: int
    device_id: str
    name: str
    total_bytes: int
    architecture: str
    """CUDA compute capability like "sm_61"; "" where the driver does not say."""
    handle: Any


@dataclass(frozen=True, slots=True)
class Reading:
    """A card at this moment. `free_bytes` is None when the driver does not say."""

    free_bytes: int | None
    utilization: float
    """0 to 1."""
    temperature_c: float | None


class Nvml:
    """A session with the driver: open, read often, close."""

    def __init__(self, library: Any | None = None) -> None:
        """`library` stands in for the module `pynvml` in tests."""
        self._library: Any = library
        self._opened = False
        self._faults: tuple[type[Exception], ...] = (AttributeError, ValueError, UnicodeError)

    def open(self) -> str:
        """Return "" when the driver answers, else why there is nothing to see."""
        if self._library is None:
            try:
                self._library = importlib.import_module("pynvml")
            except ImportError as error:
                return f"NVIDIA GPUs cannot be seen: {error}; pip install nvidia-ml-py"
        # AttributeError: a module older than the function. NVMLError: a driver older than it.
        self._faults = (*self._faults, self._library.NVMLError)
        try:
            self._library.nvmlInit()
        except self._faults as error:
            return f"no NVIDIA GPU to be seen: {error}"
        self._opened = True
        return ""

    def close(self) -> None:
        if self._opened and self._library is not None:
            self._opened = False
            self._field(self._library.nvmlShutdown, None)

    def driver(self) -> str:
        """The driver's version; "" when it does not say."""
        library = self._library
        return self._field(lambda: _text(library.nvmlSystemGetDriverVersion()), "")

    def cards(self) -> tuple[tuple[Card, ...], tuple[str, ...]]:
        """Every card with its memory, and a sentence for each that cannot be used."""
        library = self._library
        count = self._field(lambda: int(library.nvmlDeviceGetCount()), 0)
        found: list[Card] = []
        problems: list[str] = []
        for index in range(min(count, CARDS_MAX)):
            card = self._card(index)
            if isinstance(card, Card):
                found.append(card)
            else:
                problems.append(card)
        return tuple(found), tuple(problems)

    def read(self, card: Card) -> Reading:
        """Live figures, each on its own: one that fails leaves the others."""
        library, handle = self._library, card.handle
        return Reading(
            free_bytes=self._field(lambda: int(library.nvmlDeviceGetMemoryInfo(handle).free), None),
            utilization=self._field(
                lambda: float(library.nvmlDeviceGetUtilizationRates(handle).gpu) / 100.0, 0.0
            ),
            temperature_c=self._field(
                lambda: float(library.nvmlDeviceGetTemperature(handle, TEMPERATURE_GPU)), None
            ),
        )

    def _card(self, index: int) -> Card | str:
        library = self._library
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
        except self._faults as error:
            return f"NVIDIA GPU {index} does not answer: {error}"
        name = self._field(lambda: _text(library.nvmlDeviceGetName(handle)), f"NVIDIA GPU {index}")
        total = self._field(lambda: int(library.nvmlDeviceGetMemoryInfo(handle).total), 0)
        if total <= 0:
            return f"{name} does not tell its memory; it is left out"
        return Card(
            index=index,
            device_id=self._field(lambda: _pci_id(library.nvmlDeviceGetPciInfo(handle)), "")
            or f"cuda{index}",
            name=name,
            total_bytes=total,
            architecture=self._field(lambda: _architecture(library, handle), ""),
            handle=handle,
        )

    def _field(self, read: Callable[[], T], default: T) -> T:
        """One value, or what stands for it when card, driver or library lack it."""
        try:
            return read()
        except self._faults:
            return default


def _text(value: Any) -> str:
    """Old versions of the library return bytes."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text.strip()[:TEXT_MAX_CHARS]


def _pci_id(info: Any) -> str:
    """The bus id as the kernel writes it: NVML's "00000000:0A:00.0" is "0000:0a:00.0"."""
    text = _text(info.busId).lower()
    domain, separator, rest = text.partition(":")
    if separator and len(domain) == 8 and domain.startswith("0000"):
        return f"{domain[4:]}:{rest}"
    return text


def _architecture(library: Any, handle: Any) -> str:
    major, minor = library.nvmlDeviceGetCudaComputeCapability(handle)
    return f"sm_{major}{minor}"
