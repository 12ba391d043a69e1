"""NVIDIA cards by NVML: what is there, and what is free now.

Owns the calls of `pynvml`, imported when first used. A library or driver that is missing is a
sentence for the operator, a field that an old card or driver lacks costs that field only, a card
that stops answering is lost until it answers again. Of a card cut by MIG the first slice is told:
CUDA shows a process no more than one. Must not decide whether a card can be used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

CARDS_MAX = 64
TEXT_MAX_CHARS = 128
SILENT_READS_MAX = 10
"""Readings of silent cards before a new session with the driver is opened."""
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
    bus_id: str = ""
    """The PCI id as NVML writes it."""
    link_width: int = 0
    """PCIe lanes in use; 0 where the driver does not say."""
    sliced: bool = False
    """Cut by MIG: name and memory are those of its first slice."""


@dataclass(frozen=True, slots=True)
class CardReading:
    """A card at this moment. `free_bytes` is None when the driver does not say."""

    free_bytes: int | None
    utilization: float
    """0 to 1."""
    temperature_c: float | None
    power_w: float | None = None
    lost: str = ""
    """Why it does not answer any more, in the driver's words; "" while it does."""


class Nvml:
    """A session with the driver: open, read often, close."""

    def __init__(self, library: Any | None = None) -> None:
        """`library` stands in for the module `pynvml` in tests."""
        self._library: Any = library
        self._opened = False
        self._handles: dict[int, Any] = {}
        self._silent_reads = 0
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

    def read(self, card: Card) -> CardReading:
        """Live figures, each on its own: one that fails leaves the others.

        A card that stopped answering is asked for anew each time, so that it is back as soon as
        the driver has it back.
        """
        library = self._library
        try:
            handle = self._handle(card)
            free_bytes = int(library.nvmlDeviceGetMemoryInfo(handle).free)
        except self._faults as error:
            self._forget(card)
            return CardReading(None, 0.0, None, lost=str(error))
        return CardReading(
            free_bytes=free_bytes,
            utilization=self._field(
                lambda: float(library.nvmlDeviceGetUtilizationRates(handle).gpu) / 100.0, 0.0
            ),
            temperature_c=self._field(
                lambda: float(library.nvmlDeviceGetTemperature(handle, TEMPERATURE_GPU)), None
            ),
            power_w=self._field(lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000.0, None),
        )

    def _handle(self, card: Card) -> Any:
        """The driver's handle of the card, kept. By PCI id: the order may have changed."""
        if card.index not in self._handles:
            library = self._library
            if card.bus_id:
                handle = library.nvmlDeviceGetHandleByPciBusId(card.bus_id.encode())
            else:
                handle = library.nvmlDeviceGetHandleByIndex(card.index)
            if card.sliced:
                handle = library.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0)
            self._handles[card.index] = handle
        return self._handles[card.index]

    def _forget(self, card: Card) -> None:
        """Its handle is worth nothing. The driver enumerates cards only when a session begins, so
        a silent one is looked for in a new session once in SILENT_READS_MAX readings."""
        self._handles.pop(card.index, None)
        self._silent_reads += 1
        if self._silent_reads >= SILENT_READS_MAX:
            self._silent_reads = 0
            self._handles.clear()
            self._field(self._library.nvmlShutdown, None)
            self._field(self._library.nvmlInit, None)

    def _card(self, index: int) -> Card | str:
        library = self._library
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
        except self._faults as error:
            return f"NVIDIA GPU {index} does not answer: {error}"
        name = self._field(lambda: _text(library.nvmlDeviceGetName(handle)), f"NVIDIA GPU {index}")
        whole = handle
        sliced = self._field(lambda: library.nvmlDeviceGetMigMode(whole)[0] == 1, False)
        if sliced:
            handle = self._field(
                lambda: library.nvmlDeviceGetMigDeviceHandleByIndex(whole, 0), None
            )
            if handle is None:
                return f"{name} is in MIG mode and has no slice; make one with nvidia-smi mig -cgi"
            name = self._field(lambda: _text(library.nvmlDeviceGetName(handle)), f"{name} MIG")
        total = self._field(lambda: int(library.nvmlDeviceGetMemoryInfo(handle).total), 0)
        if total <= 0:
            return f"{name} does not tell its memory; it is left out"
        bus_id = self._field(lambda: _text(library.nvmlDeviceGetPciInfo(whole).busId), "")
        self._handles[index] = handle
        return Card(
            index=index,
            device_id=_pci_id(bus_id) or f"cuda{index}",
            name=name,
            total_bytes=total,
            architecture=self._field(lambda: _architecture(library, whole), ""),
            bus_id=bus_id,
            link_width=self._field(lambda: int(library.nvmlDeviceGetCurrPcieLinkWidth(whole)), 0),
            sliced=sliced,
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


def _pci_id(bus_id: str) -> str:
    """The bus id as the kernel writes it: NVML's "00000000:0A:00.0" is "0000:0a:00.0"."""
    text = bus_id.lower()
    domain, separator, rest = text.partition(":")
    if separator and len(domain) == 8 and domain.startswith("0000"):
        return f"{domain[4:]}:{rest}"
    return text


def _architecture(library: Any, handle: Any) -> str:
    major, minor = library.nvmlDeviceGetCudaComputeCapability(handle)
    return f"sm_{major}{minor}"
