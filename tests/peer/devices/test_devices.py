"""Devices: what the operator named, what NVML tells of old and new cards, what is left out."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aivailable.core.state.records import Backend
from aivailable.peer.devices import SystemDevices
from aivailable.peer.devices.nvml import Nvml
from aivailable.peer.devices.offload import Offload, probe
from aivailable.peer.devices.sysfs import KernelCards
from aivailable.peer.devices.system import installed_engines

GIB = 2**30
HELD_ON = ("0000:0a:00.0", "cuda0", "cpu0", "sim0", "sim1")


class NVMLError(Exception):
    """The scripted library's error."""


class FakeNvml:
    """A scripted `pynvml`: each card is a dict; a missing field raises NVMLError."""

    NVMLError = NVMLError

    def __init__(self, *cards: dict[str, Any], broken: tuple[str, ...] = ()) -> None:
        self.cards = cards
        self.broken = broken
        self.shut = 0

    def _field(self, card: dict[str, Any], name: str) -> Any:
        if name not in card or name in self.broken:
            raise NVMLError("Not Supported")
        return card[name]

    def nvmlInit(self) -> None:
        if "init" in self.broken:
            raise NVMLError("NVML Shared Library Not Found")

    def nvmlShutdown(self) -> None:
        self.shut += 1

    def nvmlSystemGetDriverVersion(self) -> bytes:
        if "driver" in self.broken:
            raise NVMLError("Unknown Error")
        return b"470.256"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        if "lost" in self.cards[index]:
            raise NVMLError("GPU is lost")
        return self.cards[index]

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: bytes) -> dict[str, Any]:
        return next(card for card in self.cards if card.get("pci") == bus_id)

    def nvmlDeviceGetName(self, card: dict[str, Any]) -> Any:
        return self._field(card, "name")

    def nvmlDeviceGetMemoryInfo(self, card: dict[str, Any]) -> Any:
        return SimpleNamespace(
            total=self._field(card, "total"), free=self._field(card, "free"), used=0
        )

    def nvmlDeviceGetPciInfo(self, card: dict[str, Any]) -> Any:
        return SimpleNamespace(busId=self._field(card, "pci"))

    def nvmlDeviceGetCudaComputeCapability(self, card: dict[str, Any]) -> Any:
        return self._field(card, "capability")

    def nvmlDeviceGetUtilizationRates(self, card: dict[str, Any]) -> Any:
        return SimpleNamespace(gpu=self._field(card, "utilization"))

    def nvmlDeviceGetTemperature(self, card: dict[str, Any], sensor: int) -> int:
        assert sensor == 0
        return int(self._field(card, "temperature"))

    def nvmlDeviceGetPowerUsage(self, card: dict[str, Any]) -> int:
        return int(self._field(card, "power"))


GTX = {
    "name": "NVIDIA GeForce GTX 1080 Ti",
    "total": 11 * GIB,
    "free": 10 * GIB,
    "pci": b"00000000:0A:00.0",
    "capability": (6, 1),
    "utilization": 25,
    "temperature": 61,
    "power": 180_500,
}
LEGACY = {"name": b"Tesla K80", "total": 12 * GIB, "free": 12 * GIB}


async def look(
    library: Any, *explicit: tuple[str, str, int], cuda: bool = True, held: int = 0
) -> SystemDevices:
    async def offload() -> Offload:
        return Offload(cuda, "" if cuda else "this llama-cpp-python build runs on the CPU only")

    devices = SystemDevices(
        explicit,
        lambda: dict.fromkeys(HELD_ON, held),
        nvml=Nvml(library),
        kernel=KernelCards(Path("/nonexistent")),
        offload=offload,
        environment={},
    )
    await devices.look()
    return devices


