"""Backends are tried, not believed: crashes, hangs, what is kept, and the real trial on the CPU."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.kernel_cards import GIB

from aivailable.core.state.records import Backend, Device
from aivailable.peer.devices.benchmark import OFF_VARIABLE, Benchmark
from aivailable.peer.devices.gpus import Gpu
from aivailable.peer.devices.known_speeds import known_speed
from aivailable.peer.devices.nvml import Card, CardReading, Nvml
from aivailable.peer.devices.offload import Offered, Offload
from aivailable.peer.devices.sysfs import KernelCards
from aivailable.peer.devices.system import SystemDevices
from aivailable.peer.devices.trial_cache import Speed, TrialCache
from aivailable.peer.devices.trials import Trials
from aivailable.peer.doctor.verdicts import _gpu
from aivailable.peer.runtimes import Interpreters, Starter
from aivailable.wire.worker import DeviceClaim

PCI = "0000:01:00.0"
CARD = Card(0, PCI, "GTX 1080 Ti", 11 * GIB, "sm_61", "00000000:01:00.0", 16)
WORKS = 'echo \'{"version": "0.3.36"}\''
CRASHES = "echo 'ggml_cuda_compute_forward: no kernel image' >&2; kill -SEGV $$"
HANGS = "exec sleep 60"
FULL = 'echo \'{"error": {"code": "out_of_memory", "message": "no VRAM"}}\'; exit 1'
CLAIM = DeviceClaim(PCI, "cuda", 0, 0)


class Scripted(Nvml):
    """NVML with one card and this driver."""

    def __init__(self, driver: str = "550.54") -> None:
        super().__init__(object())
        self._driver = driver
        self.utilization = 0.0

    def open(self) -> str:
        return ""

    def driver(self) -> str:
        return self._driver

    def cards(self) -> tuple[tuple[Card, ...], tuple[str, ...]]:
        return (CARD,), ()

    def read(self, card: Card) -> CardReading:
        return CardReading(card.total_bytes, self.utilization, None)


class Shells(Interpreters):
    """An interpreter for each backend that does what a shell script says, and counts its runs."""

    def __init__(self, folder: Path, **bodies: str) -> None:
        super().__init__(None)
        self._folder = folder
        for backend, body in bodies.items():
            path = folder / backend
            told = f'echo "$@" >> {path}.runs; env > {path}.env'
            path.write_text(f"#!/bin/sh\n{told}\n{body}\n")
            path.chmod(0o700)

    def of(self, backend: str) -> str:
        return str(self._folder / backend)

    def runs(self, backend: str) -> int:
        path = self._folder / f"{backend}.runs"
        return len(path.read_text().splitlines()) if path.exists() else 0


def offers(build: str = "b1") -> Offload:
    return Offload(
        True,
        offered=(
            Offered(Backend.CUDA, 0, PCI, "x", 11 * GIB, place="0", build=build),
            Offered(Backend.VULKAN, 2, PCI, "x", 11 * GIB, place="3", build=build),
        ),
    )


async def look(
    tmp_path: Path,
    shells: Shells,
    *,
    driver: str = "550.54",
    build: str = "b1",
    kept: TrialCache | None = None,
    limit_s: float = 20.0,
) -> SystemDevices:
    async def offload() -> Offload:
        return offers(build)

    file = tmp_path / "devices.json"

    def load() -> bytes | None:
        return file.read_bytes() if file.exists() else None

    def save(data: bytes) -> None:
        file.write_bytes(data)

    devices = SystemDevices(
        (),
        dict,
        nvml=Scripted(driver),
        kernel=KernelCards(tmp_path / "nothing"),
        offload=offload,
        trials=Trials(Starter(shells), smoke_limit_s=limit_s),
        cache=kept or TrialCache(load, save),
        environment={},
    )
    await devices.look()
    return devices


def only(devices: SystemDevices) -> tuple[Gpu, Device | None]:
    (gpu,) = devices.gpus
    found = devices.inventory("n1").devices
    return gpu, found[0] if found else None


async def test_a_backend_that_crashes_gives_way_to_the_next(tmp_path: Path) -> None:
    shells = Shells(tmp_path, cuda=CRASHES, vulkan=WORKS)
    gpu, device = only(await look(tmp_path, shells))
    assert device is not None
    assert (device.backend, device.index) == (Backend.VULKAN, 2)
    check = _gpu(gpu)
    assert "usable through vulkan (cuda fails: killed by signal 11: ggml_cuda" in check.found
    # Only that device is to be seen, under the number that the backend's own variable has for it.
    told = (tmp_path / "vulkan.env").read_text().splitlines()
    assert "GGML_VK_VISIBLE_DEVICES=3" in told
    assert "CUDA_VISIBLE_DEVICES=-1" in told
    assert (tmp_path / "vulkan.runs").read_text().endswith("--backend vulkan --device 0\n")


async def test_the_first_that_works_ends_the_search(tmp_path: Path) -> None:
    shells = Shells(tmp_path, cuda=WORKS, vulkan=WORKS)
    gpu, device = only(await look(tmp_path, shells))
    assert device is not None
    assert device.backend is Backend.CUDA
    assert shells.runs("vulkan") == 0
    assert "a trial decode worked" in _gpu(gpu).found


async def test_when_all_fail_the_card_is_a_problem_with_their_last_words(tmp_path: Path) -> None:
    shells = Shells(tmp_path, cuda=CRASHES, vulkan="echo 'ErrorDeviceLost' >&2; exit 3")
    devices = await look(tmp_path, shells)
    gpu, device = only(devices)
    assert device is None
    (problem,) = devices.inventory("n1").problems
    assert "cuda: killed by signal 11: ggml_cuda_compute_forward: no kernel image" in problem
    assert "vulkan: exit status 3: ErrorDeviceLost" in problem
    assert "driver" in gpu.remedy


async def test_what_lasts_is_kept_until_driver_or_runtime_change(tmp_path: Path) -> None:
    shells = Shells(tmp_path, cuda=CRASHES, vulkan=WORKS)
    for _ in range(2):
        gpu, device = only(await look(tmp_path, shells))
        assert device is not None
        assert device.backend is Backend.VULKAN
        assert gpu.tried[0][1].words.startswith("killed by signal 11")
    assert (shells.runs("cuda"), shells.runs("vulkan")) == (1, 1)
    await look(tmp_path, shells, driver="560.35")
    assert (shells.runs("cuda"), shells.runs("vulkan")) == (2, 2)
    await look(tmp_path, shells, build="b2")
    assert (shells.runs("cuda"), shells.runs("vulkan")) == (3, 3)
    await look(tmp_path, shells)
    assert (shells.runs("cuda"), shells.runs("vulkan")) == (3, 3)


@pytest.mark.parametrize("body", [HANGS, FULL])
async def test_a_hang_and_a_full_card_are_tried_again_next_time(tmp_path: Path, body: str) -> None:
    shells = Shells(tmp_path, cuda=body, vulkan=WORKS)
    for run in (1, 2):
        limit_s = 0.5 if body == HANGS else 20.0
        _, device = only(await look(tmp_path, shells, limit_s=limit_s))
        assert device is None or device.backend is Backend.VULKAN
        assert shells.runs("cuda") == run


async def test_nobody_tries_without_leave_and_doctor_says_so(tmp_path: Path) -> None:
    async def offload() -> Offload:
        return offers()

    devices = SystemDevices(
        (), dict, nvml=Scripted(), kernel=KernelCards(tmp_path), offload=offload, environment={}
    )
    await devices.look()
    gpu, device = only(devices)
    assert device is not None
    assert "not tried yet" in _gpu(gpu).found


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b'{"verdicts": {"a": 1}}', b'{"speeds": 3}', b"\xff"]
)
def test_a_damaged_memory_is_an_empty_one(text: bytes) -> None:
    kept = TrialCache(lambda: text)
    assert kept.verdict("a") is None
    assert kept.speed("a") is None


async def test_the_real_trial_computes_on_the_cpu() -> None:
    pytest.importorskip("llama_cpp", reason="no inference engine is installed")
    trials = Trials(Starter(), benchmark_s=0.2, small=True)
    claim = DeviceClaim("cpu0", "cpu", 0, 0)
    assert (await trials.smoke(claim)).usable
    found = await trials.measure(claim)
    assert isinstance(found, Speed)
    assert min(found.prefill, found.decode) > 1.0
    refused = await trials.smoke(DeviceClaim(PCI, "cuda", 0, 0))
    assert not refused.usable
    assert "built without cuda" in refused.words


class Scales(Trials):
    """Measures nothing: answers, or waits to be broken off."""

    answers: list[Any]
    began: asyncio.Event
    broken: asyncio.Event

    async def measure(self, claim: DeviceClaim) -> Speed | str:
        answer = self.answers.pop(0)
        if answer is None:
            self.began.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.broken.set()
        assert isinstance(answer, Speed | str)
        return answer


def scales(*answers: Any) -> Scales:
    made = Scales(Starter())
    parts = {"answers": list(answers), "began": asyncio.Event(), "broken": asyncio.Event()}
    for name, part in parts.items():
        object.__setattr__(made, name, part)
    return made


def cpu(held: dict[str, int], kept: TrialCache | None = None) -> SystemDevices:
    return SystemDevices(
        (("cpu", "CPU", GIB), ("sim", "GTX1080Ti", 11 * GIB)),
        lambda: held,
        kernel=KernelCards(Path("/nonexistent")),
        cache=kept,
        environment={},
    )


async def test_a_device_is_measured_once_when_it_is_idle() -> None:
    kept, saved = TrialCache(), []
    kept._save = saved.append
    devices = cpu({}, kept)
    devices._engines = ("llama",)
    await devices.look()
    weights = scales("no answer", Speed(20.0, 100.0))
    await Benchmark(devices, weights, {}, quiet_s=0.0, look_s=0.0).run()
    first, second = devices.inventory("n1").devices
    assert (first.speed, first.prefill_speed) == (20.0, 100.0)
    assert second.speed == getattr(known_speed("GTX1080Ti"), "decode", 0.0) > 0
    again = cpu({}, TrialCache(lambda: saved[-1]))
    await again.look()
    assert again.inventory("n1").devices[0].speed == 20.0
    assert "cpu0 CPU" in next(iter(json.loads(saved[-1])["speeds"]))


async def test_a_replica_that_comes_ends_the_measurement() -> None:
    held: dict[str, int] = {}
    devices = cpu(held)
    devices._engines = ("llama",)
    await devices.look()
    weights = scales(None, Speed(5.0, 9.0))
    running = asyncio.ensure_future(
        Benchmark(devices, weights, {}, quiet_s=0.0, look_s=0.001).run()
    )
    await weights.began.wait()
    held["cpu0"] = 1
    await asyncio.wait_for(weights.broken.wait(), 20)
    assert devices.inventory("n1").devices[0].speed == 0.0
    held.clear()
    await asyncio.wait_for(running, 20)
    assert devices.inventory("n1").devices[0].speed == 5.0


async def test_a_measurement_may_be_switched_off() -> None:
    devices = cpu({})
    devices._engines = ("llama",)
    await Benchmark(devices, scales(), {OFF_VARIABLE: "0"}).run()
    devices._engines = ()
    await Benchmark(devices, scales(), {}).run()


def test_known_cards_stand_in_the_right_order() -> None:
    names = ("GTX 970", "NVIDIA GeForce GTX 1080 Ti", "RTX3090", "H200")
    speeds = [known_speed(name) for name in names]
    assert all(speed is not None and speed.prefill > speed.decode for speed in speeds)
    decodes = [speed.decode for speed in speeds if speed is not None]
    assert decodes == sorted(decodes)
    assert known_speed("GTX 1080 Ti") != known_speed("GTX 1080")
    assert known_speed("Voodoo 2") is None
