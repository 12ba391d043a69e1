"""Whose interpreter a worker starts from, and what its process may see."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aivailable.core.state.records import Backend
from aivailable.peer.devices.offload import Offered, Offload, merged, probe
from aivailable.peer.runtimes import Interpreters, Runtime, Starter
from aivailable.peer.runtimes.interpreters import CODE, write_record
from aivailable.peer.runtimes.starting import place
from aivailable.wire.worker import DeviceClaim

VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def runtime(home: Path, backend: Backend) -> Runtime:
    """A whole one, as far as a lookup goes."""
    path = home / "runtimes" / backend.value
    (path / "lib" / VERSION / "site-packages").mkdir(parents=True)
    made = Runtime(backend, path, "3.11", "0.3.36", 0)
    write_record(path, made)
    return made


def claims(backend: str, *devices: tuple[str, int]) -> tuple[DeviceClaim, ...]:
    return tuple(DeviceClaim(device, backend, index, 1) for device, index in devices)


def test_each_backend_has_its_runtime_and_the_rest_ours(tmp_path: Path) -> None:
    made = runtime(tmp_path, Backend.VULKAN)
    interpreters = Interpreters(tmp_path)
    assert interpreters.of("vulkan") == made.interpreter
    assert interpreters.of("cuda") == interpreters.of("sim") == sys.executable
    link = made.path / "lib" / VERSION / "site-packages" / "aivailable"
    assert link.readlink() == CODE
    assert [one.backend for one in interpreters.whole()] == [Backend.VULKAN]


def test_a_link_to_other_code_is_set_right(tmp_path: Path) -> None:
    made = runtime(tmp_path, Backend.CPU)
    link = made.path / "lib" / VERSION / "site-packages" / "aivailable"
    link.symlink_to("/somewhere/else")
    assert Interpreters(tmp_path).of("sim") == made.interpreter
    assert link.readlink() == CODE


@pytest.mark.parametrize("fault", ["half", "damaged", "other python"])
def test_what_is_not_whole_is_not_used(tmp_path: Path, fault: str) -> None:
    made = runtime(tmp_path, Backend.CUDA)
    if fault == "half":
        (made.path / "runtime.json").unlink()
    elif fault == "damaged":
        (made.path / "runtime.json").write_text('{"python": ')
    else:
        (made.path / "lib" / VERSION).rename(made.path / "lib" / "python2.7")
    assert Interpreters(tmp_path).of("cuda") == sys.executable


def test_a_process_sees_its_devices_and_no_other() -> None:
    places = {"a": "0", "b": "1", "c": "2", "v": "3"}
    starter = Starter(places=lambda: places, environment={"HOME": "/root"})
    start = starter.start(claims("cuda", ("c", 2), ("a", 0)))
    assert start.environment["CUDA_VISIBLE_DEVICES"] == "2,0"
    assert [(one.device_id, one.index) for one in start.devices] == [("c", 0), ("a", 1)]
    assert start.environment["GGML_VK_VISIBLE_DEVICES"] == ""
    assert start.environment["HIP_VISIBLE_DEVICES"] == "-1"
    assert start.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert start.environment["HOME"] == "/root"
    start = starter.start(claims("vulkan", ("v", 1)))
    assert start.environment["GGML_VK_VISIBLE_DEVICES"] == "3"
    assert (start.environment["CUDA_VISIBLE_DEVICES"], start.devices[0].index) == ("-1", 0)
    start = starter.start(claims("rocm", ("b", 1)))
    assert start.environment["HIP_VISIBLE_DEVICES"] == "1"
    # HIP reads CUDA's variable, too.
    assert "CUDA_VISIBLE_DEVICES" not in start.environment


def test_what_cannot_be_shown_alone_keeps_its_number() -> None:
    start = Starter(environment={}).start(claims("vulkan", ("v", 2)))
    assert "GGML_VK_VISIBLE_DEVICES" not in start.environment
    assert start.devices[0].index == 2
    start = Starter(environment={}).start(claims("cpu", ("cpu0", 0)))
    assert start.environment["CUDA_VISIBLE_DEVICES"] == "-1"


def test_an_operators_choice_is_counted_from() -> None:
    told = {"CUDA_VISIBLE_DEVICES": "2, GPU-77", "GGML_VK_VISIBLE_DEVICES": "4"}
    assert [place("cuda", index, told) for index in range(3)] == ["2", "GPU-77", ""]
    assert (place("vulkan", 0, told), place("rocm", 1, told)) == ("4", "1")
    assert (place("vulkan", 0, {}), place("cpu", 0, {})) == ("", "")


def test_a_runtime_is_believed_about_its_backend_only() -> None:
    cuda = Offered(Backend.CUDA, 0, "x", "n", 1)
    ours, theirs = (
        Offered(Backend.VULKAN, 0, "y", "ours", 1),
        Offered(Backend.VULKAN, 1, "y", "t", 1),
    )
    found = merged(Offload(True, "", (cuda, ours)), Backend.VULKAN, Offload(False, "x", (theirs,)))
    assert found.offered == (cuda, theirs)
    assert found.problems == ()
    broken = merged(found, Backend.ROCM, Offload(False, "exit status 127"))
    assert broken.offered == found.offered
    assert broken.problems == ("the runtime rocm is of no use: exit status 127",)


async def test_vulkans_own_numbers_are_asked_one_by_one(tmp_path: Path) -> None:
    """Number 0 is a CPU that llama.cpp leaves out, 1 and 2 are two cards, there is no 3."""
    path = tmp_path / "python"
    first = "device\tVulkan0\t0000:03:00.0\tRX 580\t1\t8"
    second = "device\tVulkan{}\t0000:04:00.0\tVega\t1\t8"
    asked = tmp_path / "asked"
    path.write_text(
        f'#!/bin/sh\necho "$GGML_VK_VISIBLE_DEVICES" >> {asked}\n'
        "[ \"$GGML_VK_VISIBLE_DEVICES\" = 3 ] || echo 'offload Vulkan : x'\n"
        'case "$GGML_VK_VISIBLE_DEVICES" in\n'
        "0) printf 'device\tVulkan0\t\tllvmpipe\t1\t8\n';;\n"
        f"'') printf '{first}\\n{second.format(1)}\\n';;\n"
        f"1) printf '{second.format(0)}\\n';;\n"
        f"2) printf '{first}\\n';;\n"
        "3) echo 'cpu CPU : x';;\nesac\n"
    )
    path.chmod(0o700)
    answer = await probe(str(path), 10.0, {"PATH": "/usr/bin:/bin"})
    assert [(one.device_id, one.index, one.place) for one in answer.offered] == [
        ("0000:03:00.0", 0, "2"),
        ("0000:04:00.0", 1, "1"),
    ]
    # One that is offered but shown by no number: the end of the numbers ends the search.
    path.write_text(path.read_text().replace(f"2) printf '{first}", "2) printf '"))
    asked.unlink()
    answer = await probe(str(path), 10.0, {"PATH": "/usr/bin:/bin"})
    assert [one.place for one in answer.offered] == ["", "1"]
    assert asked.read_text().split() == ["0", "1", "2"]