async def test_a_card_is_a_device_with_its_pci_id_and_live_bytes() -> None:
    devices = await look(FakeNvml(GTX), held=GIB // 2)
    (card,) = devices.inventory("n1").devices
    assert (card.device_id, card.backend, card.vendor) == ("0000:0a:00.0", Backend.CUDA, "nvidia")
    assert (card.architecture, card.driver, card.index) == ("sm_61", "470.256", 0)
    assert card.total_bytes == 11 * GIB
    (load,) = devices.load()
    assert (load.free_bytes, load.used_by_others_bytes) == (10 * GIB, GIB // 2)
    assert (load.utilization, load.temperature_c, load.power_w) == (0.25, 61.0, 180.5)


async def test_a_field_that_an_old_card_lacks_costs_that_field_only() -> None:
    devices = await look(FakeNvml(LEGACY, broken=("driver",)))
    (card,) = devices.inventory("n1").devices
    assert (card.device_id, card.name, card.architecture) == ("cuda0", "Tesla K80", "")
    assert card.driver == ""
    (load,) = devices.load()
    assert (load.free_bytes, load.utilization, load.temperature_c) == (12 * GIB, 0.0, None)
    assert load.power_w is None


async def test_a_function_that_an_old_library_lacks_costs_that_field_only() -> None:
    class Older(FakeNvml):
        nvmlDeviceGetCudaComputeCapability = property()  # type: ignore[assignment]  # noqa: N815

    (card,) = (await look(Older(GTX))).inventory("n1").devices
    assert (card.architecture, card.name) == ("", GTX["name"])


async def test_one_lost_card_leaves_the_other() -> None:
    devices = await look(FakeNvml({"lost": True}, GTX, {"name": "GB10"}))
    inventory = devices.inventory("n1")
    assert [card.name for card in inventory.devices] == [GTX["name"]]
    assert inventory.devices[0].index == 1
    assert "GPU is lost" in inventory.problems[0]
    assert "GB10 does not tell its memory" in inventory.problems[1]


async def test_a_card_that_falls_off_the_bus_later_has_nothing_free() -> None:
    card = dict(GTX)
    devices = await look(FakeNvml(card))
    del card["free"], card["utilization"], card["temperature"]
    (load,) = devices.load()
    assert load.free_bytes == 0


async def test_without_driver_there_is_a_sentence_and_no_error() -> None:
    devices = await look(FakeNvml(broken=("init",)))
    assert devices.inventory("n1").devices == ()
    assert "Shared Library Not Found" in devices.inventory("n1").problems[0]
    assert devices.load() == ()


async def test_a_card_that_the_engine_cannot_use_is_a_problem_not_a_device() -> None:
    devices = await look(FakeNvml(GTX), ("cpu", "CPU", GIB), cuda=False)
    inventory = devices.inventory("n1")
    assert [device.backend for device in inventory.devices] == [Backend.CPU]
    (problem,) = inventory.problems
    assert problem.startswith("NVIDIA GeForce GTX 1080 Ti (11.0 GiB) is here, but cannot be used")
    assert "CPU only" in problem
    assert "GGML_CUDA" in problem


async def test_named_devices_exist_in_order_and_count_what_is_held() -> None:
    specs = (("cpu", "CPU", 4 * GIB), ("sim", "GTX", 11 * GIB), ("sim", "RX580", 8 * GIB))
    devices = await look(FakeNvml(broken=("init",)), *specs, held=GIB)
    inventory = devices.inventory("n1")
    assert inventory.node == "n1"
    assert [(d.device_id, d.name) for d in inventory.devices] == [
        ("cpu0", "CPU"), ("sim0", "GTX"), ("sim1", "RX580"),
    ]  # fmt: skip
    assert [load.free_bytes // GIB for load in devices.load()] == [3, 10, 7]
    assert all(load.used_by_others_bytes == 0 for load in devices.load())


async def test_more_memory_than_there_is_gets_a_warning() -> None:
    devices = await look(FakeNvml(broken=("init",)), ("cpu", "CPU", 2**50))
    assert "asked for" in devices.inventory("n1").problems[0]


async def test_closing_ends_the_session_once() -> None:
    library = FakeNvml(GTX)
    devices = await look(library)
    devices.close()
    devices.close()
    assert library.shut == 1


async def test_the_real_library_is_contained() -> None:
    """Whatever this machine has, looking does not fail."""
    devices = SystemDevices((), dict, environment={})
    await devices.look()
    inventory = devices.inventory("n1")
    assert inventory.devices or inventory.problems
    devices.close()


def test_the_fake_engine_exists_only_when_asked_for() -> None:
    assert "fake" not in installed_engines({})
    assert "fake" not in installed_engines({"AIVAILABLE_FAKE_ENGINE": "0"})
    assert installed_engines({"AIVAILABLE_FAKE_ENGINE": "1"})[-1] == "fake"


def script(tmp_path: Path, body: str) -> str:
    """An interpreter that answers like one with such a llama_cpp."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize(
    ("body", "cuda", "reason"),
    [
        ("echo offload CUDA : ARCHS = 610", True, ""),
        ("echo offload Vulkan : x", False, "another GPU backend"),
        ("echo cpu AVX2 = 1", False, "CPU only"),
        ("exit 132", False, "exit status 132"),
        ("exec sleep 60", False, "did not say"),
    ],
)
async def test_the_engine_is_asked_in_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, cuda: bool, reason: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    answer = await probe(script(tmp_path, body), limit_s=0.5 if "sleep" in body else 10.0)
    assert answer.cuda is cuda
    assert reason in answer.reason


async def test_an_interpreter_that_is_gone_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    answer = await probe("/nonexistent/python")
    assert not answer.cuda
    assert "could not be asked" in answer.reason


async def test_without_an_engine_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    answer = await probe(sys.executable)
    assert "not installed" in answer.reason
